//! Memory that the daemon no longer needs.
//!
//! Reading the kernel's types and loading the programs takes some ten MiB once. It must not be called where an exec waits.
//! Fails: not at all; what is not given back stays with the process.

/// Gives free memory back to the system.
pub fn give_back() {
    // SAFETY: the call takes no pointers, and may run beside any allocation.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
