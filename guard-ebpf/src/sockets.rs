//! Connections out of a session: Unix sockets whose listener is outside, internet addresses, and sockets of families that
//! reach neither.
//!
//! Who made the other socket is told by the cgroup that the kernel keeps in it. What a profile names is compared by the
//! socket's file and by the name that its listener has bound: neither alone can be moved by a session. The daemon's socket
//! for a session is known by its file, which stands in that session's own entry, and by its listener, the living daemon. Addresses are
//! looked up by longest prefix; what cannot be read or is not spoken about is refused. The same hooks see `io_uring`.

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_buf};
use aya_ebpf::macros::lsm;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::LsmContext;
use guard_common::{
    ADDRESS_KEY, ADDRESS_PROFILE_BITS, Counter, EVERY_SESSION, FileKey, Mark, PORT_RANGES, SOCKET_NAME, Session,
    SocketFile, SocketName, Talk, reason, session_flags, socket_detail, verdict,
};

use crate::check::EPERM;
use crate::maps::{ADDRESSES, SESSIONS, TALKS, UNIX_FILES, UNIX_NAMES, count, now, runtime};
use crate::membership::{governed, tgid};
use crate::offsets::*;
use crate::report::{Act, Text, observe, refuse};

const AF_UNSPEC: u16 = 0;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_NETLINK: u16 = 16;
const AF_ALG: u16 = 38;
const SOCK_STREAM: i32 = 1;
const SOCK_DGRAM: i32 = 2;
const NETLINK_USERSOCK: i32 = 2;
/// Default, TCP, multipath TCP.
const STREAM_PROTOCOLS: [i32; 3] = [0, 6, 262];
/// Default, UDP, ICMP echo, UDP-Lite.
const DATAGRAM_PROTOCOLS: [i32; 5] = [0, 17, 1, 58, 136];
/// Messages of one image to one place are reported this often: those let through, those refused.
const OBSERVED_EVERY_NS: u64 = 10_000_000_000;
const REFUSED_EVERY_NS: u64 = 1_000_000_000;

#[lsm(hook = "unix_stream_connect")]
pub fn guard_unix_connect(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    judge_unix(&mark, ctx.arg(1), socket_detail::CONNECT)
}

/// Connections of datagram sockets and each of their messages. Not messages of streams and of `SOCK_SEQPACKET`.
#[lsm(hook = "unix_may_send")]
pub fn guard_unix_send(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    let peer = peek(ctx.arg(1), &OFF_SOCKET_SK).unwrap_or(core::ptr::null());
    judge_unix(&mark, peer, socket_detail::SEND)
}

