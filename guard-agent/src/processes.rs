//! Processes of a session that are known already, so that an exec need not read the same lines of `/proc` again.
//!
//! For people and for the record, never the ground of a decision: who the parents are and what they run. It must not keep
//! what could be another process's: an entry counts only while the kernel's mark of that process id is the same. Bounded.
//! Fails: a process that is gone ends the list.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guard_common::{Attempt, Mark};

use crate::kernel::load::Kernel;
use crate::kernel::proc::{self, ANCESTRY_MAX, Process};

/// Entries of each kind; when there are more, all are forgotten.
const KNOWN_MAX: usize = 1024;

/// What is known.
#[derive(Default)]
pub struct Processes {
    /// Path of the image, by exec.
    images: Mutex<HashMap<u64, Vec<u8>>>,
    /// Processes with the mark that they had when they were read.
    parents: Mutex<HashMap<u32, (Mark, Process)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Processes {
    /// The process that makes an attempt, as the kernel described it at the entry.
    pub fn caller(&self, attempt: &Attempt) -> Process {
        Process {
            tgid: attempt.tgid,
            parent: attempt.parent,
            uid: attempt.uid,
            gid: attempt.gid,
            comm: crate::outcome::until_nul(&attempt.comm),
            exe: self.image(attempt.parent_exec, attempt.tid),
        }
    }

    /// A child runs its parent's image until its own exec: one look serves all of them.
    fn image(&self, exec: u64, tid: u32) -> Vec<u8> {
        if let Some(known) = lock(&self.images).get(&exec) {
            return known.clone();
        }
        let path = proc::link(tid, "exe").unwrap_or_default();
        if exec != 0 && !path.is_empty() {
            keep(&self.images, exec, path.clone());
        }
        path
    }

    /// Parents, nearest first, up to and including the entry process, each with its exec.
    pub fn ancestry(&self, kernel: &Kernel, task: &Process, entry: u32) -> Vec<(Process, u64)> {
        let mut found = Vec::new();
        let mut pid = if task.tgid == entry { 0 } else { task.parent };
        while pid > 1 && found.len() < ANCESTRY_MAX {
            let mark = kernel.mark_of(pid);
            let Some(process) = self.parent(pid, mark) else { break };
            let next = process.parent;
            found.push((process, mark.map_or(0, |m| m.exec)));
            if pid == entry {
                break;
            }
            pid = next;
        }
        found
    }

    fn parent(&self, pid: u32, mark: Option<Mark>) -> Option<Process> {
        if let (Some(mark), Some((then, process))) = (mark, lock(&self.parents).get(&pid))
            && mark == *then
        {
            return Some(process.clone());
        }
        let process = proc::process(pid).ok()?;
        if let Some(mark) = mark {
            keep(&self.parents, pid, (mark, process.clone()));
        }
        Some(process)
    }
}

fn keep<K: std::hash::Hash + Eq, V>(known: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut known = lock(known);
    if known.len() >= KNOWN_MAX {
        known.clear();
    }
    known.insert(key, value);
}
