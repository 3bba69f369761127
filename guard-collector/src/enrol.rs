//! Where hosts without a certificate enrol and people log in: one connection, one request, one answer, and nothing else.
//!
//! The only thing here that anybody may talk to, so everything is bounded before it is read: connections, those of one address,
//! the time of each, the length of the message. TLS's ALPN says what the message is. It must not do anything for a request but ask
//! [`Issuing`] or [`Logins`], and answers a refusal only after a pause, which bounds tries. Fails: a connection that does not keep
//! to the form is closed without an answer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_proto::v1::enrol_reply::Reply;
use guard_proto::v1::{EnrolReply, EnrolRequest, LoginRequest, login_reply};
use guard_proto::{ENROL_MESSAGE_MAX, LOGIN_ALPN};
use prost::Message;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::issuing::Issuing;
use crate::node::stopped;
use crate::oidc::{self, Logins};

/// Connections at a time; more are closed at once.
pub const CONNECTIONS: u32 = 64;
/// Connections of one address at a time.
pub const PER_ADDRESS: u32 = 4;
/// Longest time until the message is there, and again until its answer is.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// The same for the answer to a login: the issuer is asked meanwhile, up to four times.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// A refusal takes so long.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Open(Mutex<HashMap<IpAddr, u32>>);

/// A connection counts while it lives.
struct Counted {
    open: Arc<Open>,
    address: IpAddr,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(open: &Arc<Open>, address: IpAddr) -> Option<Counted> {
        let mut counts = open.lock();
        let of_address = counts.get(&address).copied().unwrap_or(0);
        if counts.values().sum::<u32>() >= CONNECTIONS || of_address >= PER_ADDRESS {
            return None;
        }
        counts.insert(address, of_address + 1);
        Some(Counted { open: Arc::clone(open), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.open.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What the messages are for.
#[derive(Clone)]
pub struct Desk {
    /// Enrols hosts.
    pub issuing: Arc<Issuing>,
    /// Lets people log in; not there: nobody can.
    pub logins: Option<Arc<Logins>>,
}

/// Serves until the collector stops.
pub async fn run(listener: TcpListener, tls: Arc<ServerConfig>, desk: Desk, stopping: watch::Receiver<bool>) {
    let (open, acceptor) = (Arc::<Open>::default(), TlsAcceptor::from(tls));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(stopping.clone()) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection for enrolment was not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(counted) = Open::enter(&open, peer.ip()) else {
            tracing::info!(%peer, "too many connections for enrolment; this one is closed");
            continue;
        };
        let (acceptor, desk) = (acceptor.clone(), desk.clone());
        tokio::spawn(async move {
            let _counted = counted;
            if let Err(error) = one(stream, acceptor, desk).await {
                tracing::info!(%peer, error, "an enrolment's connection is closed");
            }
        });
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(format!("it took longer than {} s", limit.as_secs())),
    }
}

async fn one(stream: TcpStream, acceptor: TlsAcceptor, desk: Desk) -> Result<(), String> {
    let (mut stream, message) = in_time(TIMEOUT, receive(stream, acceptor)).await?;
    let login = stream.get_ref().1.alpn_protocol() == Some(LOGIN_ALPN);
    let reply = match login {
        true => in_time(LOGIN_TIMEOUT, log_in(&message, desk.logins)).await?,
        false => in_time(TIMEOUT, enrol(&message, desk.issuing)).await?,
    };
    in_time(TIMEOUT, send(&mut stream, &reply)).await
}

async fn receive(stream: TcpStream, acceptor: TlsAcceptor) -> Result<(TlsStream<TcpStream>, Vec<u8>), String> {
    let said = |e: std::io::Error| e.to_string();
    let mut stream = acceptor.accept(stream).await.map_err(said)?;
    let length = stream.read_u32().await.map_err(said)? as usize;
    if length > ENROL_MESSAGE_MAX {
        return Err(format!("a message of {length} bytes; at most {ENROL_MESSAGE_MAX} are accepted"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await.map_err(said)?;
    Ok((stream, message))
}

async fn send(stream: &mut TlsStream<TcpStream>, reply: &[u8]) -> Result<(), String> {
    let said = |e: std::io::Error| e.to_string();
    let length = u32::try_from(reply.len()).map_err(|e| e.to_string())?;
    stream.write_u32(length).await.map_err(said)?;
    stream.write_all(reply).await.map_err(said)?;
    stream.shutdown().await.map_err(said)
}

async fn enrol(message: &[u8], issuing: Arc<Issuing>) -> Result<Vec<u8>, String> {
    let request = EnrolRequest::decode(message).map_err(|e| e.to_string())?;
    let answer = tokio::task::spawn_blocking(move || issuing.enrol(&request)).await.map_err(|e| e.to_string())?;
    let reply = match answer {
        Ok(enrolled) => Reply::Enrolled(enrolled),
        Err(refused) => {
            tracing::warn!(code = refused.code, "an enrolment is refused: {}", refused.message);
            tokio::time::sleep(PAUSE).await;
            Reply::Refused(refused)
        }
    };
    Ok(EnrolReply { reply: Some(reply) }.encode_to_vec())
}

async fn log_in(message: &[u8], logins: Option<Arc<Logins>>) -> Result<Vec<u8>, String> {
    let request = LoginRequest::decode(message).map_err(|e| e.to_string())?;
    let reply = match logins {
        Some(logins) => logins.answer(request).await,
        None => oidc::reply(Err(oidc::off())),
    };
    if matches!(reply.reply, Some(login_reply::Reply::Refused(_))) {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(reply.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_all_room() {
        let open = Arc::<Open>::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut held: Vec<_> = (0..PER_ADDRESS).map(|_| Open::enter(&open, one).expect("room")).collect();
        assert!(Open::enter(&open, one).is_none());
        assert!(Open::enter(&open, other).is_some());
        held.pop();
        assert!(Open::enter(&open, one).is_some());
        drop(held);
        assert!(open.lock().is_empty());
    }
}
