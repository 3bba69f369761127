//! `guardctl run`: asks the daemon for a governed session, hands it three descriptors, relays between them and the
//! caller's own, and ends as the command ended.
//!
//! It must not start anything itself: the daemon's launcher does. The bytes do not pass through the daemon: when that goes
//! away, the session goes on, and guardctl waits for the next daemon, which tells it the rest. Fails: a refusal becomes the
//! exit code of its kind; no daemon by the end of the session's life ends the command with `unavailable`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use guard_proto::v1::{
    AttachSession, ForwardSignal, SessionMessage, StartChild, StartSession, local_reply, local_request,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::args::{RunArgs, SessionChildArgs};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::local;
use crate::output::{json_line, note};
use crate::text::escape_str;

mod relay;
mod signals;
mod terminal;

use relay::{Relay, RelayEvent};
use signals::{Signals, Work};

/// How often a daemon that went away is looked for.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// How long after the end of the session's life a daemon may still come and say how it ended.
const AFTER_EXPIRY_NS: i64 = 60_000_000_000;

/// Runs the command and returns the code to exit with.
pub async fn run(args: &RunArgs, config: &Config, json: bool) -> Result<u8> {
    let request = |tty| Ok(local_request::Request::StartSession(start_session(args, tty)?));
    converse(config.socket_path(), request, json).await
}

/// Runs the command in a child session of the one that this process is in, and returns the code to exit with.
pub async fn child(args: &SessionChildArgs, socket: PathBuf, json: bool) -> Result<u8> {
    let request = |tty| Ok(local_request::Request::StartChild(start_child(args, tty)?));
    converse(socket, request, json).await
}

/// Asks for a session, which may be told that its descriptors are a terminal, and sees it to its end.
async fn converse(
    path: PathBuf,
    request: impl FnOnce(bool) -> Result<local_request::Request>,
    json: bool,
) -> Result<u8> {
    let socket = local::connect(&path)?;
    // From here on signals belong to the session.
    let mut signals = Signals::new()?;
    let mut relay = Relay::new()?;
    let request = local::frame(request(relay.is_terminal())?)?;
    {
        let fds = relay.take_session_side()?;
        local::send_with_fds(&socket, &request, &[fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()])?;
    }
    socket.set_nonblocking(true).map_err(|e| local::lost(&e))?;
    let socket = UnixStream::from_std(socket).map_err(|e| local::lost(&e))?;
    let conversation =
        Conversation { line: Line { path, socket: Some(socket), buffer: Vec::new() }, json, started: None };
    let outcome = conversation.drive(&mut relay, &mut signals).await;
    relay.finish().await;
    outcome
}

fn current_folder() -> Result<Vec<u8>> {
    let cwd = env::current_dir();
    let cwd = cwd.map_err(|e| CliError::new(Exit::Usage, format_args!("cannot tell the current folder: {e}")))?;
    Ok(cwd.into_os_string().into_vec())
}

fn start_child(args: &SessionChildArgs, tty: bool) -> Result<StartChild> {
    Ok(StartChild {
        categories: args.categories.clone(),
        ttl_seconds: args.ttl.map_or(0, |t| t.as_secs()),
        max_risk: args.max_risk,
        argv: args.command.iter().map(|a| a.as_bytes().to_vec()).collect(),
        env: env::vars_os().map(|(name, value)| env_entry(&name, value)).collect(),
        cwd: current_folder()?,
        purpose: args.purpose.clone(),
        tty,
        umask: signals::current_umask(),
    })
}

fn start_session(args: &RunArgs, tty: bool) -> Result<StartSession> {
    Ok(StartSession {
        agent: args.agent.clone(),
        ttl_seconds: args.ttl.map_or(0, |t| t.as_secs()),
        argv: args.command.iter().map(|a| a.as_bytes().to_vec()).collect(),
        env: env::vars_os().map(|(name, value)| env_entry(&name, value)).collect(),
        cwd: current_folder()?,
        purpose: args.purpose.clone().unwrap_or_default(),
        tty,
        initiator: args.on_behalf_of.clone().unwrap_or_default(),
        umask: signals::current_umask(),
        ticket: args.ticket.clone().unwrap_or_default(),
        job: args.job.clone().unwrap_or_default(),
        credentials: args.credentials.clone(),
    })
}

