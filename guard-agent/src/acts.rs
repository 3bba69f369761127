//! Acts other than execs, as the kernel programs report them, turned into records. Identical ones are folded.
//!
//! It must not decide. Memory is bounded: when too many different acts wait to be folded, the oldest become records at once.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use guard_common::{GuardEvent, guard_outcome, mount_operation, operation, reason, socket_detail};
use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{GuardAct, Identity};

use crate::capabilities;
use crate::outcome::until_nul;

/// Identical acts are folded for at most this long.
const FOLD_NS: u64 = 200_000_000;
/// Different acts that wait at the same time.
const WAITING_MAX: usize = 1024;

/// What makes two acts identical: session, process, reason, outcome, file, number, operation, target.
type Key = (u64, u32, u32, u32, (u64, u64), u64, u32, Vec<u8>);

struct Folded {
    id: SessionId,
    act: GuardAct,
    observed: bool,
    since: u64,
}

/// Acts that wait to be folded.
#[derive(Default)]
pub struct Acts(HashMap<Key, Folded>);

impl Acts {
    /// Takes an event. Gives records that can wait no longer.
    pub fn take(
        &mut self,
        event: &GuardEvent,
        id: SessionId,
        identity: &Identity,
        program: String,
        (rule, place): (String, Option<(String, Vec<u8>)>),
    ) -> Vec<(SessionId, Body)> {
        let target = target(event);
        let file = (event.file.dev, event.file.ino);
        let head = (event.header.session, event.header.tgid, event.reason, event.outcome);
        let key = (head.0, head.1, head.2, head.3, file, event.number, event.detail, target.clone());
        if let Some(known) = self.0.get_mut(&key) {
            known.act.count = known.act.count.saturating_add(1);
            return Vec::new();
        }
        let full = if self.0.len() >= WAITING_MAX { self.due(u64::MAX) } else { Vec::new() };
        let act = GuardAct {
            identity: Some(identity.clone()),
            what: reason_name(event.reason).into(),
            pid: event.header.tgid,
            comm: until_nul(&event.comm),
            other_pid: event.other_tgid,
            dev: event.file.dev,
            ino: event.file.ino,
            count: 1,
            exec_id: event.exec,
            root_exec_id: event.root,
            uid: event.uid,
            target: match &place {
                Some((_, path)) => protected_target(path, target),
                None => target,
            },
            operation: operation_name(event).into(),
            // Of protected paths it is the place's hash.
            number: if place.is_some() { 0 } else { event.number },
            rule: place.map_or(rule, |(rule, _)| rule),
            killed: event.outcome == guard_outcome::KILLED,
            program,
            folded: false,
        };
        let observed = event.outcome == guard_outcome::OBSERVED;
        self.0.insert(key, Folded { id, act, observed, since: event.header.boot_ns });
        full
    }

    /// Records whose time to be folded is over.
    pub fn due(&mut self, now: u64) -> Vec<(SessionId, Body)> {
        self.0
            .extract_if(|_, folded| now.saturating_sub(folded.since) >= FOLD_NS)
            .map(|(_, folded)| match folded.observed {
                true => (folded.id, Body::GuardObservation(folded.act)),
                false => (folded.id, Body::GuardRefusal(folded.act)),
            })
            .collect()
    }
}

/// What the act was on, for people.
fn target(event: &GuardEvent) -> Vec<u8> {
    let used = event.text.get(..event.text_len as usize).unwrap_or(&event.text);
    match event.reason {
        reason::NETWORK => network_target(event, used).into_bytes(),
        reason::CAPABILITY => capabilities::name(event.number).into_bytes(),
        reason::KERNEL_SETTING if event.detail != 0 => format!("lockdown reason {}", event.detail).into_bytes(),
        reason::UNIX_SOCKET if used.first() == Some(&0) => {
            // An abstract name: shown as the field shows it.
            [b"@", used.get(1..).unwrap_or_default()].concat()
        }
        _ => until_nul(used),
    }
}

fn network_target(event: &GuardEvent, address_bytes: &[u8]) -> String {
    let family = socket_detail::family(event.detail);
    match socket_detail::operation(event.detail) {
        socket_detail::CREATE => {
            let (kind, protocol) = (event.number >> 32, event.number & u64::from(u32::MAX));
            format!("address family {family}, type {kind}, protocol {protocol}")
        }
        _ => address(family, address_bytes, event.number),
    }
}

/// The protected path that spoke, and the name below it that was acted on, if that is another.
fn protected_target(path: &[u8], name: Vec<u8>) -> Vec<u8> {
    let last = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    if name.is_empty() || last == name { path.to_vec() } else { [path, b"/\xe2\x80\xa6/", &name].concat() }
}

fn address(family: u32, bytes: &[u8], port: u64) -> String {
    let port = u16::try_from(port).unwrap_or(0);
    let v4 = bytes.first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into());
    let v6 = bytes.first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into());
    match (i32::try_from(family).unwrap_or(0), v4, v6) {
        (libc::AF_INET, Some(ip), _) | (libc::AF_INET6, _, Some(ip)) => SocketAddr::new(ip, port).to_string(),
        (family, ..) => format!("address family {family}"),
    }
}

