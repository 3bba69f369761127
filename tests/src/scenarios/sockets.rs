//! P2: connections out of a session. The listeners are this process, outside every session.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::guest::{self, ensure};
use crate::session::{self, ALICE, ROOT, Session, Start};
use crate::wait::{output, seconds};
use crate::{attacks, ctl};

/// Services that would run something for whoever may speak to them.
const STREAMS: [&str; 7] = [
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/screen/S-alice/1.pts-0.guest",
    "/home/alice/.gnupg/S.gpg-agent",
    "/tmp/.X11-unix/X0",
];
const ABSTRACT: &str = "@/tmp/.X11-unix/X0";
const DATAGRAM: &str = "/run/systemd/notify";
const NAMED: &str = "/run/named/socket";
const NAMED_ABSTRACT: &str = "@guard-test-named";

fn open_to_all(path: &str) -> Result<()> {
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?)
}

fn place(path: &str) -> Result<()> {
    let dir = Path::new(path).parent().context("no folder")?;
    std::fs::create_dir_all(dir)?;
    let _ = std::fs::remove_file(path);
    Ok(())
}

fn listen(path: &str) -> Result<UnixListener> {
    place(path)?;
    let listener = UnixListener::bind(path)?;
    open_to_all(path)?;
    Ok(listener)
}

fn receive(path: &str) -> Result<UnixDatagram> {
    place(path)?;
    let receiver = UnixDatagram::bind(path)?;
    open_to_all(path)?;
    Ok(receiver)
}

fn listen_abstract(name: &str) -> Result<UnixListener> {
    Ok(UnixListener::bind_addr(&SocketAddr::from_abstract_name(name.trim_start_matches('@'))?)?)
}

/// What the attack says of one attempt.
fn result<'a>(out: &'a str, what: &str) -> Result<&'a str> {
    let found = out.lines().find_map(|l| l.strip_prefix(what)?.strip_prefix(' '));
    found.with_context(|| format!("no result for {what} in {out:?}"))
}

fn refused(out: &str, what: &str) -> Result<()> {
    let said = result(out, what)?;
    ensure(said == "errno 1", format!("{what}: `{said}` instead of EPERM"))
}

fn passed(out: &str, what: &str) -> Result<()> {
    let said = result(out, what)?;
    ensure(said == "ok", format!("{what}: `{said}` instead of ok"))
}

fn attack(start: &Start<'_>, whats: &[String]) -> Result<session::Ended> {
    let path = attacks::path("sockets.py");
    let mut argv = vec!["python3", path.as_str()];
    argv.extend(whats.iter().map(String::as_str));
    session::run(start, &argv)
}

fn acts<'a>(records: &'a [Value], kind: &str, what: &str, target: &str) -> Vec<&'a Value> {
    let all = ctl::of_kind(records, kind);
    all.into_iter().filter(|r| r["body"]["what"] == what && r["body"]["target"] == target).collect()
}

pub fn p2_unix_sockets_outside() -> Result<()> {
    guest::restart_daemon(&format!(
        "{}\n[profile.default]\nunix_sockets = [\"/dev/log\", \"{NAMED}\", \"{NAMED_ABSTRACT}\"]",
        guest::USUAL
    ))?;
    let _streams = STREAMS.iter().map(|path| listen(path)).collect::<Result<Vec<_>>>()?;
    let _abstracts = [listen_abstract(ABSTRACT)?, listen_abstract(NAMED_ABSTRACT)?];
    let _datagram = receive(DATAGRAM)?;
    let (log, _named) = (receive("/dev/log")?, listen(NAMED)?);
    for start in [ALICE, ROOT] {
        outsiders(&start)?;
    }
    log.set_nonblocking(true)?;
    ensure(log.recv(&mut [0; 8]).is_ok(), "the message to /dev/log did not arrive")?;
    moved_onto_a_named_path()?;
    other_session()?;
    tmux()
}

