//! Guard's kernel programs. Mechanism only, no policy: they know sessions, grants and marks, never rules.
//!
//! One file per hook family. In enforce mode every path that is not understood denies: no session, no entry, no grant,
//! an unreadable field, a full map or a full ring. Neighbours (tasks that no session governs) cost one look-up.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bounds;
mod check;
mod deletes;
mod enter;
mod guards;
mod hash;
mod mapping;
mod maps;
mod membership;
mod names;
mod namespaces;
mod offsets;
mod outcome;
mod paths;
mod places;
mod privilege;
mod process;
mod report;
mod ring;
mod settings;
mod signals;
mod sockets;
mod stamp;
mod verify;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The helpers that end a task and read user memory are offered to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
