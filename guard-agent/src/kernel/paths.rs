//! The kernel's maps of protected paths, and of what commands delete.
//!
//! What is new goes in before what is old goes out: at no moment is less protected than before or after.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use guard_common::FileKey;
use guard_common::maps;
use guard_common::path::{ANY, DeleteBudget, Deleted, Deleter, PathKey, PathRule, Reader, bits};

use super::load::{Kernel, KernelError, Plain, Shared, Table, get, insert, remove};
use super::time;

impl Shared for PathKey {}
impl Shared for PathRule {}
impl Shared for Reader {}
impl Shared for DeleteBudget {}
impl Shared for Deleter {}
impl Shared for Deleted {}

/// The maps.
pub struct PathTables {
    pub(super) paths: Table<Plain<PathKey>, Plain<PathRule>>,
    pub(super) inodes: Table<Plain<FileKey>, Plain<PathRule>>,
    pub(super) readers: Table<Plain<Reader>, u32>,
    pub(super) budgets: Table<u64, Plain<DeleteBudget>>,
    pub(super) deletes: Table<Plain<Deleter>, Plain<Deleted>>,
    /// Held while a place is read and written again: what lasts and what passes share an entry.
    pub(super) turn: Mutex<()>,
}

impl Kernel {
    /// Makes these, and no others, the protected places, files and readers.
    pub fn protect(
        &self,
        paths: &HashMap<PathKey, PathRule>,
        inodes: &HashMap<FileKey, PathRule>,
        readers: &HashSet<Reader>,
    ) -> Result<(), KernelError> {
        let tables = &self.path_tables;
        let readers: HashMap<Reader, u32> = readers.iter().map(|r| (*r, 1)).collect();
        let old_readers = keys(&tables.readers);
        for reader in readers.keys().filter(|r| !old_readers.contains(r)) {
            insert(&tables.readers, maps::READERS, Plain(*reader), 1)?;
        }
        let _turn = tables.turn.lock();
        let old_paths = keys(&tables.paths);
        put(&tables.paths, maps::PATHS, paths)?;
        let old_inodes = keys(&tables.inodes);
        put(&tables.inodes, maps::INODES, inodes)?;
        for key in old_paths.iter().filter(|k| !paths.contains_key(k)) {
            self.leave(key)?;
        }
        for key in old_inodes.iter().filter(|k| !inodes.contains_key(k)) {
            remove(&tables.inodes, maps::INODES, &Plain(*key))?;
        }
        for key in old_readers.iter().filter(|k| !readers.contains_key(k)) {
            remove(&tables.readers, maps::READERS, &Plain(*key))?;
        }
        Ok(())
    }

    /// A place that no rule names any more. What passes by itself stays until it has.
    fn leave(&self, key: &PathKey) -> Result<(), KernelError> {
        let table = &self.path_tables.paths;
        match get(table, &Plain(*key)) {
            Some(Plain(rule)) if rule.passing != 0 && rule.until_boot_ns > time::boot_ns() => {
                let rest = PathRule { bits: 0, exact_rule: 0, tree_rule: 0, ..rule };
                insert(table, maps::PATHS, Plain(*key), Plain(rest))
            }
            _ => remove(table, maps::PATHS, &Plain(*key)),
        }
    }

    /// Keeps governed tasks from turning a name to something else until then.
    pub fn keep_name(&self, key: PathKey, until_boot_ns: u64) -> Result<(), KernelError> {
        let table = &self.path_tables.paths;
        let _turn = self.path_tables.turn.lock();
        // The programs look only at file systems of which something is said.
        for key in [PathKey { hash: ANY, ..key }, key] {
            let known = get(table, &Plain(key)).map(|r| r.0).unwrap_or_default();
            let until_boot_ns = until_boot_ns.max(known.until_boot_ns);
            let rule = PathRule { passing: known.passing | bits::SCRIPT_NAME, until_boot_ns, ..known };
            insert(table, maps::PATHS, Plain(key), Plain(rule))?;
        }
        Ok(())
    }

    /// Names that are kept at the moment.
    pub fn kept_names(&self) -> Vec<PathKey> {
        let passing = |key: &PathKey| get(&self.path_tables.paths, &Plain(*key)).is_some_and(|r| r.0.passing != 0);
        keys(&self.path_tables.paths).into_iter().filter(|key| key.hash != ANY && passing(key)).collect()
    }

    /// Ends that.
    pub fn free_name(&self, key: PathKey) {
        let table = &self.path_tables.paths;
        let _turn = self.path_tables.turn.lock();
        let Some(Plain(rule)) = get(table, &Plain(key)) else { return };
        let _ = match rule.bits {
            0 => remove(table, maps::PATHS, &Plain(key)),
            _ => insert(table, maps::PATHS, Plain(key), Plain(PathRule { passing: 0, until_boot_ns: 0, ..rule })),
        };
    }

    /// How much the commands of a session may delete.
    pub fn set_delete_budget(&self, session: u64, budget: &DeleteBudget) -> Result<(), KernelError> {
        insert(&self.path_tables.budgets, maps::BUDGETS, session, Plain(*budget))
    }

    /// Forgets a session's budget.
    pub fn clear_delete_budget(&self, session: u64) {
        let _ = remove(&self.path_tables.budgets, maps::BUDGETS, &session);
    }

    /// Lets a command delete so many files more.
    pub fn raise_deletes(&self, session: u64, root: u64, files: u32) -> Result<(), KernelError> {
        let key = Plain(Deleter { session, root });
        let known = get(&self.path_tables.deletes, &key).map(|d| d.0);
        let mut deleted = known.unwrap_or(Deleted { since_boot_ns: time::boot_ns(), ..Deleted::default() });
        deleted.raised = deleted.raised.saturating_add(files);
        insert(&self.path_tables.deletes, maps::DELETES, key, Plain(deleted))
    }
}

fn keys<K: Shared + Eq + std::hash::Hash, V: aya::Pod>(table: &Table<Plain<K>, V>) -> HashSet<K> {
    table.lock().map(|t| t.keys().filter_map(Result::ok).map(|k| k.0).collect()).unwrap_or_default()
}

/// Writes what differs.
fn put<K: Shared + Eq + std::hash::Hash>(
    table: &Table<Plain<K>, Plain<PathRule>>,
    map: &'static str,
    wanted: &HashMap<K, PathRule>,
) -> Result<(), KernelError> {
    for (key, rule) in wanted {
        let known = get(table, &Plain(*key)).map(|r| r.0);
        let passing = known.unwrap_or_default();
        let rule = PathRule { passing: passing.passing, until_boot_ns: passing.until_boot_ns, ..*rule };
        if known != Some(rule) {
            insert(table, map, Plain(*key), Plain(rule))?;
        }
    }
    Ok(())
}
