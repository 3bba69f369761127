//! The collector's control service over TLS with a client certificate.
//!
//! It must make no call without both. Fails: a [`CliError`] whose kind follows the gRPC status.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_proto::GRPC_MESSAGE_MAX;
use guard_proto::v1::control_service_client::ControlServiceClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::{login, time};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that went away without a word is noticed by the next unanswered ping.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A connected client.
pub type Client = ControlServiceClient<Channel>;

/// Connects with the certificate that the configuration names.
pub async fn connect(config: &Config) -> Result<Client> {
    let address = config.collector.as_deref().unwrap_or("https://localhost:7443").to_owned();
    let ca = Certificate::from_pem(pem(&config.ca, "ca")?);
    let identity = match (&config.cert, &config.key) {
        (None, None) => {
            let pair = login::pair(config)?;
            Identity::from_pem(pair.as_slice(), pair.as_slice())
        }
        (cert, key) => {
            let certificate = pem(cert, "cert")?;
            check_end(&certificate, cert.as_deref())?;
            Identity::from_pem(certificate, pem(key, "key")?)
        }
    };
    let tls = ClientTlsConfig::new().ca_certificate(ca).identity(identity);
    let bad = |e: tonic::transport::Error| CliError::new(Exit::Config, format_args!("{address}: {}", chain(&e)));
    let endpoint = Endpoint::from_shared(address.clone())
        .and_then(|e| e.tls_config(tls))
        .map_err(bad)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let channel = endpoint.connect().await.map_err(|e| {
        CliError::new(Exit::Unavailable, format_args!("cannot reach the collector at {address}: {}", chain(&e)))
            .hint("is guard-collector running, and does `ca` in the configuration belong to it?")
    })?;
    Ok(ControlServiceClient::new(channel)
        .max_decoding_message_size(GRPC_MESSAGE_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_MAX))
}

/// A certificate that has ended is said to have, here: of a connection that the collector ends for it, a call may learn no more than
/// that it was closed.
fn check_end(certificate: &[u8], path: Option<&Path>) -> Result<()> {
    let Some(end) = login::end(certificate).filter(|end| *end <= time::now_ns() / 1_000_000_000) else { return Ok(()) };
    let (path, end) = (path.unwrap_or(Path::new("")).display(), time::date_time(end.saturating_mul(1_000_000_000)));
    Err(CliError::new(Exit::Denied, format_args!("the certificate `cert` = {path} ended at {end} UTC"))
        .hint("`guardctl login` brings one; else an admin makes one with `guard-collector client`"))
}

/// A file of the configuration.
pub fn pem(path: &Option<PathBuf>, key: &str) -> Result<Vec<u8>> {
    let path = path.as_ref().ok_or_else(|| {
        CliError::new(Exit::Config, format_args!("no `{key}` is configured"))
            .hint("name ca, cert and key in the configuration; `guard-collector client` makes them for a person")
    })?;
    fs::read(path)
        .map_err(|e| CliError::new(Exit::Config, format_args!("cannot read `{key}` = {}: {e}", path.display())))
}

/// What a refused or failed call means to the person.
pub fn refused(status: Status) -> CliError {
    let kind = match status.code() {
        Code::NotFound | Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted | Code::OutOfRange => Exit::No,
        Code::InvalidArgument => Exit::Usage,
        Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Cancelled => Exit::Unavailable,
        Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => Exit::Internal,
    };
    let message = match status.message() {
        "" => format!("the collector answered {:?}", status.code()),
        text => text.to_owned(),
    };
    let error = CliError::new(kind, message);
    match kind {
        Exit::Denied => error.hint("`guardctl whoami` shows the caller's name and roles"),
        Exit::Unavailable => error.hint("try again; `guardctl status` shows whether the collector answers"),
        _ => error,
    }
}

/// An error and its sources on one line; the outermost ones say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut parts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        if !parts.contains(&text) {
            parts.push(text);
        }
        next = source.source();
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_has_ended_is_named_before_any_call() {
        let made = |year| {
            let mut params = rcgen::CertificateParams::new(vec!["bob".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
        };
        let error = check_end(made(2020).as_bytes(), Some(Path::new("/c/bob.pem"))).unwrap_err();
        assert_eq!(error.kind, Exit::Denied);
        assert!(error.message.contains("/c/bob.pem") && error.message.contains("2020-01-01"), "{}", error.message);
        assert!(check_end(made(2100).as_bytes(), None).is_ok() && check_end(b"no certificate", None).is_ok());
    }

    #[test]
    fn grpc_codes_become_exit_codes() {
        let kind = |code: Code| refused(Status::new(code, "x")).kind;
        assert_eq!(kind(Code::NotFound), Exit::No);
        assert_eq!(kind(Code::PermissionDenied), Exit::Denied);
        assert_eq!(kind(Code::Unavailable), Exit::Unavailable);
        assert_eq!(kind(Code::InvalidArgument), Exit::Usage);
        assert_eq!(kind(Code::Unknown), Exit::Internal);
    }

    #[tokio::test]
    async fn a_missing_certificate_is_a_configuration_error() {
        let error = connect(&Config::default()).await.expect_err("no ca");
        assert_eq!(error.kind, Exit::Config);
        assert!(error.message.contains("`ca`"));
    }
}
