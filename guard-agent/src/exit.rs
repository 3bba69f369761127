//! Exit codes, after sysexits.h, and the errors that carry them.

use std::fmt::Display;

/// Codes of guard-agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Done.
    Ok = 0,
    /// Wrong usage.
    Usage = 64,
    /// Something that must be there is not.
    Unavailable = 69,
    /// A defect.
    Internal = 70,
    /// Not permitted.
    Denied = 77,
    /// The configuration, the policy or the host is not as it must be.
    Config = 78,
}

/// An error for a person.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: Code,
    /// What, where, what to do.
    pub text: String,
}

/// Makes errors of one code.
pub fn failed<E: Display>(code: Code) -> impl Fn(E) -> Failure {
    move |error| Failure { code, text: error.to_string() }
}
