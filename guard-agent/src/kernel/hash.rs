//! Keyed hash over the argument and environment bytes of a new image: SipHash-1-3 over 8-byte little-endian words, the
//! bytes padded with zeros to whole chunks of 256, the length as last word. Twin of `guard-ebpf/src/hash.rs`.

/// The kernel program hashes whole chunks of this many bytes.
const CHUNK: usize = 256;

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    fn new([k0, k1]: [u64; 2]) -> Self {
        Self {
            v0: k0 ^ 0x736f_6d65_7073_6575,
            v1: k1 ^ 0x646f_7261_6e64_6f6d,
            v2: k0 ^ 0x6c79_6765_6e65_7261,
            v3: k1 ^ 0x7465_6462_7974_6573,
        }
    }

    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    fn word(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }
}

/// What the kernel must find in the new image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageArgs {
    /// Keyed hash of all bytes.
    pub hash: u64,
    /// Length of all bytes, NULs included.
    pub len: u64,
    /// Argument strings.
    pub argc: u32,
    /// Environment strings.
    pub envc: u32,
}

/// Hashes the final argument area: every argument, then every environment string, each with its NUL.
pub fn image_args(key: [u64; 2], argv: &[Vec<u8>], env: &[Vec<u8>]) -> ImageArgs {
    let mut bytes = Vec::with_capacity(argv.iter().chain(env).map(|s| s.len() + 1).sum());
    for text in argv.iter().chain(env) {
        bytes.extend_from_slice(text);
        bytes.push(0);
    }
    let len = bytes.len() as u64;
    bytes.resize(bytes.len().next_multiple_of(CHUNK), 0);
    let mut state = State::new(key);
    for chunk in bytes.chunks(8) {
        let mut word = [0_u8; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        state.word(u64::from_le_bytes(word));
    }
    state.word(len);
    state.v2 ^= 0xff;
    state.round();
    state.round();
    state.round();
    ImageArgs {
        hash: state.v0 ^ state.v1 ^ state.v2 ^ state.v3,
        len,
        argc: u32::try_from(argv.len()).unwrap_or(u32::MAX),
        envc: u32::try_from(env.len()).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|t| t.as_bytes().to_vec()).collect()
    }

    #[test]
    fn border_between_arguments_and_environment_is_bound_by_the_counts() {
        let a = image_args([1, 2], &strings(&["ls", "A=1"]), &strings(&["B=2"]));
        let b = image_args([1, 2], &strings(&["ls"]), &strings(&["A=1", "B=2"]));
        assert_eq!((a.hash, a.len), (b.hash, b.len));
        assert_ne!((a.argc, a.envc), (b.argc, b.envc));
    }

    #[test]
    fn every_byte_the_length_and_the_key_count() {
        let base = image_args([1, 2], &strings(&["git", "status"]), &[]);
        assert_ne!(base.hash, image_args([1, 2], &strings(&["git", "statuS"]), &[]).hash);
        assert_ne!(base.hash, image_args([1, 3], &strings(&["git", "status"]), &[]).hash);
        assert_ne!(base.hash, image_args([1, 2], &strings(&["git", "status", ""]), &[]).hash);
    }
}
