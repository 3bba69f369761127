//! Settings of the kernel and of other tasks that are files, and devices that are memory, disks or keyboards.
//!
//! Judged at `inode_permission`, by the file system's magic number and what stands in the inode: no path leads around it.

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_str_bytes};
use guard_common::{FileKey, Mark, reason, session_flags};

use crate::bounds::Bounds;
use crate::membership::tgid;
use crate::names;
use crate::offsets::*;
use crate::report::{Act, Text, observe};
use crate::signals::is_own;

const MAY_WRITE: i32 = 2;
const PROC: u64 = 0x9fa0;
const BPF: u64 = 0xcafe_4a11;
/// File systems that are nothing but settings.
const SETTINGS: [u64; 12] = [
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0xde5e_81e4, // efivarfs
    0x4249_4e4d, // binfmt_misc
    0x6165_676c, // pstore
    0x0027_e0eb, // cgroup version 1
    0x0765_5821, // resctrl
    0xf97c_ff8c, // selinuxfs
    0x6573_5543, // fusectl
];

const TYPE: u16 = 0o170_000;
const BLOCK: u16 = 0o060_000;
const CHARACTER: u16 = 0o020_000;

/// Whether it is a device: the only files whose reading is looked at.
///
/// # Safety
/// `inode` must be the hook's tracked argument.
#[inline(always)]
pub unsafe fn is_device(inode: *const u8) -> bool {
    // SAFETY: by contract.
    let mode: u16 = unsafe { field(inode, &OFF_INODE_MODE) };
    mode & TYPE == BLOCK || mode & TYPE == CHARACTER
}

/// 0, or what the hook returns.
///
/// # Safety
/// `inode` must be the hook's tracked argument.
#[inline(always)]
pub unsafe fn judge(mark: &Mark, bounds: &Bounds, inode: *const u8, magic: u64, key: FileKey, mask: i32) -> i32 {
    // SAFETY: by contract.
    let why = unsafe {
        if is_raw_device(inode) {
            reason::RAW_DEVICE
        } else if mask & MAY_WRITE == 0 {
            0
        } else if magic == BPF {
            reason::BPF
        } else if magic == PROC {
            return proc_file(mark, bounds, inode, key);
        } else if SETTINGS.contains(&magic) {
            reason::KERNEL_SETTING
        } else {
            0
        }
    };
    if why == 0 {
        return 0;
    }
    // SAFETY: by contract.
    let name = unsafe { names::of_inode(inode) };
    bounds.refuse(mark, &Act { text: Text::name(name), ..Act::on_file(why, key) })
}

/// # Safety
/// `inode` must be the hook's tracked argument.
#[inline(always)]
unsafe fn is_raw_device(inode: *const u8) -> bool {
    // SAFETY: by contract.
    let (mode, device): (u16, u32) = unsafe { (field(inode, &OFF_INODE_MODE), field(inode, &OFF_INODE_RDEV)) };
    if mode & TYPE == BLOCK {
        return true;
    }
    if mode & TYPE != CHARACTER {
        return false;
    }
    match (device >> 20, device & 0xf_ffff) {
        // Memory and ports.
        (1, 1 | 2 | 4) => true,
        // The contents of consoles.
        (7, _) => true,
        // Watchdog, NVRAM, made-up input devices, hibernation, device mapper, loop devices.
        (10, 130 | 144 | 223 | 231 | 236 | 237) => true,
        // Keyboards and mice, SCSI commands, flash chips, processor registers.
        (13 | 21 | 90 | 202, _) => true,
        _ => false,
    }
}

/// Files of `/proc` that are written: sysctls and what else is the whole system's are refused, files of tasks are free
/// within the session.
///
/// # Safety
/// `inode` must be the hook's tracked argument, of a `/proc` file system.
#[inline(always)]
unsafe fn proc_file(mark: &Mark, bounds: &Bounds, inode: *const u8, key: FileKey) -> i32 {
    // SAFETY: by contract.
    let name = unsafe { names::of_inode(inode) };
    let base = (inode as u64).wrapping_sub(global(&OFF_PROC_INODE_VFS) as u64);
    let (pid, sysctl, entry) =
        (word(base, &OFF_PROC_INODE_PID), word(base, &OFF_PROC_INODE_SYSCTL), word(base, &OFF_PROC_INODE_PDE));
    if sysctl != 0 || entry != 0 || pid == 0 {
        return bounds.refuse(mark, &Act { text: Text::name(name), ..Act::on_file(reason::KERNEL_SETTING, key) });
    }
    let other = leader(pid);
    let is_memory = is_mem(name);
    if other == 0 {
        // The task is gone; the file says so itself.
        return 0;
    }
    if !is_own(mark, other) {
        let why = if is_memory { reason::PROC_MEM } else { reason::TASK_SETTING };
        return bounds.refuse(mark, &Act { other, text: Text::name(name), ..Act::on_file(why, key) });
    }
    // Others' memory is the matter of the tracing guard. One's own is executable memory that no file backs.
    if !is_memory || other != tgid() {
        return 0;
    }
    let act = Act { other, text: Text::name(name), ..Act::on_file(reason::PROC_MEM, key) };
    if bounds.has(session_flags::DENY_ANON_EXEC) {
        return bounds.refuse(mark, &act);
    }
    if bounds.has(session_flags::RECORD_ANON_EXEC) {
        observe(mark, &act);
    }
    0
}

/// A word of a kernel object; one that cannot be read is none of those that make an act free.
#[inline(always)]
fn word(base: u64, offset: &u32) -> u64 {
    let place = base.wrapping_add(global(offset) as u64);
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(place as *const u64) }.unwrap_or(0)
}

/// Process of the task that a `/proc/PID` file belongs to; 0 when it is gone.
#[inline(always)]
fn leader(pid: u64) -> u32 {
    let first = word(pid, &OFF_PID_TASKS);
    if first == 0 {
        return 0;
    }
    match word(first.wrapping_sub(global(&OFF_TASK_PID_LINKS) as u64), &OFF_TASK_TGID) as u32 {
        // Not readable: nobody of the session.
        0 => u32::MAX,
        tgid => tgid,
    }
}

/// Names below `/proc/PID` are the kernel's own. One that cannot be read counts as `mem`.
#[inline(always)]
fn is_mem(name: *const u8) -> bool {
    let mut text = [0_u8; 8];
    // SAFETY: the helper checks the address and writes at most the buffer.
    match unsafe { bpf_probe_read_kernel_str_bytes(name, &mut text) } {
        Ok(_) => text[0] == b'm' && text[1] == b'e' && text[2] == b'm' && text[3] == 0,
        Err(_) => true,
    }
}