fn env_entry(name: &OsStr, value: OsString) -> Vec<u8> {
    let mut entry = name.as_bytes().to_vec();
    entry.push(b'=');
    entry.extend_from_slice(value.as_bytes());
    entry
}

/// The session, as far as it is known.
struct Session {
    id: String,
    /// When its life ends at the latest, in wall time.
    expires_unix_ns: i64,
}

/// The connection that owns the session.
struct Conversation {
    line: Line,
    json: bool,
    started: Option<Session>,
}

impl Conversation {
    async fn drive(mut self, relay: &mut Relay, signals: &mut Signals) -> Result<u8> {
        loop {
            tokio::select! {
                reply = self.line.next_reply() => match reply {
                    Ok(reply) => if let Some(code) = self.on_reply(reply, relay)? {
                        return Ok(code);
                    },
                    Err(error) => self.on_lost(error, relay, signals).await?,
                },
                work = signals.next() => self.on_signal(work, relay).await?,
                event = relay.next_event() => match event {
                    RelayEvent::StopKey => self.suspend(relay).await?,
                },
            }
        }
    }

    /// The daemon is gone; what runs goes on, but can start nothing. Waits for the next daemon and asks it for the session.
    async fn on_lost(&mut self, error: CliError, relay: &mut Relay, signals: &mut Signals) -> Result<()> {
        self.line.socket = None;
        let Some(session) = &self.started else { return Err(error) };
        let ask =
            local::frame(local_request::Request::AttachSession(AttachSession { session_id: session.id.clone() }))?;
        let last = session.expires_unix_ns.saturating_add(AFTER_EXPIRY_NS);
        self.say_own("lost", "the daemon is gone; what runs goes on, new programs are denied until it is back");
        loop {
            tokio::select! {
                () = tokio::time::sleep(TRY_AGAIN) => {
                    if self.line.reconnect(&ask).await {
                        return Ok(());
                    }
                    if crate::time::now_ns() > last {
                        return Err(error);
                    }
                }
                work = signals.next() => match work {
                    // Nobody can pass it on: whoever wants guardctl to end gets that. The next daemon ends the session.
                    Work::Forward(_) => return Err(error),
                    work => self.on_signal(work, relay).await?,
                },
                event = relay.next_event() => match event {
                    RelayEvent::StopKey => self.suspend(relay).await?,
                },
            }
        }
    }

    fn say_own(&self, kind: &str, text: &str) {
        self.say(&SessionMessage { kind: kind.into(), text: text.into(), ..SessionMessage::default() });
    }

    fn on_reply(&mut self, reply: local_reply::Reply, relay: &mut Relay) -> Result<Option<u8>> {
        match reply {
            local_reply::Reply::Started(started) => {
                if let Some(session) = &mut self.started {
                    session.expires_unix_ns = started.expires_unix_ns;
                    self.say_own("adopted", "the daemon is back; the session goes on");
                    return Ok(None);
                }
                if self.json {
                    let expires = crate::time::rfc3339(started.expires_unix_ns);
                    self.say_json(&json!({"event": "started", "session": started.session_id,
                        "instance": started.instance, "expires": expires}));
                }
                self.started = Some(Session { id: started.session_id, expires_unix_ns: started.expires_unix_ns });
                relay.start()?;
                Ok(None)
            }
            local_reply::Reply::Message(message) => {
                self.say(&message);
                Ok(None)
            }
            local_reply::Reply::Exited(exited) => {
                let code = exit_code(exited.status, &exited.reason);
                if self.json {
                    self.say_json(&json!({"event": "exited", "session": self.started.as_ref().map(|s| &s.id), "reason": exited.reason,
                        "code": code, "execs": exited.execs, "denied": exited.denied}));
                } else if exited.reason != "exited" && !exited.reason.is_empty() {
                    note(&format!("guard: session ended: {}\r", escape_str(&exited.reason)));
                }
                Ok(Some(code))
            }
            local_reply::Reply::Renewed(renewed) => {
                if let Some(session) = &mut self.started {
                    session.expires_unix_ns = renewed.expires_unix_ns;
                }
                self.say_own("renewed", &renewed.text);
                Ok(None)
            }
            local_reply::Reply::Error(error) => Err(local::refused(error)),
            // Answers to requests that this connection never makes.
            local_reply::Reply::Status(_)
            | local_reply::Reply::Sessions(_)
            | local_reply::Reply::Done(_)
            | local_reply::Reply::OwnStatus(_)
            | local_reply::Reply::Messages(_) => Ok(None),
        }
    }

