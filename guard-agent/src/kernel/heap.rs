//! Memory that the daemon does not need, or no longer.
//!
//! Reading the kernel's types and loading the programs takes some ten MiB once. It must not be called where an exec waits.
//! Fails: not at all; what is not given back stays with the process.

/// Areas that all threads allocate from. By default each thread of a session gets one of its own, up to eight for each
/// processor, and each keeps what it once needed.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Bounds what the allocator keeps. Before the first thread.
pub fn few_arenas() {
    // SAFETY: the call takes no pointers.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Gives free memory back to the system.
pub fn give_back() {
    // SAFETY: the call takes no pointers, and may run beside any allocation.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
