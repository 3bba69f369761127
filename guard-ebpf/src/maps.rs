//! The maps, and the small operations on them that every hook shares. Pinned: they outlive the daemon.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use guard_common::path::{Created, DeleteBudget, Deleted, Deleter, PathKey, PathRule, Reader};
use guard_common::{
    ADDRESS_KEY, Attempt, COUNTERS as COUNTER_COUNT, Counter, FROZEN_MAX, FileKey, FileStamp, GRANTS_MAX, GrantSet,
    MARKS_MAX, Mark, Pending, PortRules, Runtime, Session, Share, SocketFile, SocketName, Talk,
};

/// `BPF_F_NO_PREALLOC`: memory for what is there, not for what could be.
const NO_PREALLOC: u32 = 1;

#[map]
pub static SESSIONS: HashMap<u64, Session> = HashMap::pinned(1024, 0);
#[map]
pub static CGROUPS: HashMap<u64, u64> = HashMap::pinned(1024, 0);
#[map]
pub static MARKS: HashMap<u32, Mark> = HashMap::pinned(MARKS_MAX, 0);
#[map]
pub static ATTEMPTS: HashMap<u32, Attempt> = HashMap::pinned(MARKS_MAX, 0);
#[map]
pub static GRANTS: HashMap<u32, GrantSet> = HashMap::pinned(GRANTS_MAX, 0);
#[map]
pub static PENDING: HashMap<u64, Pending> = HashMap::pinned(GRANTS_MAX, 0);
#[map]
pub static FROZEN: HashMap<FileKey, u64> = HashMap::pinned(FROZEN_MAX, 0);
#[map]
pub static PROBES: HashMap<u32, FileStamp> = HashMap::pinned(256, 0);
#[map]
pub static PATHS: HashMap<PathKey, PathRule> = HashMap::pinned(131_072, NO_PREALLOC);
#[map]
pub static INODES: HashMap<FileKey, PathRule> = HashMap::pinned(16_384, NO_PREALLOC);
#[map]
pub static READERS: HashMap<Reader, u32> = HashMap::pinned(16_384, NO_PREALLOC);
#[map]
pub static BUDGETS: HashMap<u64, DeleteBudget> = HashMap::pinned(1024, 0);
#[map]
pub static DELETES: LruHashMap<Deleter, Deleted> = LruHashMap::pinned(16_384, 0);
#[map]
pub static CREATED: LruHashMap<Created, u64> = LruHashMap::pinned(32_768, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTER_COUNT, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(4 << 20, 0);
#[map]
pub static UNIX_FILES: HashMap<SocketFile, u32> = HashMap::pinned(4096, 0);
#[map]
pub static UNIX_NAMES: HashMap<SocketName, u32> = HashMap::pinned(16_384, 0);
#[map]
pub static ADDRESSES: LpmTrie<[u8; ADDRESS_KEY], PortRules> = LpmTrie::pinned(1 << 17, 0);
#[map]
pub static TALKS: LruHashMap<Talk, u64> = LruHashMap::pinned(8192, 0);
#[map]
pub static RUNTIME: Array<Runtime> = Array::pinned(1, 0);
#[map]
pub static SHARES: HashMap<u64, Share> = HashMap::pinned(2048, 0);
#[map]
pub static TAKEN: HashMap<u64, u64> = HashMap::pinned(2048, 0);

/// Adds one. Per CPU, so no atomic is needed; a program is not preempted between load and store by another on its CPU
/// except in sleepable ones, where a lost count is accepted.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer comes from the map look-up just above and stays valid for this program run.
        unsafe { *slot += 1 };
    }
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no arguments and always succeeds.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// What the daemon has set; zero if the map cannot be read (the array always has its entry).
#[inline(always)]
pub fn runtime() -> Runtime {
    RUNTIME.get(0).copied().unwrap_or_default()
}