    /// Shows a message of the daemon. `\r` because the terminal is raw while a session runs.
    fn say(&self, message: &SessionMessage) {
        if self.json {
            return self.say_json(&json!({"event": "message", "kind": message.kind, "text": message.text,
                "request": Some(&message.request_id).filter(|r| !r.is_empty())}));
        }
        let request = match message.request_id.as_str() {
            "" => String::new(),
            id if message.text.contains(id) => String::new(),
            id => format!(" (request {})", escape_str(id)),
        };
        for line in message.text.lines() {
            note(&format!("guard: {}{request}\r", escape_str(line)));
        }
    }

    fn say_json(&self, value: &serde_json::Value) {
        note(&format!("{}\r", json_line(value).unwrap_or_default().trim_end()));
    }

    async fn on_signal(&mut self, work: Work, relay: &mut Relay) -> Result<()> {
        match work {
            Work::Forward(signal) => self.forward(signal).await,
            Work::Resize => {
                relay.resize();
                Ok(())
            }
            Work::Suspend => self.suspend(relay).await,
            Work::Resume => {
                relay.resume();
                self.forward(signals::CONT).await
            }
        }
    }

    /// Stops the session's entry process group and then guardctl itself, with the terminal given back in between.
    async fn suspend(&mut self, relay: &mut Relay) -> Result<()> {
        self.forward(signals::STOP).await?;
        relay.suspend();
        signals::stop_self();
        // Continued: SIGCONT also arrives as `Work::Resume`, which is harmless to handle twice.
        relay.resume();
        self.forward(signals::CONT).await
    }

    /// Without a daemon there is nobody to pass a signal on. A connection that just broke is seen where replies are read.
    async fn forward(&mut self, signal: u32) -> Result<()> {
        let frame = local::frame(local_request::Request::Signal(ForwardSignal { signal }))?;
        if let Some(socket) = &mut self.line.socket {
            let _ = socket.write_all(&frame).await;
        }
        Ok(())
    }
}

/// The connection, which can be lost and made again.
struct Line {
    path: PathBuf,
    socket: Option<UnixStream>,
    buffer: Vec<u8>,
}

impl Line {
    /// Connects and asks. What was half received is not continued by another daemon.
    async fn reconnect(&mut self, ask: &[u8]) -> bool {
        let Ok(mut socket) = UnixStream::connect(&self.path).await else { return false };
        if socket.write_all(ask).await.is_err() {
            return false;
        }
        self.buffer.clear();
        self.socket = Some(socket);
        true
    }

    /// Reads the next reply; safe to drop in between, since everything read so far stays in `buffer`.
    async fn next_reply(&mut self) -> Result<local_reply::Reply> {
        loop {
            if let Some((prefix, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = local::checked_length(*prefix)?;
                if let Some(body) = rest.get(..length) {
                    let reply = local::decode(body);
                    self.buffer.drain(..length + 4);
                    return reply;
                }
            }
            let gone = || local::lost(&io::Error::from(io::ErrorKind::UnexpectedEof));
            let socket = self.socket.as_mut().ok_or_else(gone)?;
            if socket.read_buf(&mut self.buffer).await.map_err(|e| local::lost(&e))? == 0 {
                return Err(gone());
            }
        }
    }
}

/// The code that a shell would show for this wait status.
fn exit_code(status: u32, reason: &str) -> u8 {
    let status = ExitStatus::from_raw(i32::from_ne_bytes(status.to_ne_bytes()));
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(255);
    match u8::try_from(code).unwrap_or(255) {
        // A session that ended before its entry process could is never a success.
        0 if !matches!(reason, "" | "exited") => Exit::No as u8,
        code => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_a_shell() {
        assert_eq!(exit_code(0, "exited"), 0);
        assert_eq!(exit_code(3 << 8, "exited"), 3);
        assert_eq!(exit_code(126 << 8, "exited"), 126);
        assert_eq!(exit_code(9, "expired"), 137);
        assert_eq!(exit_code(0, "expired"), 1);
    }
}