fn outsiders(start: &Start<'_>) -> Result<()> {
    let mut denied: Vec<String> = STREAMS.iter().map(|path| format!("stream:{path}")).collect();
    denied.push(format!("stream:{ABSTRACT}"));
    denied.extend(["send", "sendconnected"].map(|kind| format!("{kind}:{DATAGRAM}")));
    let control = "stream:/run/guard/control.sock".to_owned();
    let allowed =
        ["inside".to_owned(), "send:/dev/log".into(), format!("stream:{NAMED}"), format!("stream:{NAMED_ABSTRACT}")];
    let whats = [denied.as_slice(), &allowed, std::slice::from_ref(&control)].concat();
    // The daemon looks for the named sockets every two seconds.
    let ended = crate::wait::until("the named sockets are known", seconds(20), || {
        let ended = attack(start, &whats)?;
        Ok(passed(&ended.out, &format!("stream:{NAMED}")).is_ok().then_some(ended))
    })?;
    denied.iter().try_for_each(|what| refused(&ended.out, what))?;
    allowed.iter().try_for_each(|what| passed(&ended.out, what))?;
    let said = result(&ended.out, &control)?;
    ensure(said == "errno 1" || said == "errno 13", format!("the control socket: `{said}`"))?;
    let records = ctl::records(&ended.id)?;
    for target in STREAMS.iter().chain([&ABSTRACT, &DATAGRAM]) {
        let found = acts(&records, "guard_refusal", "unix_socket", target);
        let act = found.first().with_context(|| format!("{target}: the attempt is not recorded"))?;
        let body = &act["body"];
        ensure(body["program"].as_str().is_some_and(|p| p.contains("python3")), act)?;
        let stream = *target != DATAGRAM;
        ensure(!stream || body["operation"] == "connect" && body["other_pid"] == std::process::id(), act)?;
    }
    ensure(acts(&records, "guard_refusal", "unix_socket", NAMED).is_empty(), "a named socket was refused")
}

/// Another listener's socket moved to where a named one is expected: its listener has bound another name.
fn moved_onto_a_named_path() -> Result<()> {
    let _other = listen("/run/named/other")?;
    std::fs::rename("/run/named/other", NAMED)?;
    // Until the daemon has looked again the old file is known: both ways it is refused.
    for _ in 0..2 {
        refused(&attack(&ROOT, &[format!("stream:{NAMED}")])?.out, &format!("stream:{NAMED}"))?;
        std::thread::sleep(seconds(2));
    }
    Ok(())
}

fn other_session() -> Result<()> {
    let dir = guest::fresh_dir("theirs")?;
    let name = format!("{dir}/socket");
    let served = Start { stdin: true, ..ALICE };
    let mut theirs = Session::attack(&served, "sockets.py", &[&format!("serve:{name}")])?;
    theirs.line("serving", seconds(20))?;
    let what = format!("stream:{name}");
    refused(&attack(&ALICE, std::slice::from_ref(&what))?.out, &what)?;
    // As long as it listens, a neighbour may.
    ensure(std::os::unix::net::UnixStream::connect(&name).is_ok(), "a neighbour could not connect")?;
    drop(theirs.stdin());
    theirs.wait(seconds(20)).map(|_| ())
}

/// A real server of the same user outside would run anything for the session.
fn tmux() -> Result<()> {
    let dir = guest::fresh_dir("tmux")?;
    let (socket, made) = (format!("{dir}/server"), format!("{dir}/made"));
    let mut server = session::as_user("alice", "/home/alice");
    let started = output(server.args(["tmux", "-S", &socket, "new-session", "-d"]), seconds(20))?;
    ensure(started.status.success(), format!("tmux: {}", String::from_utf8_lossy(&started.stderr)))?;
    let command = ["tmux", "-S", &socket, "new-window", "touch", &made];
    let argv = [&["/usr/bin/tmux"], command.get(1..).unwrap_or_default()].concat();
    let session = Session::attack(&ALICE, "try.py", &argv)?;
    ctl::approve(&ctl::pending(&session.id)?, &[])?;
    let ended = session.wait(seconds(30))?;
    let kill = output(Command::new("tmux").args(["-S", &socket, "kill-server"]), seconds(20))?;
    ensure(kill.status.success(), "the server outside was gone")?;
    ensure(ended.out.trim() == "ran 256", format!("tmux inside: {ended}"))?;
    ensure(!Path::new(&made).exists(), "the server outside ran the session's command")?;
    let records = ctl::records(&ended.id)?;
    ensure(!acts(&records, "guard_refusal", "unix_socket", &socket).is_empty(), "the attempt is not recorded")
}

const NETWORK: &str = r#"
[profile.default.network]
default = "deny"
allow = ["127.0.0.1", "127.0.0.2", "[::1]"]
deny = ["127.0.0.2:1024-65535", "[::1]:4000-4100", "local:22"]
"#;

