//! Everything of the daemon that talks to the kernel: programs and maps, permission events, memory of held tasks,
//! `/proc`, cgroups, mounts. The only place of this crate with `unsafe`.
//!
//! It must not decide anything. Fails: each call returns an error that names what was being done.

pub mod addresses;
pub mod bind;
pub mod btf;
pub mod budget;
pub mod canary;
pub mod cgroup;
pub mod events;
pub mod fanotify;
pub mod hash;
pub mod heap;
pub mod load;
pub mod memory;
pub mod mounts;
pub mod object;
pub mod offsets;
pub mod paths;
pub mod peer;
pub mod proc;
pub mod programs;
pub mod shares;
pub mod spawn;
pub mod time;
pub mod tmpfs;
