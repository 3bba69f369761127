//! Why a command ends, and with which code.
//!
//! It must not hide the cause: each error says what was being done, to which file or key, and what to do. Fails: never.

use std::fmt;
use std::process::ExitCode;

/// Kinds of failure, as exit codes of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 64: wrong use of the command.
    Usage,
    /// 69: something that is needed cannot be had: the address, the disk.
    Unavailable,
    /// 70: the log or the index is not what it must be.
    Internal,
    /// 77: a file may not be read or written.
    Permission,
    /// 78: the configuration, a certificate or a key is wrong.
    Config,
}

/// An error with its kind.
#[derive(Debug)]
pub struct CollectorError {
    /// Decides the exit code.
    pub kind: Exit,
    /// For the person.
    pub message: String,
}

/// What commands return.
pub type Result<T> = std::result::Result<T, CollectorError>;

impl CollectorError {
    /// A new one.
    pub fn new(kind: Exit, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// For a failed file operation: permission is told apart.
    pub fn io(kind: Exit, what: impl fmt::Display, cause: &std::io::Error) -> Self {
        let kind = if cause.kind() == std::io::ErrorKind::PermissionDenied { Exit::Permission } else { kind };
        Self::new(kind, format_args!("{what}: {cause}"))
    }

    /// The exit code.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Exit::Usage => 64,
            Exit::Unavailable => 69,
            Exit::Internal => 70,
            Exit::Permission => 77,
            Exit::Config => 78,
        })
    }
}

/// An error with its causes: the outermost alone does not say why.
pub fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

impl fmt::Display for CollectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CollectorError {}
