//! Pure decisions about execs: what a command does, and what policy says of it.
//!
//! [`Policy::decide`] takes the facts of one exec and gives a [`Verdict`]. It does no I/O, reads no clock and never
//! panics; its work is bounded by constants. It fails towards review: what is not understood is never allowed.
//!
//! The language has two halves, both data: *programs* say which acts a command line performs and on what targets,
//! *rules* say which tier an act gets. Each act is judged alone and the strictest part wins.
#![forbid(unsafe_code)]

mod act;
mod builtin;
pub mod corpus;
pub mod decision;
mod error;
mod examples;
mod facts;
mod glob;
mod invocation;
mod judge;
mod kind;
mod lint;
mod load;
mod model;
mod novelty;
mod paths;
mod placed;
mod raw;
mod reading;
#[cfg(test)]
#[allow(clippy::panic, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a test")]
mod real;
mod risk;
pub mod roles;
mod scripts;
pub mod secrets;
mod shell;
mod verdict;
mod wrappers;

pub use error::PolicyError;
pub use examples::{Example, Unmet};
pub use facts::{Facts, FileRef, Role, Stdin};
pub use kind::{Granted, Kind, band};
pub use lint::Lint;
pub use model::Policy;
pub use novelty::Subject;
pub use reading::Reading;
pub use risk::RiskPart;
pub use verdict::{Reason, Tier, Verdict};

/// The JSON schema of policy files, made from the types that read them.
#[cfg(feature = "schema")]
#[must_use]
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(raw::RawPolicy).to_value();
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("title".into(), "Guard policy file".into());
    }
    schema
}

/// One policy file, as given to [`Policy::load`].
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Name of the file, for error messages.
    pub name: &'a str,
    /// The whole text.
    pub text: &'a str,
}
