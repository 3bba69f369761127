//! Where hosts without a certificate enrol: one connection, one request, one answer, and nothing else.
//!
//! The only thing here that anybody may talk to, so everything is bounded before it is read: connections, those of one address,
//! the time of each, the length of the message. It must not do anything for a request but ask [`Issuing`], and answers a refusal
//! only after a pause, which bounds tries. Fails: a connection that does not keep to the form is closed without an answer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_proto::ENROL_MESSAGE_MAX;
use guard_proto::v1::enrol_reply::Reply;
use guard_proto::v1::{EnrolReply, EnrolRequest};
use prost::Message;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::issuing::Issuing;
use crate::node::stopped;

/// Connections at a time; more are closed at once.
pub const CONNECTIONS: u32 = 64;
/// Connections of one address at a time.
pub const PER_ADDRESS: u32 = 4;
/// Longest connection, from the first byte to the last.
pub const TIMEOUT: Duration = Duration::from_secs(10);
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

/// Serves until the collector stops.
pub async fn run(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    issuing: Arc<Issuing>,
    stopping: watch::Receiver<bool>,
) {
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
        let (acceptor, issuing) = (acceptor.clone(), issuing.clone());
        tokio::spawn(async move {
            let _counted = counted;
            match tokio::time::timeout(TIMEOUT, one(stream, acceptor, issuing)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(%peer, error, "an enrolment's connection is closed"),
                Err(_) => tracing::info!(%peer, "an enrolment took too long"),
            }
        });
    }
}

async fn one(stream: TcpStream, acceptor: TlsAcceptor, issuing: Arc<Issuing>) -> Result<(), String> {
    let said = |e: std::io::Error| e.to_string();
    let mut stream = acceptor.accept(stream).await.map_err(said)?;
    let length = stream.read_u32().await.map_err(said)? as usize;
    if length > ENROL_MESSAGE_MAX {
        return Err(format!("a message of {length} bytes; at most {ENROL_MESSAGE_MAX} are accepted"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await.map_err(said)?;
    let request = EnrolRequest::decode(message.as_slice()).map_err(|e| e.to_string())?;
    let answer = tokio::task::spawn_blocking(move || issuing.enrol(&request)).await.map_err(|e| e.to_string())?;
    let reply = match answer {
        Ok(enrolled) => Reply::Enrolled(enrolled),
        Err(refused) => {
            tracing::warn!(code = refused.code, "an enrolment is refused: {}", refused.message);
            tokio::time::sleep(PAUSE).await;
            Reply::Refused(refused)
        }
    };
    let reply = EnrolReply { reply: Some(reply) }.encode_to_vec();
    let length = u32::try_from(reply.len()).map_err(|e| e.to_string())?;
    stream.write_u32(length).await.map_err(said)?;
    stream.write_all(&reply).await.map_err(said)?;
    stream.shutdown().await.map_err(said)
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
