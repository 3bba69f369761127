//! `guard-agent emergency-stop`: through the daemon where there is one, else by hand: journal, then pins.
//!
//! Fails: says what is left to do by hand.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use guard_log::journal::{Journal, JournalOptions};
use guard_log::record::SessionId;
use guard_proto::LOCAL_MESSAGE_MAX;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{EmergencyStop, EmergencyStopRequest, LocalReply, LocalRequest, local_reply, local_request};
use prost::Message;

use crate::config::Config;
use crate::exit::{Code, Failure, failed};
use crate::kernel::{load, proc};
use crate::{frame, record};

/// Lifts enforcement and says how.
pub fn stop(path: &Path, reason: &str) -> Result<String, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure { code: Code::Denied, text: "emergency-stop needs root".into() });
    }
    let config = Config::read(path).map_err(failed(Code::Config))?;
    match ask_daemon(&config, reason) {
        Ok(said) => said,
        Err(error) => by_hand(&config, reason, &error.to_string()),
    }
}

fn ask_daemon(config: &Config, reason: &str) -> std::io::Result<Result<String, Failure>> {
    let stream = UnixStream::connect(&config.control.socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let request = local_request::Request::EmergencyStop(EmergencyStopRequest { reason: reason.into() });
    frame::send(&stream, &LocalRequest { request: Some(request) }.encode_to_vec(), &[])?;
    let gone = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let (bytes, _) = frame::receive(&stream, LOCAL_MESSAGE_MAX)?.ok_or_else(gone)?;
    match LocalReply::decode(bytes.as_slice()).map_err(std::io::Error::other)?.reply {
        Some(local_reply::Reply::Done(done)) => Ok(Ok(done.text)),
        Some(local_reply::Reply::Error(error)) => {
            Ok(Err(Failure { code: Code::Denied, text: format!("{} {}", error.message, error.hint) }))
        }
        _ => Err(std::io::Error::other("an unknown answer")),
    }
}

/// No daemon answers: the record is written by this process if the journal is free, and the pins are removed.
fn by_hand(config: &Config, reason: &str, why: &str) -> Result<String, Failure> {
    let recorded = journal_it(config, reason);
    load::unpin_all(&config.kernel.pin_dir).map_err(failed(Code::Unavailable))?;
    let recorded = match recorded {
        Ok(()) => "recorded in the journal".to_owned(),
        Err(error) => format!("NOT recorded: {error}"),
    };
    Ok(format!(
        "no daemon answers ({why}); the pins below {} are removed, enforcement ends with the last process that holds the \
         programs (kill guard-agent if it hangs); {recorded}",
        config.kernel.pin_dir.display()
    ))
}

fn journal_it(config: &Config, reason: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(config.node.state_dir.join("host-id")).map_err(|e| e.to_string())?;
    let host = text.trim().parse().map_err(|_| "no host id".to_owned())?;
    let options = JournalOptions {
        dir: config.journal.dir.clone(),
        segment_bytes: record::segment_bytes(config),
        max_bytes: config.journal.max_mib << 20,
        reserve_bytes: 0,
        session_percent: 100,
        keep: std::time::Duration::from_secs(3600 * config.journal.keep_hours),
        require_real_disk: false,
    };
    let (journal, _) = Journal::open(options, host).map_err(|e| e.to_string())?;
    let body = EmergencyStop {
        uid: 0,
        user: proc::user_by_id(0).map(|u| u.name).unwrap_or_default(),
        reason: reason.chars().take(1000).collect(),
        sessions: 0,
        pid: std::process::id(),
    };
    let entry = record::entry(SessionId::NONE, Body::EmergencyStop(body));
    let ticket = journal.append_reserved(entry).map_err(|e| e.to_string())?;
    ticket.wait().map(|_| ()).map_err(|e| e.to_string())
}
