//! Journal and log against a file system that fails, a process that is killed at any call, and a power cut at any moment.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests may panic as tests do; the driver talks to the test over its standard output"
)]

#[path = "faults/check.rs"]
mod check;
#[path = "faults/crash.rs"]
mod crash;
#[path = "faults/driver.rs"]
mod driver;
#[path = "faults/inject.rs"]
mod inject;
#[path = "faults/strace.rs"]
mod strace;
