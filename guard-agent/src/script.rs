//! `#!` lines as the kernel reads them, and the argument vector that it makes of them.
//!
//! Pure. Source: `load_script` in fs/binfmt_script.c (6.1, 6.12, 7.x: the same rules). Fails: a line that the kernel
//! would refuse gives nothing; then the file is no script for us and the exec ends with the kernel's own error.

/// Bytes of a file's head that the kernel looks at.
pub const HEAD: usize = 256;
/// Scripts in a chain, at most: `exec_binprm` gives up at the sixth (6.1, 6.12, 7.x).
pub const DEPTH: usize = 5;

/// A parsed `#!` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shebang {
    /// Path of the interpreter.
    pub interpreter: Vec<u8>,
    /// The one optional argument, with inner blanks as they are.
    pub argument: Option<Vec<u8>>,
}

fn blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Reads the first line of a file's head (at most [`HEAD`] bytes of it are used).
pub fn parse(head: &[u8]) -> Option<Shebang> {
    let head = head.get(..HEAD.min(head.len()))?;
    let line = head.strip_prefix(b"#!")?;
    let line = match line.iter().position(|b| *b == b'\n') {
        Some(end) => line.get(..end)?,
        // No line end in the whole buffer: the interpreter's path must at least be whole.
        None if head.len() == HEAD => {
            let start = line.iter().position(|b| !blank(*b))?;
            line.get(start..)?.iter().position(|b| blank(*b) || *b == 0)?;
            line
        }
        None => line,
    };
    // The kernel works on C strings: a NUL ends the line.
    let line = line.split(|b| *b == 0).next()?;
    let end = line.iter().rposition(|b| !blank(*b))? + 1;
    let start = line.iter().position(|b| !blank(*b))?;
    let line = line.get(start..end)?;
    let stop = line.iter().position(|b| blank(*b)).unwrap_or(line.len());
    let interpreter = line.get(..stop)?.to_vec();
    let rest = line.get(stop..)?;
    let argument = rest.iter().position(|b| !blank(*b)).and_then(|at| rest.get(at..)).map(<[u8]>::to_vec);
    Some(Shebang { interpreter, argument })
}

/// The argument vector of the final image: for every script from the outermost on, the kernel drops `argv[0]` and puts
/// interpreter, argument and the script's own path in front.
pub fn rewrite(argv: &[Vec<u8>], path: &[u8], chain: &[Shebang]) -> Vec<Vec<u8>> {
    let mut now: Vec<Vec<u8>> = if argv.is_empty() { vec![Vec::new()] } else { argv.to_vec() };
    let mut script = path.to_vec();
    for line in chain {
        let mut next = vec![line.interpreter.clone()];
        next.extend(line.argument.clone());
        next.push(script);
        next.extend(now.into_iter().skip(1));
        now = next;
        script = line.interpreter.clone();
    }
    now
}

/// The path that the kernel hands to an interpreter (`bprm->interp`).
pub fn script_path(dirfd: i32, path: &[u8]) -> Vec<u8> {
    const AT_FDCWD: i32 = -100;
    if dirfd == AT_FDCWD || path.first() == Some(&b'/') {
        return path.to_vec();
    }
    let mut full = format!("/dev/fd/{dirfd}").into_bytes();
    if !path.is_empty() {
        full.push(b'/');
        full.extend_from_slice(path);
    }
    full
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(interpreter: &str, argument: Option<&str>) -> Shebang {
        Shebang { interpreter: interpreter.into(), argument: argument.map(|a| a.as_bytes().to_vec()) }
    }

    fn words(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|t| t.as_bytes().to_vec()).collect()
    }

    #[test]
    fn parses_as_the_kernel_does() {
        assert_eq!(parse(b"#!/bin/sh\necho"), Some(line("/bin/sh", None)));
        assert_eq!(parse(b"#! /usr/bin/env  python3 -u \nx"), Some(line("/usr/bin/env", Some("python3 -u"))));
        assert_eq!(parse(b"#!/bin/sh"), Some(line("/bin/sh", None)));
        assert_eq!(parse(b"#!\n"), None);
        assert_eq!(parse(b"#!   \n/bin/sh"), None);
        assert_eq!(parse(b"\x7fELF"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_cut_interpreter_is_refused_a_cut_argument_is_not() {
        let mut long = b"#!/".to_vec();
        long.resize(HEAD, b'a');
        assert_eq!(parse(&long), None);
        let mut argument = b"#!/bin/sh ".to_vec();
        argument.resize(HEAD + 50, b'a');
        assert_eq!(parse(&argument).unwrap().argument.unwrap().len(), HEAD - 10);
    }

    #[test]
    fn rewrites_nested_scripts() {
        let chain = [line("/s1", Some("-o")), line("/bin/sh", None)];
        assert_eq!(
            rewrite(&words(&["s2", "a", "b"]), b"./s2", &chain),
            words(&["/bin/sh", "/s1", "-o", "./s2", "a", "b"])
        );
        assert_eq!(rewrite(&[], b"./s", &[line("/bin/sh", None)]), words(&["/bin/sh", "./s"]));
        assert_eq!(rewrite(&[], b"/p", &[]), words(&[""]));
    }

    #[test]
    fn paths_of_execveat() {
        assert_eq!(script_path(-100, b"./x"), b"./x");
        assert_eq!(script_path(5, b"x"), b"/dev/fd/5/x");
        assert_eq!(script_path(5, b""), b"/dev/fd/5");
        assert_eq!(script_path(5, b"/x"), b"/x");
    }

    proptest! {
        #[test]
        fn never_panics(head in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&head);
        }
    }
}