pub fn p2_network_rules() -> Result<()> {
    guest::restart_daemon(&format!("{}\n{NETWORK}", guest::USUAL))?;
    let listener = std::net::TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    let stolen = guest::fresh_dir("stolen")?;
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        guest::copy_for_alice(&format!("/var/lib/guard/collector/clients/admin/{file}"), &format!("{stolen}/{file}"))?;
    }
    for start in [ALICE, ROOT] {
        addresses(&start, port)?;
        collector(&start, &stolen)?;
    }
    Ok(())
}

fn addresses(start: &Start<'_>, port: u16) -> Result<()> {
    let at = |kinds: &[&str], address: &str| -> Vec<String> {
        kinds.iter().map(|kind| format!("{kind}:{address}:{port}")).collect()
    };
    let allowed = [
        at(&["tcp", "udp", "fastopen", "mapped", "unspec", "bound"], "127.0.0.1"),
        at(&["tcp"], "0.0.0.0"),
        vec!["disconnect".into(), "make:16:3:0".into()],
    ]
    .concat();
    let denied = [
        at(&["tcp", "udp", "fastopen", "mapped", "unspec", "bound"], "127.0.0.2"),
        at(&["tcp", "udp"], "127.0.0.4"),
        ["tcp:127.0.0.1:22", "tcp:0.0.0.0:22", "tcp:[::]:22", "tcp:[::1]:4050", "udp:[::1]:4050"]
            .map(str::to_owned)
            .into(),
        // Packet, raw, vsock, SCTP, and messages between processes over netlink.
        ["make:17:3:0", "make:2:3:1", "make:10:3:58", "make:40:1:0", "make:2:1:132", "make:16:3:2"]
            .map(str::to_owned)
            .into(),
    ]
    .concat();
    let ended = attack(start, &[allowed.as_slice(), &denied].concat())?;
    allowed.iter().try_for_each(|what| passed(&ended.out, what))?;
    denied.iter().try_for_each(|what| refused(&ended.out, what))?;
    let records = ctl::records(&ended.id)?;
    let said = |kind, address: &str, operation: &str, rule: &str| {
        let found = acts(&records, kind, "network", address);
        let known = found.iter().any(|r| r["body"]["operation"] == operation && r["body"]["rule"] == rule);
        ensure(known, format!("no {kind} says {operation} {address} by rule `{rule}`: {found:?}"))
    };
    let rule = |list: &str, text: &str| format!("profile.default.network.{list} {text}");
    said("guard_observation", &format!("127.0.0.1:{port}"), "connect", &rule("allow", "127.0.0.1"))?;
    said("guard_observation", &format!("127.0.0.1:{port}"), "send", &rule("allow", "127.0.0.1"))?;
    said("guard_refusal", &format!("127.0.0.2:{port}"), "connect", &rule("deny", "127.0.0.2:1024-65535"))?;
    said("guard_refusal", &format!("127.0.0.2:{port}"), "send", &rule("deny", "127.0.0.2:1024-65535"))?;
    said("guard_refusal", &format!("127.0.0.4:{port}"), "connect", "")?;
    said("guard_refusal", "[::1]:22", "connect", &rule("deny", "local:22"))?;
    said("guard_refusal", "address family 17, type 3, protocol 0", "create", "")
}

/// With a client certificate that the collector would take.
fn collector(start: &Start<'_>, stolen: &str) -> Result<()> {
    let handshake = format!("tls:127.0.0.1:7443:{stolen}");
    let path = attacks::path("sockets.py");
    let free = output(Command::new("python3").args([path.as_str(), &handshake]), seconds(20))?;
    passed(&String::from_utf8_lossy(&free.stdout), &handshake).context("outside a session")?;
    let plain = [
        "tcp:127.0.0.1:7443",
        "tcp:127.0.0.9:7443",
        "tcp:[::1]:7443",
        "tcp:0.0.0.0:7443",
        "tcp:[::]:7443",
        "udp:127.0.0.1:7443",
    ];
    let whats: Vec<String> = plain.iter().map(|w| (*w).to_owned()).chain([handshake]).collect();
    let ended = attack(start, &whats)?;
    whats.iter().try_for_each(|what| refused(&ended.out, what))?;
    let records = ctl::records(&ended.id)?;
    let found = acts(&records, "guard_refusal", "network", "127.0.0.1:7443");
    ensure(found.iter().any(|r| r["body"]["rule"] == "collector.address"), format!("not recorded: {found:?}"))
}
