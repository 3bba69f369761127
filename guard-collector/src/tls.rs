//! TLS at both listeners: the server's certificate, which is renewed while it serves, and the handshakes.
//!
//! TLS 1.3 alone. The chain that is shown ends with the CA's certificate, so that a host that knows only its digest can tell. It
//! must not let a handshake take longer than ten seconds, nor more of them at a time than there is room for. Fails: a handshake
//! that fails ends its connection and is said in the log with the peer's address and why; a server certificate that cannot be
//! renewed stays in use until its end, and the log says so every time.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use guard_log::frame;
use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use rcgen::KeyPair;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Config;
use crate::exit::{CollectorError, Exit, Result};
use crate::issuing::Issuing;
use crate::ledger::Ledger;
use crate::node::stopped;
use crate::pki::{self, SERVER_TTL};
use crate::ticks::Ticks;

/// Longest handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for a peer to read why it was refused.
const PARTING: Duration = Duration::from_secs(1);
/// Handshakes at a time; more wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// Connections that have shaken hands and are not yet taken.
const QUEUE: usize = 64;
/// After the kernel has refused a connection, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the server's certificate is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// It is renewed when less than this part of its lifetime is left.
const RENEW_PART: i64 = 3;

fn odd(key: &str, error: impl std::fmt::Display) -> CollectorError {
    CollectorError::new(Exit::Config, format_args!("{key}: {error}"))
}

fn read(key: &str, path: &std::path::Path) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|e| CollectorError::io(Exit::Config, format_args!("{key}: cannot read {}", path.display()), &e))
}

fn certificates(key: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(odd(key, "there is no certificate in it")),
        Err(error) => Err(odd(key, error)),
    }
}

/// The server's certificate, as it is now.
#[derive(Debug)]
pub struct ServerCertificate {
    cert: PathBuf,
    key_pem: Vec<u8>,
    ca: Vec<CertificateDer<'static>>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl ServerCertificate {
    /// Reads the files.
    pub fn read(config: &Config) -> Result<Arc<Self>> {
        let (cert_pem, key_pem) = (read("tls.cert", &config.cert)?, read("tls.key", &config.key)?);
        let ca = certificates("tls.ca", &read("tls.ca", &config.ca)?)?;
        let current = RwLock::new(Arc::new(certified(&cert_pem, &key_pem, &ca)?));
        Ok(Arc::new(Self { cert: config.cert.clone(), key_pem, ca, current }))
    }

    /// Renews it when a third of its lifetime is left: for the same key and the same names, so that one file changes and not two.
    fn renew(&self, issuing: &Issuing, ledger: &Ledger) -> Result<()> {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let Some(der) = current.cert.first() else { return Ok(()) };
        let (_, parsed) = X509Certificate::from_der(der).map_err(|e| odd("tls.cert", e))?;
        let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        if to.saturating_sub(pki::now()) > to.saturating_sub(from) / RENEW_PART {
            return Ok(());
        }
        let names = parsed.subject_alternative_name().ok().flatten().map(|e| e.value.general_names.clone());
        let hosts: Vec<String> = names.unwrap_or_default().iter().filter_map(host).collect();
        let key = KeyPair::from_pem(&String::from_utf8_lossy(&self.key_pem)).map_err(|e| odd("tls.key", e))?;
        let (cert, about) = issuing.authority().server_again(&hosts, SERVER_TTL, &key)?;
        let fresh = certified(cert.as_bytes(), &self.key_pem, &self.ca)?;
        let internal = |e: String| CollectorError::new(Exit::Unavailable, e);
        let about = pki::About { how: "renewed".into(), by: "guard-collector".into(), ..about };
        let (serial, not_after) = (about.serial.clone(), about.not_after_unix);
        let said = ledger.say(SessionId::NONE, Body::CertificateIssued(about));
        said.map_err(|e| internal(e.to_string()))?.1.block().map_err(|e| internal(e.to_string()))?;
        frame::replace(&self.cert, cert.as_bytes()).map_err(|e| {
            CollectorError::io(Exit::Unavailable, format_args!("tls.cert: {}", self.cert.display()), &e)
        })?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        tracing::info!(serial, not_after, "the server's certificate is renewed");
        Ok(())
    }
}

/// A name or address of a certificate, as `pki` takes it.
fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
        },
        _ => None,
    }
}

fn certified(cert: &[u8], key: &[u8], ca: &[CertificateDer<'static>]) -> Result<CertifiedKey> {
    let mut chain = certificates("tls.cert", cert)?;
    chain.truncate(1);
    chain.extend(ca.iter().cloned());
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| odd("tls.key", e))?;
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).map_err(|e| odd("tls.key", e))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|e| odd("tls.key", format_args!("it is not the key of tls.cert: {e}")))?;
    Ok(certified)
}

/// For nodes and people: nobody without a certificate of the CA gets past the handshake.
pub fn mutual(certificate: &Arc<ServerCertificate>) -> Result<Arc<ServerConfig>> {
    let mut roots = RootCertStore::empty();
    for ca in &certificate.ca {
        roots.add(ca.clone()).map_err(|e| odd("tls.ca", e))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|e| odd("tls.ca", e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| odd("tls", e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(certificate) as _);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// For hosts that have no certificate yet, and people who log in.
pub fn open(certificate: &Arc<ServerCertificate>) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| odd("tls", e))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(certificate) as _);
    config.alpn_protocols = vec![guard_proto::ENROL_ALPN.to_vec(), guard_proto::LOGIN_ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Connections that have shaken hands, until the collector stops.
pub fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    stopping: watch::Receiver<bool>,
) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (out, connections) = mpsc::channel(QUEUE);
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    let acceptor = TlsAcceptor::from(config);
    tokio::spawn(async move {
        let accepting = async {
            // It is never closed.
            while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
                let (stream, peer) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                };
                let (acceptor, out) = (acceptor.clone(), out.clone());
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream).into_fallible()).await {
                        Ok(Ok(stream)) => {
                            let _ = out.send(Ok(stream)).await;
                        }
                        Ok(Err((error, stream))) => {
                            tracing::info!(%peer, %error, "a TLS handshake failed");
                            part(stream).await;
                        }
                        Err(_) => tracing::info!(%peer, "a TLS handshake took too long"),
                    }
                    drop(permit);
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = stopped(stopping) => {}
        }
    });
    ReceiverStream::new(connections)
}

/// Ends a connection so that the peer reads why. In TLS 1.3 a client has sent its first request when its certificate is
/// refused: closed with that unread, the connection would be reset, and the alert lost on the way.
async fn part(mut stream: TcpStream) {
    let mut unread = [0_u8; 4096];
    let end = async {
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    // A peer that does not end it, or sends on and on, is not waited for.
    let _ = tokio::time::timeout(PARTING, end).await;
}

/// Renews the server's certificate when it is time, until the collector stops.
pub async fn keep(
    certificate: Arc<ServerCertificate>,
    issuing: Arc<Issuing>,
    ledger: Arc<Ledger>,
    stopping: watch::Receiver<bool>,
) {
    let mut ticks = Ticks::new(LOOK, stopping);
    while ticks.next().await {
        let (certificate, issuing, ledger) = (certificate.clone(), issuing.clone(), ledger.clone());
        let renewed = tokio::task::spawn_blocking(move || {
            issuing.tokens().sweep(pki::now());
            certificate.renew(&issuing, &ledger)
        });
        if let Ok(Err(error)) = renewed.await {
            tracing::error!(%error, "the server's certificate was not renewed; it is tried again");
        }
    }
}
