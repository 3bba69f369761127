//! How a command ends: the one list of exit codes, and the error that carries kind, message and hint to the person.
//!
//! It must not print. Fails: never; every failure of the other modules becomes a [`CliError`] here.

use std::fmt;
use std::process::ExitCode;

/// Exit codes of every command except a finished `guardctl run`, which ends with the code of the command it ran
/// (126: the entry program was denied, 128 + N: ended by signal N).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, and the thing asked about is so.
    Ok = 0,
    /// The thing asked about is not so: verification failed, no such session, request no longer open.
    No = 1,
    /// The command line cannot be used.
    Usage = 64,
    /// Collector or daemon cannot be reached, or cannot serve now.
    Unavailable = 69,
    /// A defect here or in the answer of the other side.
    Internal = 70,
    /// The caller may not do this.
    Denied = 77,
    /// The configuration file or a key file cannot be used.
    Config = 78,
    /// `guardctl run`: the entry program was denied.
    EntryDenied = 126,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    /// The word for this kind in messages and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Exit::Ok => "ok",
            Exit::No => "no",
            Exit::Usage => "usage",
            Exit::Unavailable => "unavailable",
            Exit::Internal => "internal",
            Exit::Denied => "denied",
            Exit::Config => "config",
            Exit::EntryDenied => "entry_denied",
        }
    }
}

/// A failure as a person sees it. `message` and `hint` are escaped when printed, not before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliError {
    /// Decides the exit code.
    pub kind: Exit,
    /// What failed, lower case, no full stop.
    pub message: String,
    /// What to do about it, where there is something to do.
    pub hint: Option<String>,
}

/// What commands return.
pub type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    /// An error without a hint.
    pub fn new(kind: Exit, message: impl fmt::Display) -> Self {
        CliError { kind, message: message.to_string(), hint: None }
    }

    /// The same error with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}
