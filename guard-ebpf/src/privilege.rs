//! Privileges that no session has, whoever it runs as: capabilities beyond its mask, `bpf`, kernel code, kernel secrets,
//! `userfaultfd`, `io_uring`, input pushed into terminals.

use aya_ebpf::helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel_str_bytes, bpf_task_pt_regs};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::{reason, session_flags};

use crate::bounds::bounds;
use crate::check::EPERM;
use crate::membership::{governed, on_behalf};
use crate::offsets::{OFF_QSTR_NAME, OFF_REGS_SYSCALL, OFF_USERNS_LEVEL, field};
use crate::report::{Act, Text};

/// The kernel only asks itself; nothing was tried (`include/linux/security.h`).
const CAP_OPT_NOAUDIT: u32 = 2;
const CAP_DAC_READ_SEARCH: u32 = 2;
/// `open_by_handle_at` of 64-bit and of 32-bit code.
const OPEN_BY_HANDLE: [u64; 2] = [304, 342];

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
/// Owner of a socket's signals, in user memory that could change after it was looked at.
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;

const READING_FIRMWARE: u32 = 1;

#[lsm(hook = "capable")]
pub fn guard_capable(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(4);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    let Some(bounds) = bounds(&mark) else { return 0 };
    let capability: u32 = ctx.arg(2);
    if bounds.caps_denied & (1 << (capability & 63)) == 0 {
        return 0;
    }
    let namespace: *const u8 = ctx.arg(1);
    // SAFETY: the hook's tracked argument.
    let level: i32 = unsafe { field(namespace, &OFF_USERNS_LEVEL) };
    if level > 0 && bounds.has(session_flags::ADOPT_NAMESPACES) {
        // In a user namespace of its own a session is what it likes to be.
        return 0;
    }
    // An overlay needs the capabilities of its mount when it copies up what a session changes; it has asked for the session's own
    // rights before. A session has no other way to act with credentials that it does not have, but for `io_uring`, which
    // keeps those of earlier for later (`io_register_personality`).
    if on_behalf() && !bounds.has(session_flags::ALLOW_IO_URING) {
        return 0;
    }
    let options: u32 = ctx.arg(3);
    if options & CAP_OPT_NOAUDIT != 0 || is_probe(capability) {
        return if bounds.has(session_flags::OBSERVE) { 0 } else { EPERM };
    }
    bounds.refuse(&mark, &Act { number: capability as u64, ..Act::new(reason::CAPABILITY) })
}

/// The kernel asks for this one first whenever root reads what is not root's, then for `dac_override`. Only
/// `open_by_handle_at` demands it.
#[inline(always)]
fn is_probe(capability: u32) -> bool {
    if capability != CAP_DAC_READ_SEARCH {
        return false;
    }
    // SAFETY: the helpers always succeed for the current task; the registers are a tracked kernel object.
    let number: u64 = unsafe {
        let registers = bpf_task_pt_regs(bpf_get_current_task_btf());
        field(registers as *const u8, &OFF_REGS_SYSCALL)
    };
    number != OPEN_BY_HANDLE[0] && number != OPEN_BY_HANDLE[1]
}

/// Its number of arguments differs between kernels, so an earlier verdict is not read; the kernel calls no further
/// program after a refusal.
#[lsm(hook = "bpf")]
pub fn guard_bpf(ctx: LsmContext) -> i32 {
    let command: i32 = ctx.arg(0);
    judge(0, &Act { number: command as u64, ..Act::new(reason::BPF) }, 0)
}

#[lsm(hook = "kernel_load_data")]
pub fn guard_load_data(ctx: LsmContext) -> i32 {
    load(ctx.arg(2), ctx.arg(0))
}

#[lsm(hook = "kernel_read_file")]
pub fn guard_read_file(ctx: LsmContext) -> i32 {
    load(ctx.arg(3), ctx.arg(1))
}

/// Firmware is what a driver asks for; whose system call that happens in says nothing.
#[inline(always)]
fn load(earlier: i32, kind: u32) -> i32 {
    if kind == READING_FIRMWARE {
        return earlier;
    }
    judge(earlier, &Act { number: kind as u64, ..Act::new(reason::KERNEL_LOAD) }, 0)
}

/// What a locked-down kernel refuses to everybody (`/dev/mem`, ports, MSRs, `/proc/kcore`, kprobes, tracing) is refused to
/// sessions on every kernel.
#[lsm(hook = "locked_down")]
pub fn guard_lockdown(ctx: LsmContext) -> i32 {
    let what: u32 = ctx.arg(0);
    judge(ctx.arg(1), &Act { detail: what, ..Act::new(reason::KERNEL_SETTING) }, 0)
}

#[lsm(hook = "file_ioctl")]
pub fn guard_ioctl(ctx: LsmContext) -> i32 {
    ioctl(ctx.arg(3), ctx.arg(1))
}

#[lsm(hook = "file_ioctl_compat")]
pub fn guard_ioctl_compat(ctx: LsmContext) -> i32 {
    ioctl(ctx.arg(3), ctx.arg(1))
}

#[inline(always)]
fn ioctl(earlier: i32, command: u32) -> i32 {
    match command {
        TIOCSTI | TIOCLINUX => judge(earlier, &Act { number: command as u64, ..Act::new(reason::TERMINAL_INPUT) }, 0),
        FIOSETOWN | SIOCSPGRP => judge(earlier, &Act { number: command as u64, ..Act::new(reason::SIGNAL) }, 0),
        _ => earlier,
    }
}

#[lsm(hook = "inode_init_security_anon")]
pub fn guard_anon_inode(ctx: LsmContext) -> i32 {
    const USERFAULTFD: [u8; 8] = *b"[userfau";
    const IO_URING: [u8; 8] = *b"[io_urin";
    let name: *const u8 = ctx.arg(1);
    // SAFETY: the hook's tracked argument.
    let name: *const u8 = unsafe { field(name, &OFF_QSTR_NAME) };
    let mut start = [0_u8; 9];
    // SAFETY: the helper checks the address and writes at most the buffer.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(name, &mut start) };
    let (why, free) = match start {
        [a, b, c, d, e, f, g, h, _] if [a, b, c, d, e, f, g, h] == USERFAULTFD => (reason::USERFAULTFD, 0),
        [a, b, c, d, e, f, g, h, _] if [a, b, c, d, e, f, g, h] == IO_URING => {
            (reason::IO_URING, session_flags::ALLOW_IO_URING)
        }
        _ => return ctx.arg(3),
    };
    judge(ctx.arg(3), &Act { text: Text::name(name), ..Act::new(why) }, free)
}

/// Refuses to a governed task whose session has none of the flags.
#[inline(always)]
fn judge(earlier: i32, act: &Act, free: u32) -> i32 {
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    match bounds(&mark) {
        Some(bounds) if !bounds.has(free) => bounds.refuse(&mark, act),
        _ => 0,
    }
}
