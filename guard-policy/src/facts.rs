//! The facts of one exec, as the daemon measured them. Nothing in here is what the agent says about itself.

/// What a file is to an exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The program named by `execve`.
    Program,
    /// A script with an interpreter line.
    Script,
    /// The interpreter of a script.
    Interpreter,
    /// A dynamic loader started as a program.
    Loader,
}

/// One file that an exec takes.
#[derive(Debug, Clone, Copy)]
pub struct FileRef<'a> {
    /// Resolved absolute path.
    pub path: &'a [u8],
    /// What the file is to the exec.
    pub role: Role,
    /// The session's user could write the file or replace it.
    pub session_writable: bool,
    /// It lies on a file system whose content another program or machine can change unseen (FUSE, network).
    pub foreign: bool,
}

/// What standard input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// A terminal.
    Terminal,
    /// A pipe or socket.
    Pipe,
    /// A regular file.
    File,
    /// `/dev/null` or closed.
    Null,
    /// Anything else.
    Other,
}

/// The facts of one exec.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Complete, as passed, free of NUL.
    pub argv: &'a [Vec<u8>],
    /// First the file named by `execve`, then interpreters. Empty only if unknown, which means review.
    pub files: &'a [FileRef<'a>],
    /// Working directory, absolute.
    pub cwd: &'a [u8],
    /// Home of the session's user.
    pub home: &'a [u8],
    /// Working directory of the session's start.
    pub workspace: &'a [u8],
    /// The session's user id.
    pub uid: u32,
    /// `NAME=value`.
    pub env: &'a [Vec<u8>],
    /// What standard input is.
    pub stdin: Stdin,
    /// The session's entry process.
    pub entry: bool,
}
