//! SipHash-1-3 over the new image's argument area, in chunks, for any length up to the kernel's limit.
//! The daemon's `kernel/hash.rs` is its twin.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_copy_from_user, bpf_loop, bpf_probe_read_user};

use crate::offsets::{HASH_KEY_0, HASH_KEY_1, global};

const CHUNK: u64 = 256;
const WORDS: usize = 32;

#[repr(C)]
struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
    at: u64,
    left: u64,
    failed: u64,
}

impl State {
    #[inline(always)]
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

    #[inline(always)]
    fn word(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }
}

/// Hash of `len` bytes of the current task's user memory, or nothing if they cannot be read. A program that may sleep
/// (`SLEEPS`) brings pages back that were swapped out; another one gives up.
#[inline(always)]
pub fn of_user<const SLEEPS: bool>(address: u64, len: u64) -> Option<u64> {
    let (k0, k1) = (global(&HASH_KEY_0), global(&HASH_KEY_1));
    let mut state = State {
        v0: k0 ^ 0x736f_6d65_7073_6575,
        v1: k1 ^ 0x646f_7261_6e64_6f6d,
        v2: k0 ^ 0x6c79_6765_6e65_7261,
        v3: k1 ^ 0x7465_6462_7974_6573,
        at: address,
        left: len,
        failed: 0,
    };
    let chunks = (len.wrapping_add(CHUNK - 1) / CHUNK) as u32;
    let state_ptr = (&raw mut state).cast::<c_void>();
    // SAFETY: the callbacks have the signature that the helper calls, and the state outlives the call.
    let done = unsafe {
        if SLEEPS {
            bpf_loop(chunks, chunk_sleeping as *mut c_void, state_ptr, 0)
        } else {
            bpf_loop(chunks, chunk_at_once as *mut c_void, state_ptr, 0)
        }
    };
    if state.failed != 0 || done != i64::from(chunks) {
        return None;
    }
    state.word(len);
    state.v2 ^= 0xff;
    state.round();
    state.round();
    state.round();
    Some(state.v0 ^ state.v1 ^ state.v2 ^ state.v3)
}

unsafe extern "C" fn chunk_sleeping(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` hands back the pointer to the state that `of_user` owns.
    chunk(unsafe { &mut *context.cast::<State>() }, bpf_copy_from_user)
}

unsafe extern "C" fn chunk_at_once(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: as above.
    chunk(unsafe { &mut *context.cast::<State>() }, bpf_probe_read_user)
}

#[inline(always)]
fn chunk(state: &mut State, read: unsafe fn(*mut c_void, u32, *const c_void) -> i64) -> i64 {
    let mut words = [0_u64; WORDS];
    let buffer = words.as_mut_ptr().cast::<c_void>();
    let source = state.at as *const c_void;
    // Two calls, so that the verifier sees a constant size or one below 256.
    // SAFETY: the buffer has 256 bytes; the helper checks the user address.
    let failed = unsafe {
        if state.left >= CHUNK {
            read(buffer, CHUNK as u32, source)
        } else {
            read(buffer, (state.left & 0xff) as u32, source)
        }
    };
    if failed != 0 {
        state.failed = 1;
        return 1;
    }
    // Always whole chunks, the last one padded with zeros: a loop without branches is what the verifier accepts quickly.
    for word in &words {
        state.word(*word);
    }
    state.at += CHUNK;
    state.left = state.left.saturating_sub(CHUNK);
    0
}
