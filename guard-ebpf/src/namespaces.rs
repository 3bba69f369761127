//! Namespaces and mounts made inside a session: refused, or, where the profile adopts them, reported, so that the daemon
//! marks the new mounts. Until it has, execs through them are refused, because nothing holds them.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::{mount_operation, reason, session_flags};

use crate::bounds::bounds;
use crate::membership::governed;
use crate::names;
use crate::report::{Act, Text, observe};

#[lsm(hook = "userns_create")]
pub fn guard_userns(ctx: LsmContext) -> i32 {
    judge(ctx.arg(1), &Act::new(reason::USER_NAMESPACE))
}

#[lsm(hook = "sb_mount")]
pub fn guard_mount(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's tracked argument.
    let name = unsafe { names::of_path(ctx.arg(1)) };
    judge(ctx.arg(5), &act(mount_operation::MOUNT, Text::name(name)))
}

#[lsm(hook = "move_mount")]
pub fn guard_move_mount(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's tracked argument.
    let name = unsafe { names::of_path(ctx.arg(1)) };
    judge(ctx.arg(2), &act(mount_operation::MOVE, Text::name(name)))
}

#[lsm(hook = "sb_umount")]
pub fn guard_umount(ctx: LsmContext) -> i32 {
    judge(ctx.arg(2), &act(mount_operation::UMOUNT, Text::NONE))
}

#[lsm(hook = "sb_pivotroot")]
pub fn guard_pivot(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's tracked argument.
    let name = unsafe { names::of_path(ctx.arg(1)) };
    judge(ctx.arg(2), &act(mount_operation::PIVOT, Text::name(name)))
}

#[lsm(hook = "sb_remount")]
pub fn guard_remount(ctx: LsmContext) -> i32 {
    judge(ctx.arg(2), &act(mount_operation::REMOUNT, Text::NONE))
}

#[lsm(hook = "sb_kern_mount")]
pub fn guard_new_mount(ctx: LsmContext) -> i32 {
    judge(ctx.arg(1), &act(mount_operation::NEW, Text::NONE))
}

#[inline(always)]
fn act(operation: u32, text: Text) -> Act {
    Act { detail: operation, text, ..Act::new(reason::MOUNT) }
}

#[inline(always)]
fn judge(earlier: i32, act: &Act) -> i32 {
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    let Some(bounds) = bounds(&mark) else { return 0 };
    if bounds.has(session_flags::ADOPT_NAMESPACES) {
        observe(&mark, act);
        return 0;
    }
    bounds.refuse(&mark, act)
}
