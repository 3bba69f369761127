//! Enrolling: a join token and a signing request go to the collector, a certificate comes back.
//!
//! The collector is known by the digest of its CA, which the token names, before anything is sent: the CA must be in the chain
//! that the server shows, and the server's certificate must be good under that CA alone and for the name that was dialled. It
//! must not send a token to anybody else, nor a private key to anybody. Fails: a text that says what to do.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use guard_proto::v1::enrol_reply::Reply;
use guard_proto::v1::{EnrolReply, EnrolRequest, Enrolled};
use guard_proto::{ENROL_ALPN, ENROL_MESSAGE_MAX, JOIN_TOKEN};
use prost::Message;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest time for all of it.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest token.
const TOKEN_MAX: usize = 1024;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The node that it is for.
    pub name: String,
    id: Vec<u8>,
    secret: Vec<u8>,
    ca: [u8; 32],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a join token for {}", self.name)
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "this is no whole join token: it is one line, {JOIN_TOKEN}NAME:ID:SECRET:CA; copy what `guard-collector node \
                 token NAME` printed, all of it"
            )
        };
        let text = text.trim();
        let rest = text.strip_prefix(JOIN_TOKEN).filter(|_| text.len() <= TOKEN_MAX).ok_or_else(wrong)?;
        let parts: Vec<&str> = rest.split(':').collect();
        let [name, id, secret, ca] = parts.as_slice() else { return Err(wrong()) };
        let bytes = |text: &str| hex::decode(text).map_err(|_| wrong());
        let (id, secret, ca) = (bytes(id)?, bytes(secret)?, bytes(ca)?);
        let ca = <[u8; 32]>::try_from(ca).map_err(|_| wrong())?;
        if name.is_empty() || id.len() != 8 || secret.len() != 24 {
            return Err(wrong());
        }
        Ok(Self { name: (*name).to_owned(), id, secret, ca })
    }
}

/// Believes a server whose chain holds the CA of the token.
#[derive(Debug)]
struct Pinned {
    ca: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_it = |der: &&CertificateDer<'_>| Sha256::digest(der).as_slice() == self.ca;
        let strange = || rustls::Error::General(STRANGE.to_owned());
        let ca = intermediates.iter().find(is_it).ok_or_else(strange)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

const STRANGE: &str = "it does not show the CA that the token names";

fn tls(ca: [u8; 32]) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { ca, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ENROL_ALPN.to_vec()];
    Ok(config)
}

/// Asks the collector at `address` (`HOST:PORT`).
pub async fn enrol(address: &str, token: &Token, csr: Vec<u8>) -> Result<Enrolled, String> {
    match tokio::time::timeout(TIMEOUT, exchange(address, token, csr)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("{address} did not answer in {} s", TIMEOUT.as_secs())),
    }
}

async fn exchange(address: &str, token: &Token, csr: Vec<u8>) -> Result<Enrolled, String> {
    let (host, _) = address
        .rsplit_once(':')
        .ok_or_else(|| format!("`{address}` is not HOST:PORT; the port is that of certificates.enrol_listen"))?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| format!("`{host}`: {e}"))?;
    let stream = TcpStream::connect(address).await.map_err(|e| format!("{address}: {e}"))?;
    let connector = TlsConnector::from(Arc::new(tls(token.ca)?));
    let mut stream = connector.connect(name, stream).await.map_err(|e| untrusted(address, &e.to_string()))?;
    let request = EnrolRequest { token: token.id.clone(), secret: token.secret.clone(), name: token.name.clone(), csr };
    let reply = talk(&mut stream, &request.encode_to_vec()).await.map_err(|e| {
        format!("{address} broke off: {e}; run the same command again, the token is good for the same key")
    })?;
    match EnrolReply::decode(reply.as_slice()).map_err(|e| format!("{address}: {e}"))?.reply {
        Some(Reply::Enrolled(enrolled)) => Ok(enrolled),
        Some(Reply::Refused(refused)) => Err(refused.message),
        None => Err(format!("{address} answered something else")),
    }
}

fn untrusted(address: &str, error: &str) -> String {
    if error.contains(STRANGE) {
        return format!(
            "{address} is not the collector that made this token, or somebody stands in between: {STRANGE}. Nothing was sent. \
             The address is that of certificates.enrol_listen"
        );
    }
    format!("{address}: TLS: {error}. Nothing was sent. The address is that of certificates.enrol_listen")
}

async fn talk(
    stream: &mut tokio_rustls::client::TlsStream<TcpStream>,
    message: &[u8],
) -> Result<Vec<u8>, std::io::Error> {
    stream.write_u32(u32::try_from(message.len()).unwrap_or(u32::MAX)).await?;
    stream.write_all(message).await?;
    stream.flush().await?;
    let length = stream.read_u32().await? as usize;
    if length > ENROL_MESSAGE_MAX {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "an answer that is too long"));
    }
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_whole_or_none() {
        let good = format!("{JOIN_TOKEN}box7:{}:{}:{}", "ab".repeat(8), "cd".repeat(24), "ef".repeat(32));
        let token: Token = format!(" {good}\n").parse().expect("a token");
        assert_eq!((token.name.as_str(), token.ca), ("box7", [0xef; 32]));
        assert!(!format!("{token:?}").contains("cd"));
        let cut = &good[..good.len() - 2];
        for wrong in
            ["", "x", JOIN_TOKEN, cut, &good.replace("box7", ""), &good.replace('c', "g"), &format!("{good}:1")]
        {
            assert!(wrong.parse::<Token>().expect_err("refused").contains("copy what"), "{wrong}");
        }
    }
}
