//! Why a policy was refused: where, what, and what to do.

/// A policy that does not load. Nothing of it takes effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {reason}; {hint}")]
pub struct PolicyError {
    /// Name of the source.
    pub file: String,
    /// Line, from 1; 0 if the whole source is meant.
    pub line: u64,
    /// Column, from 1; 0 if the whole source is meant.
    pub column: u64,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub hint: String,
}
