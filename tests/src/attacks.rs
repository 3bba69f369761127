//! The attack programs: small Python files that a governed session runs. Written out once per guest, owned by root, so
//! that the session cannot change them.

use std::path::Path;

use anyhow::Result;

/// Where they lie in the guest.
pub const DIR: &str = "/usr/local/share/guard-attacks";

const FILES: &[(&str, &str)] = &[
    ("common.py", include_str!("../attacks/common.py")),
    ("worker.py", include_str!("../attacks/worker.py")),
    ("inside.py", include_str!("../attacks/inside.py")),
    ("live.py", include_str!("../attacks/live.py")),
    ("argv_swap.py", include_str!("../attacks/argv_swap.py")),
    ("unmarked.py", include_str!("../attacks/unmarked.py")),
    ("mount_inside.py", include_str!("../attacks/mount_inside.py")),
    ("held_swap.py", include_str!("../attacks/held_swap.py")),
    ("outward.py", include_str!("../attacks/outward.py")),
    ("namespaces.py", include_str!("../attacks/namespaces.py")),
    ("ptrace.py", include_str!("../attacks/ptrace.py")),
    ("try.py", include_str!("../attacks/try.py")),
    ("try_listed.py", include_str!("../attacks/try_listed.py")),
    ("probes.py", include_str!("../attacks/probes.py")),
    ("long_argv.py", include_str!("../attacks/long_argv.py")),
    ("heartbeat.py", include_str!("../attacks/heartbeat.py")),
    ("heartbeat.js", include_str!("../attacks/heartbeat.js")),
    ("flood.py", include_str!("../attacks/flood.py")),
    ("mappings.py", include_str!("../attacks/mappings.py")),
    ("sockets.py", include_str!("../attacks/sockets.py")),
    ("script_turn.py", include_str!("../attacks/script_turn.py")),
    ("script_name_kept.py", include_str!("../attacks/script_name_kept.py")),
    ("escape.py", include_str!("../attacks/escape.py")),
    ("paths.py", include_str!("../attacks/paths.py")),
    ("credentials.py", include_str!("../attacks/credentials.py")),
    ("deletes.py", include_str!("../attacks/deletes.py")),
    ("uring_deletes.py", include_str!("../attacks/uring_deletes.py")),
    ("layers.py", include_str!("../attacks/layers.py")),
];

/// Writes them.
pub fn install() -> Result<()> {
    std::fs::create_dir_all(DIR)?;
    for (name, text) in FILES {
        std::fs::write(Path::new(DIR).join(name), text)?;
    }
    Ok(())
}

/// The path of one.
pub fn path(name: &str) -> String {
    format!("{DIR}/{name}")
}