#[lsm(hook = "socket_create")]
pub fn guard_socket_create(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(4);
    let (family, kind, protocol): (i32, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let by_kernel: i32 = ctx.arg(3);
    if earlier != 0 || by_kernel != 0 || ordinary(family as u16, kind, protocol) {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    let number = (kind as u64) << 32 | protocol as u32 as u64;
    let detail = socket_detail::CREATE | (family as u32 & 0xff);
    other_family(&mark, &Act { number, detail, ..Act::new(reason::NETWORK) })
}

#[lsm(hook = "socket_connect")]
pub fn guard_connect(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    let length: i32 = ctx.arg(2);
    judge_name(&mark, ctx.arg(0), ctx.arg(1), length, socket_detail::CONNECT)
}

/// Only messages that name an address: unconnected datagrams, TCP fast open.
#[lsm(hook = "socket_sendmsg")]
pub fn guard_sendmsg(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    let message: *const u8 = ctx.arg(1);
    // SAFETY: `message` is the hook's tracked argument.
    let name: *const u8 = unsafe { field(message, &OFF_MSG_NAME) };
    if earlier != 0 || name.is_null() {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    // SAFETY: as above.
    let length: i32 = unsafe { field(message, &OFF_MSG_NAMELEN) };
    judge_name(&mark, ctx.arg(0), name, length, socket_detail::SEND)
}

/// Nothing for a session that is unknown: no cgroup is its own, no profile speaks for it, nothing is observed only.
#[inline(always)]
fn session_of(mark: &Mark) -> Session {
    // SAFETY: sessions are replaced whole.
    unsafe { SESSIONS.get(mark.session) }.copied().unwrap_or_default()
}

/// Reports the act, unless the same was reported lately. Gives what the hook returns.
#[inline(always)]
fn settle(mark: &Mark, session: &Session, allowed: bool, talk: Option<Talk>, act: &Act) -> i32 {
    let pass = allowed || session.flags & session_flags::OBSERVE != 0;
    if let Some(talk) = talk
        && said_lately(&talk, if pass { OBSERVED_EVERY_NS } else { REFUSED_EVERY_NS })
    {
        if pass {
            return 0;
        }
        count(Counter::GuardRefused);
        return EPERM;
    }
    if pass {
        observe(mark, act);
        return 0;
    }
    refuse(mark, act)
}

#[inline(always)]
fn said_lately(talk: &Talk, within: u64) -> bool {
    let now = now();
    // SAFETY: a u64 value, replaced whole.
    if let Some(last) = unsafe { TALKS.get(talk) }
        && now.wrapping_sub(*last) < within
    {
        return true;
    }
    // Where there is no room it is reported again.
    let _ = TALKS.insert(talk, &now, 0);
    false
}

// === Unix sockets ===

#[inline(always)]
fn judge_unix(mark: &Mark, peer: *const u8, operation: u32) -> i32 {
    let session = session_of(mark);
    if runtime().lifted == 1 || made_inside(peer, session.cgroup) {
        return 0;
    }
    let file = file_of(peer);
    if operation == socket_detail::CONNECT && own_socket(&session, peer, file) {
        return 0;
    }
    let mut name = SocketName { profile: session.profile, length: 0, name: [0; SOCKET_NAME] };
    let place = read_name(peer, &mut name);
    if named(&name, file) {
        return 0;
    }
    let act = Act {
        other: listener(peer),
        file,
        detail: operation | AF_UNIX as u32,
        text: match place {
            Some(start) => Text::bytes(start, name.length),
            None => Text::NONE,
        },
        ..Act::new(reason::UNIX_SOCKET)
    };
    let talk =
        Talk { exec: mark.exec, tgid: tgid(), detail: act.detail, place: [file.dev, file.ino], port: peer as u64 };
    let talk = if operation == socket_detail::SEND { Some(talk) } else { None };
    settle(mark, &session, session.flags & session_flags::ALLOW_UNIX != 0, talk, &act)
}

/// Whether a task of the session made this socket: the session's cgroup is the one that the kernel keeps with it, or lies
/// above that.
#[inline(always)]
fn made_inside(peer: *const u8, cgroup: u64) -> bool {
    let level = global(&GUARD_CGROUP_LEVEL) + 1;
    let Some(own) = peek::<*const u8>(peer, &OFF_SOCK_CGROUP) else { return false };
    let Some(depth) = peek::<i32>(own, &OFF_CGROUP_LEVEL) else { return false };
    if depth < level as i32 {
        return false;
    }
    let place = own.wrapping_add(level as usize * size_of::<u64>());
    let Some(ancestor) = peek::<*const u8>(place, &OFF_CGROUP_ANCESTORS) else { return false };
    let Some(node) = peek::<*const u8>(ancestor, &OFF_CGROUP_KN) else { return false };
    cgroup != 0 && peek::<u64>(node, &OFF_KN_ID) == Some(cgroup)
}

/// Whether this is the daemon's socket for the session: the file that it bound, with the daemon listening. A file whose number
/// was given to another socket after the daemon's death has another listener.
#[inline(always)]
fn own_socket(session: &Session, peer: *const u8, file: FileKey) -> bool {
    let daemon = runtime().daemon_tgid;
    session.socket.ino != 0 && file == session.socket && daemon != 0 && listener(peer) == daemon
}

/// The socket's file; zero for one that has none.
#[inline(always)]
fn file_of(peer: *const u8) -> FileKey {
    read_file(peer).unwrap_or(FileKey { dev: 0, ino: 0 })
}

#[inline(always)]
fn read_file(peer: *const u8) -> Option<FileKey> {
    let dentry: *const u8 = peek(peer, &OFF_UNIX_DENTRY)?;
    let inode: *const u8 = peek(dentry, &OFF_DENTRY_INODE)?;
    let super_block: *const u8 = peek(inode, &OFF_INODE_SB)?;
    let dev: u32 = peek(super_block, &OFF_SB_DEV)?;
    Some(FileKey { dev: dev as u64, ino: peek(inode, &OFF_INODE_INO)? })
}

/// Copies the name under which the socket was bound. Gives its place in kernel memory; nothing for a socket without.
#[inline(always)]
fn read_name(peer: *const u8, into: &mut SocketName) -> Option<*const u8> {
    const FAMILY: u32 = 2;
    let address: *const u8 = peek(peer, &OFF_UNIX_ADDR)?;
    let length: u32 = peek(address, &OFF_UNIX_ADDR_LEN)?;
    let start = address.wrapping_add(global(&OFF_UNIX_ADDR_NAME) as usize + FAMILY as usize);
    let used = length.checked_sub(FAMILY)?;
    if used == 0 || used > SOCKET_NAME as u32 {
        return None;
    }
    let part = into.name.get_mut(..short(used))?;
    // SAFETY: the helper checks the address and writes at most the slice.
    unsafe { bpf_probe_read_kernel_buf(start, part) }.ok()?;
    into.length = used;
    Some(start)
}

#[inline(always)]
fn named(name: &SocketName, file: FileKey) -> bool {
    // SAFETY: values are not read.
    if name.length == 0 || unsafe { UNIX_NAMES.get(name) }.is_none() {
        return false;
    }
    let file = SocketFile { profile: name.profile, reserved: 0, dev: file.dev, ino: file.ino };
    // SAFETY: as above.
    name.name[0] == 0 || unsafe { UNIX_FILES.get(file) }.is_some()
}

/// Process that listens, as the kernel noted it; 0 if it did not.
#[inline(always)]
fn listener(peer: *const u8) -> u32 {
    let pid: *const u8 = peek(peer, &OFF_SOCK_PEER_PID).unwrap_or(core::ptr::null());
    peek(pid, &OFF_PID_NUMBERS).unwrap_or(0)
}

// === addresses ===

/// Whether a socket reaches only what other hooks judge, or only this kernel.
#[inline(always)]
fn ordinary(family: u16, kind: i32, protocol: i32) -> bool {
    match family {
        AF_UNIX | AF_ALG => true,
        AF_INET | AF_INET6 if kind == SOCK_STREAM => STREAM_PROTOCOLS.contains(&protocol),
        AF_INET | AF_INET6 if kind == SOCK_DGRAM => DATAGRAM_PROTOCOLS.contains(&protocol),
        AF_NETLINK => protocol != NETLINK_USERSOCK,
        _ => false,
    }
}

#[inline(always)]
fn other_family(mark: &Mark, act: &Act) -> i32 {
    if runtime().lifted == 1 {
        return 0;
    }
    let session = session_of(mark);
    settle(mark, &session, session.flags & session_flags::ALLOW_OTHER_FAMILIES != 0, None, act)
}

#[inline(always)]
fn judge_name(mark: &Mark, socket: *const u8, name: *const u8, length: i32, operation: u32) -> i32 {
    let sk: *const u8 = peek(socket, &OFF_SOCKET_SK).unwrap_or(core::ptr::null());
    let family: u16 = peek(sk, &OFF_SOCK_FAMILY).unwrap_or(AF_UNSPEC);
    if family == AF_UNIX || family == AF_ALG {
        return 0;
    }
    // The kernel keeps every name in a buffer of 128 bytes.
    // SAFETY: the helper checks the address.
    let bytes: [u8; 28] = unsafe { bpf_probe_read_kernel(name.cast()) }.unwrap_or([0; 28]);
    let named = u16::from_ne_bytes([bytes[0], bytes[1]]);
    if family == AF_INET || family == AF_INET6 {
        if named == AF_UNSPEC && operation == socket_detail::CONNECT {
            // Ends an association.
            return 0;
        }
        // Some protocols send to an address without a family as to one of the socket's own.
        let named = if named == AF_UNSPEC { family } else { named };
        return judge_internet(mark, sk, named, &bytes, length, operation);
    }
    let port = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    if family == AF_NETLINK && port == 0 {
        // To the kernel itself.
        return 0;
    }
    let detail = operation | (family as u32 & 0xff);
    other_family(mark, &Act { number: port as u64, detail, ..Act::new(reason::NETWORK) })
}

#[inline(always)]
fn judge_internet(mark: &Mark, sk: *const u8, family: u16, bytes: &[u8; 28], length: i32, operation: u32) -> i32 {
    if runtime().lifted == 1 {
        return 0;
    }
    let session = session_of(mark);
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let found = match address(sk, family, bytes, length) {
        Some(address) => match look_up(EVERY_SESSION, &address, port) {
            (verdict::DENY, rule) => (address, (verdict::DENY, rule)),
            _ => (address, look_up(session.profile, &address, port)),
        },
        None => ([0; 16], (verdict::DENY, 0)),
    };
    let (address, (what, rule)) = found;
    if what == verdict::ALLOW {
        return 0;
    }
    let mapped = is_mapped(&address);
    let family = if mapped { AF_INET } else { AF_INET6 };
    let start = if mapped { 12 } else { 0 };
    let act = Act {
        number: port as u64,
        detail: operation | family as u32 | (rule as u32) << 16,
        text: Text::bytes(address.as_ptr().wrapping_add(start), 16 - start as u32),
        ..Act::new(reason::NETWORK)
    };
    let talk = Talk { exec: mark.exec, tgid: tgid(), detail: act.detail, place: halves(&address), port: port as u64 };
    let talk = if operation == socket_detail::SEND { Some(talk) } else { None };
    settle(mark, &session, what == verdict::RECORD, talk, &act)
}

#[inline(always)]
fn is_mapped(address: &[u8; 16]) -> bool {
    let mut zeros = 0;
    for byte in &address[..10] {
        zeros |= *byte;
    }
    zeros == 0 && address[10] == 0xff && address[11] == 0xff
}

#[inline(always)]
fn mapped(four: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, four[0], four[1], four[2], four[3]]
}

/// The address in the form of the rules; nothing if the name is none. "Any" stands for where the kernel would go.
#[inline(always)]
fn address(sk: *const u8, family: u16, bytes: &[u8; 28], length: i32) -> Option<[u8; 16]> {
    const LENGTH4: i32 = 16;
    const LENGTH6: i32 = 24;
    if family == AF_INET && length >= LENGTH4 {
        return Some(instead_of_any4(sk, [bytes[4], bytes[5], bytes[6], bytes[7]]));
    }
    if family != AF_INET6 || length < LENGTH6 {
        return None;
    }
    let mut six = [0; 16];
    let mut any = 0;
    for (index, byte) in six.iter_mut().enumerate() {
        *byte = bytes[8 + index];
        any |= *byte;
    }
    if any == 0 {
        let bound: [u8; 16] = peek(sk, &OFF_SOCK_BOUND6)?;
        let loopback = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        return Some(if is_mapped(&bound) { mapped([127, 0, 0, 1]) } else { loopback });
    }
    if is_mapped(&six) {
        return Some(instead_of_any4(sk, [six[12], six[13], six[14], six[15]]));
    }
    Some(six)
}

/// `0.0.0.0` goes to the address that the socket is bound to, else to the loopback (`ip_route_output_key_hash_rcu`).
#[inline(always)]
fn instead_of_any4(sk: *const u8, four: [u8; 4]) -> [u8; 16] {
    if four != [0; 4] {
        return mapped(four);
    }
    match peek::<[u8; 4]>(sk, &OFF_SOCK_BOUND4) {
        Some(bound) if bound != [0; 4] => mapped(bound),
        _ => mapped([127, 0, 0, 1]),
    }
}

/// Verdict and rule; 0 where no rule speaks.
#[inline(always)]
fn look_up(profile: u32, address: &[u8; 16], port: u16) -> (u16, u16) {
    let [first, last] = halves(address);
    let found = guard_ports(profile as u64, first, last, port as u64);
    (found as u16, (found >> 16) as u16)
}

/// Both halves of an address, as numbers.
#[inline(always)]
fn halves(a: &[u8; 16]) -> [u64; 2] {
    [
        u64::from_be_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]),
        u64::from_be_bytes([a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]]),
    ]
}

/// Verdict, and above its 16 bits the rule; 0 where no rule speaks. A function that the verifier looks at by itself, once
/// for each program: inlined, its branches multiply with the callers'.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_ports(profile: u64, first: u64, last: u64, port: u64) -> u64 {
    let mut data = [0; ADDRESS_KEY];
    data[..4].copy_from_slice(&(profile as u32).to_be_bytes());
    data[4..12].copy_from_slice(&first.to_be_bytes());
    data[12..].copy_from_slice(&last.to_be_bytes());
    let port = port as u16;
    let Some(rules) = ADDRESSES.get(Key::new(ADDRESS_PROFILE_BITS + 128, data)) else { return 0 };
    for index in 0..PORT_RANGES {
        let range = rules.ranges[index];
        if (index as u32) < rules.count && range.low <= port && port <= range.high {
            return range.verdict as u64 | (range.rule as u64) << 16;
        }
    }
    0
}
