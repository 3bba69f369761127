//! One message to the collector's place for logins, and its answer.
//!
//! The collector is known by the CA of the configuration; nothing is sent before the server has shown a certificate of it. Fails: a
//! [`CliError`] with what the collector said, or why it could not be asked.

use std::sync::Arc;
use std::time::Duration;

use guard_proto::v1::login_reply::Reply;
use guard_proto::v1::login_request::Request;
use guard_proto::v1::{EnrolRefused, LoginReply, LoginRequest};
use guard_proto::{ENROL_MESSAGE_MAX, LOGIN_ALPN};
use prost::Message;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::client;
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};

/// Longest time for all of it: the collector asks the issuer meanwhile.
const TIMEOUT: Duration = Duration::from_secs(45);
/// Where logins are taken when the configuration does not say.
const PORT: u16 = 7444;

/// Where to ask.
pub fn address(config: &Config) -> Result<String> {
    if let Some(address) = &config.login {
        return Ok(address.clone());
    }
    let collector = config.collector.as_deref().unwrap_or("https://localhost:7443");
    let place = collector.trim_start_matches("https://").split('/').next().unwrap_or_default();
    let host = match place.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => place,
    };
    if host.is_empty() {
        return Err(CliError::new(Exit::Config, format_args!("collector = {collector:?}: it names no host")));
    }
    Ok(format!("{host}:{PORT}"))
}

fn tls(config: &Config) -> Result<ClientConfig> {
    let wrong = |e: &dyn std::fmt::Display| CliError::new(Exit::Config, format_args!("`ca`: {e}"));
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(&client::pem(&config.ca, "ca")?) {
        roots.add(ca.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
    }
    let mut tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| wrong(&e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![LOGIN_ALPN.to_vec()];
    Ok(tls)
}

/// Asks.
pub async fn ask(config: &Config, request: Request) -> Result<Reply> {
    let (address, tls) = (address(config)?, tls(config)?);
    let away = |why: String| {
        CliError::new(Exit::Unavailable, format_args!("cannot log in at {address}: {why}"))
            .hint("that address is certificates.enrol_listen of the collector; `login` in the configuration names it")
    };
    let request = LoginRequest { request: Some(request) }.encode_to_vec();
    let talked = tokio::time::timeout(TIMEOUT, talk(&address, tls, &request)).await;
    let reply = talked.map_err(|_| away(format!("no answer in {} s", TIMEOUT.as_secs())))?.map_err(away)?;
    let reply = LoginReply::decode(reply.as_slice()).map_err(|e| away(e.to_string()))?;
    match reply.reply {
        Some(Reply::Refused(refused)) => Err(no(refused)),
        Some(reply) => Ok(reply),
        None => Err(away("it answered something else".to_owned())),
    }
}

fn no(refused: EnrolRefused) -> CliError {
    let kind = match refused.code.as_str() {
        "unavailable" => Exit::Unavailable,
        "malformed" => Exit::Internal,
        "off" => Exit::No,
        _ => Exit::Denied,
    };
    CliError::new(kind, refused.message)
}

async fn talk(address: &str, tls: ClientConfig, message: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let said = |e: std::io::Error| e.to_string();
    let (host, _) = address.rsplit_once(':').ok_or("it is not HOST:PORT")?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| e.to_string())?;
    let stream = TcpStream::connect(address).await.map_err(said)?;
    let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.map_err(said)?;
    stream.write_u32(u32::try_from(message.len()).unwrap_or(u32::MAX)).await.map_err(said)?;
    stream.write_all(message).await.map_err(said)?;
    stream.flush().await.map_err(said)?;
    let length = stream.read_u32().await.map_err(said)? as usize;
    if length > ENROL_MESSAGE_MAX {
        return Err("its answer is too long".to_owned());
    }
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply).await.map_err(said)?;
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_for_logins_is_beside_the_collector_unless_it_is_named() {
        let at = |collector: Option<&str>, login: Option<&str>| {
            let config = Config {
                collector: collector.map(str::to_owned),
                login: login.map(str::to_owned),
                ..Config::default()
            };
            address(&config).expect("an address")
        };
        assert_eq!(at(None, None), "localhost:7444");
        assert_eq!(at(Some("https://guard.example:443/"), None), "guard.example:7444");
        assert_eq!(at(Some("https://[::1]:7443"), None), "[::1]:7444");
        assert_eq!(at(Some("https://guard.example"), None), "guard.example:7444");
        assert_eq!(at(Some("https://guard.example:443"), Some("other:1")), "other:1");
    }
}