fn operation_name(event: &GuardEvent) -> &'static str {
    match event.reason {
        reason::PROTECTED_PATH
        | reason::CREDENTIAL_FILE
        | reason::DELETE_BUDGET
        | reason::DELETE_FLOOD
        | reason::SCRIPT_NAME => match event.detail {
            operation::WRITE => "write",
            operation::UNLINK => "unlink",
            operation::RMDIR => "rmdir",
            operation::RENAME => "rename",
            operation::CREATE => "create",
            operation::LINK => "link",
            operation::SETATTR => "setattr",
            operation::XATTR => "xattr",
            operation::READ => "read",
            _ => "",
        },
        reason::MOUNT => match event.detail {
            mount_operation::MOUNT => "mount",
            mount_operation::MOVE => "move",
            mount_operation::UMOUNT => "umount",
            mount_operation::PIVOT => "pivot_root",
            mount_operation::REMOUNT => "remount",
            mount_operation::NEW => "new",
            _ => "",
        },
        reason::NETWORK | reason::UNIX_SOCKET => match socket_detail::operation(event.detail) {
            socket_detail::CONNECT => "connect",
            socket_detail::SEND => "send",
            socket_detail::CREATE => "create",
            _ => "",
        },
        _ => "",
    }
}

/// Names of the kernel programs' reasons, as records carry them.
pub fn reason_name(code: u32) -> &'static str {
    match code {
        reason::NO_GRANT => "no_grant",
        reason::NO_SESSION => "no_session",
        reason::SESSION_EXPIRED => "session_expired",
        reason::GRANT_EXPIRED => "grant_expired",
        reason::WRONG_FILE => "wrong_file",
        reason::FILE_CHANGED => "file_changed",
        reason::FILE_HAS_WRITER => "file_has_writer",
        reason::NO_ENTRY => "no_entry",
        reason::NO_RING => "ring_full",
        reason::MAP_FULL => "map_full",
        reason::ARGS_DIFFER => "args_differ",
        reason::ARGS_UNREADABLE => "args_unreadable",
        reason::COUNT_DIFFERS => "arg_count_differs",
        reason::NOT_CHECKED => "not_checked",
        reason::PTRACE => "ptrace",
        reason::FROZEN_FILE => "frozen_file",
        reason::CGROUP_WRITE => "cgroup_write",
        reason::SIGNAL => "signal",
        reason::BPF => "bpf",
        reason::CAPABILITY => "capability",
        reason::USER_NAMESPACE => "user_namespace",
        reason::MOUNT => "mount",
        reason::UNIX_SOCKET => "unix_socket",
        reason::NETWORK => "network",
        reason::TERMINAL_INPUT => "terminal_input",
        reason::KERNEL_LOAD => "kernel_load",
        reason::USERFAULTFD => "userfaultfd",
        reason::IO_URING => "io_uring",
        reason::KERNEL_SETTING => "kernel_setting",
        reason::RAW_DEVICE => "raw_device",
        reason::PROTECTED_PATH => "protected_path",
        reason::CREDENTIAL_FILE => "credential_file",
        reason::DELETE_BUDGET => "delete_budget",
        reason::DELETE_FLOOD => "delete_flood",
        reason::ANON_EXEC => "memory_exec",
        reason::WRITABLE_EXEC => "writable_exec",
        reason::SCRIPT_NAME => "script_name",
        reason::MOUNT_NAMESPACE => "mount_namespace",
        reason::PROC_MEM => "proc_mem",
        reason::TASK_SETTING => "task_setting",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use guard_common::{EVENT_TEXT, EventHeader, FileKey};

    use super::*;

    fn event(reason: u32, text: &[u8], number: u64, detail: u32) -> GuardEvent {
        let mut bytes = [0; EVENT_TEXT];
        bytes[..text.len()].copy_from_slice(text);
        GuardEvent {
            header: EventHeader { session: 5, tgid: 7, boot_ns: 1, ..EventHeader::default() },
            exec: 1,
            root: 1,
            file: FileKey::default(),
            number,
            reason,
            outcome: guard_outcome::REFUSED,
            other_tgid: 0,
            uid: 1000,
            text_len: u32::try_from(text.len()).unwrap(),
            detail,
            comm: *b"python3\0\0\0\0\0\0\0\0\0",
            text: bytes,
        }
    }

    #[test]
    fn identical_acts_are_one_record_with_a_count() {
        let mut acts = Acts::default();
        let connect = event(reason::NETWORK, &[127, 0, 0, 1], 22, 2);
        for _ in 0..3 {
            assert!(
                acts.take(&connect, SessionId::NONE, &Identity::default(), String::new(), Default::default())
                    .is_empty()
            );
        }
        let due = acts.due(u64::MAX);
        let [(_, Body::GuardRefusal(act))] = due.as_slice() else { panic!("{due:?}") };
        assert_eq!((act.count, act.what.as_str(), act.target.as_slice()), (3, "network", &b"127.0.0.1:22"[..]));
    }

    #[test]
    fn a_flood_of_different_acts_is_not_kept_in_memory() {
        let mut acts = Acts::default();
        let mut records = 0;
        for port in 0..5000 {
            let act = event(reason::NETWORK, &[127, 0, 0, 1], port, 2);
            records += acts.take(&act, SessionId::NONE, &Identity::default(), String::new(), Default::default()).len();
        }
        assert!(acts.0.len() <= WAITING_MAX && records >= 3000);
    }

    #[test]
    fn capabilities_and_mounts_are_named() {
        assert_eq!(target(&event(reason::CAPABILITY, b"", 21, 0)), b"sys_admin");
        let pivot = event(reason::MOUNT, b"newroot\0", 0, mount_operation::PIVOT);
        assert_eq!((operation_name(&pivot), target(&pivot)), ("pivot_root", b"newroot".to_vec()));
    }

    #[test]
    fn abstract_sockets_are_shown_with_an_at_sign() {
        assert_eq!(target(&event(reason::UNIX_SOCKET, b"\0name", 0, 1)), b"@name");
        assert_eq!(target(&event(reason::UNIX_SOCKET, b"/run/x\0", 0, 1)), b"/run/x");
    }
}
