//! Processes of a session that are known already, so that an exec need not read the same lines of `/proc` again.
//!
//! For people and for the record, never the ground of a decision: who the parents are and what they run. The user and group
//! that policy looks at are the caller's, from the kernel, and never kept. It must not keep
//! what could be another process's: an entry counts only while the kernel's marks of that process id and of its parent's
//! are the same, which tells apart execs, forks and who was left by a parent. What a process changes without either, its
//! name or user, is shown as it was first seen. Bounded. Fails: a process that is gone ends the list.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guard_common::{Attempt, Mark};

use crate::kernel::proc::{self, ANCESTRY_MAX, Process};
use crate::outcome;

/// Entries of each kind; when there are more, all are forgotten.
const KNOWN_MAX: usize = 1024;

/// What is known.
#[derive(Default)]
pub struct Processes {
    /// Path of the image, by exec.
    images: Mutex<HashMap<u64, Vec<u8>>>,
    /// Processes, by id.
    parents: Mutex<HashMap<u32, Known>>,
}

/// A process with its own mark and its parent's when it was read.
#[derive(Clone)]
struct Known {
    mark: Mark,
    above: Option<Mark>,
    process: Process,
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
            comm: outcome::until_nul(&attempt.comm),
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
    pub fn ancestry(&self, mark_of: impl Fn(u32) -> Option<Mark>, task: &Process, entry: u32) -> Vec<(Process, u64)> {
        let mut found = Vec::new();
        let mut pid = if task.tgid == entry { 0 } else { task.parent };
        let mut mark = mark_of(pid);
        while pid > 1 && found.len() < ANCESTRY_MAX {
            let Some((process, above)) = self.parent(&mark_of, pid, mark) else { break };
            let next = process.parent;
            found.push((process, mark.map_or(0, |m| m.exec)));
            if pid == entry {
                break;
            }
            (pid, mark) = (next, above);
        }
        found
    }

    /// A process, and the mark of its parent.
    fn parent(
        &self,
        mark_of: impl Fn(u32) -> Option<Mark>,
        pid: u32,
        mark: Option<Mark>,
    ) -> Option<(Process, Option<Mark>)> {
        let known = lock(&self.parents).get(&pid).cloned();
        if let Some(known) = known.filter(|known| Some(known.mark) == mark)
            && mark_of(known.process.parent) == known.above
        {
            return Some((known.process, known.above));
        }
        let process = proc::process(pid).ok()?;
        let above = mark_of(process.parent);
        if let Some(mark) = mark {
            keep(&self.parents, pid, Known { mark, above, process: process.clone() });
        }
        Some((process, above))
    }
}

fn keep<K: std::hash::Hash + Eq, V>(known: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut known = lock(known);
    if known.len() >= KNOWN_MAX {
        known.clear();
    }
    known.insert(key, value);
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn mark(exec: u64) -> Mark {
        Mark { session: 1, exec, ..Mark::default() }
    }

    #[test]
    fn a_parent_is_read_again_when_its_mark_or_its_parents_has_changed() {
        let (me, above) =
            (std::process::id(), rustix::process::getppid().unwrap().as_raw_nonzero().get().cast_unsigned());
        let task = Process { tgid: 0, parent: me, ..Process::default() };
        let processes = Processes::default();
        let marks = RefCell::new(HashMap::from([(me, mark(7))]));
        let ask = || processes.ancestry(|pid| marks.borrow().get(&pid).copied(), &task, me).remove(0);
        assert_eq!((ask().0.parent, ask().1), (above, 7));
        // What is kept is told from what is read by a name that no process has.
        let spoil = || lock(&processes.parents).get_mut(&me).unwrap().process.comm = b"kept".to_vec();
        spoil();
        assert_eq!(ask().0.comm, b"kept");
        marks.borrow_mut().insert(me, mark(8));
        assert_ne!(ask().0.comm, b"kept");
        spoil();
        marks.borrow_mut().insert(above, mark(9));
        assert_ne!(ask().0.comm, b"kept");
    }
}
