//! A small file system in memory with a few files, read-only once it is filled, mounted nowhere yet.
//!
//! Until somebody moves it into a mount namespace only the holder of the descriptor reaches it. It must not write its contents
//! anywhere else. Fails: with the step that failed; the file system is gone with its descriptor.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

/// Names and contents, of root, readable for one group: a folder of mode 0750, files of mode 0440, no programs, no devices.
pub fn sealed(files: &[(&str, &[u8])], gid: u32, max_bytes: u64) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let inodes = files.len().saturating_add(8).to_string();
    let (size, group) = (max_bytes.to_string(), gid.to_string());
    let options = [("size", size), ("nr_inodes", inodes), ("mode", "0750".into()), ("uid", "0".into()), ("gid", group)];
    for (key, value) in &options {
        fsconfig_set_string(&context, *key, value.as_str())?;
    }
    // Since 6.4: never written to a swap device.
    let _ = fsconfig_set_flag(&context, "noswap");
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let mode = Mode::from_raw_mode(0o440);
    for (name, bytes) in files {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&mount, *name, flags, mode)?;
        fchmod(&file, mode)?;
        File::from(file.try_clone()?).write_all(bytes)?;
        fchown(&file, Some(Uid::ROOT), Some(Gid::from_raw(gid)))?;
    }
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_reconfigure(&context)?;
    Ok(mount)
}
