//! The collector's own certificate authority: the CA, the server's certificate, and certificates for nodes and people.
//!
//! Names and roles stand in the certificate (`guard://role/ROLE/NAME`), so that the CA's key decides who may do what. It must
//! not hand out a certificate without a role, takes nothing from a signing request but its key, and makes no certificate that
//! outlives the CA. Each is valid from ten minutes before it was made, for hosts whose clocks are late. Fails: errors of rcgen
//! as they are; a certificate authority that cannot be read is an error that names the file.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use guard_proto::CLOCK_SKEW_SECONDS;
use guard_proto::v1::CertificateIssued;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ED25519, PublicKeyData, SanType, SerialNumber, date_time_ymd,
};
use sha2::{Digest, Sha256};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::exit::{CollectorError, Exit, Result};
use crate::identity::{Caller, Role};
use crate::own::now_ns;

/// Most characters of a name in a certificate.
pub const NAME_MAX: usize = 64;
/// Longest signing request: those of the keys that are taken are far below.
pub const CSR_MAX: usize = 4 << 10;
const DAY: u64 = 86_400;
/// Lifetime of the CA.
pub const CA_TTL: Duration = Duration::from_secs(3650 * DAY);
/// Lifetime of the server's certificate, which the collector renews by itself.
pub const SERVER_TTL: Duration = Duration::from_secs(365 * DAY);
/// Lifetime of a certificate that a command makes, unless another is asked for.
pub const CLIENT_TTL: Duration = Duration::from_secs(90 * DAY);
const SERIAL_BYTES: usize = 16;

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    not_after: i64,
}

/// What the log keeps of a certificate: all but how it came about.
pub type About = CertificateIssued;

/// A certificate with its key, both as PEM.
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// For the log.
    pub about: About,
}

/// A signing request that was checked: whoever made it has the key in it.
pub struct Csr(rcgen::PublicKey);

fn wrong(error: rcgen::Error) -> CollectorError {
    CollectorError::new(Exit::Internal, format_args!("cannot make a certificate: {error}"))
}

/// Seconds since 1970.
pub fn now() -> i64 {
    now_ns() / 1_000_000_000
}

fn seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)
}

/// A serial of 128 bits: positive, and of the same length always.
fn serial() -> Result<[u8; SERIAL_BYTES]> {
    let mut bytes = [0; SERIAL_BYTES];
    random(&mut bytes)?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(bytes)
}

/// Fills it from the kernel.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    let got = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty());
    match got {
        Ok(count) if count == bytes.len() => Ok(()),
        _ => Err(CollectorError::new(Exit::Unavailable, "the kernel gives no random bytes")),
    }
}

/// Parameters of a certificate, with what the log keeps of it.
fn params(common_name: &str, ttl: Duration, latest: i64) -> Result<(CertificateParams, About)> {
    let mut params = CertificateParams::new(vec![]).map_err(wrong)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    let (now, serial) = (now(), serial()?);
    let not_after_unix = now.saturating_add(seconds(ttl)).min(latest);
    let not_before_unix = now - CLOCK_SKEW_SECONDS;
    let at = |unix: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    (params.not_before, params.not_after) = (at(not_before_unix), at(not_after_unix));
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let about = About { serial: hex::encode(serial), not_before_unix, not_after_unix, ..About::default() };
    Ok((params, about))
}

/// What a key is known by.
fn digest(key: &impl PublicKeyData) -> Vec<u8> {
    Sha256::digest(key.subject_public_key_info()).to_vec()
}

impl Csr {
    /// From PKCS#10. What else is in it is not looked at.
    pub fn parse(der: &[u8]) -> std::result::Result<Self, String> {
        if der.len() > CSR_MAX {
            return Err(format!("the signing request has {} bytes; at most {CSR_MAX} are accepted", der.len()));
        }
        let parsed = CertificateSigningRequestParams::from_der(&der.into())
            .map_err(|e| format!("the signing request is not accepted: {e}"))?;
        let key = parsed.public_key;
        let taken = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
        if !taken.contains(&key.algorithm()) {
            return Err("the signing request's key is of another kind than ECDSA P-256, P-384 or Ed25519".to_owned());
        }
        Ok(Self(key))
    }

    /// SHA-256 of its key.
    pub fn public_key(&self) -> Vec<u8> {
        digest(&self.0)
    }
}

impl Authority {
    /// A new one; its certificate and key as PEM come with it.
    pub fn create(name: &str) -> Result<(Self, Issued)> {
        let (mut params, about) = params(&format!("guard CA {name}"), CA_TTL, i64::MAX)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(wrong)?;
        let key_pem = key.serialize_pem();
        let cert = CertifiedIssuer::self_signed(params, key).map_err(wrong)?.pem();
        let authority = Self::from_pem(&cert, &key_pem)?;
        Ok((authority, Issued { cert, key: key_pem, about }))
    }

    /// From the files that `init` wrote.
    pub fn read(cert: &Path, key: &Path) -> Result<Self> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|e| CollectorError::io(Exit::Config, format_args!("cannot read {}", path.display()), &e))
        };
        let odd = |e: CollectorError| CollectorError::new(Exit::Config, format_args!("{}: {e}", cert.display()));
        Self::from_pem(&read(cert)?, &read(key)?).map_err(odd)
    }

    fn from_pem(cert: &str, key: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key).map_err(wrong)?;
        let odd = || CollectorError::new(Exit::Config, "it is no certificate in PEM form");
        let (_, pem) = parse_x509_pem(cert.as_bytes()).map_err(|_| odd())?;
        let (_, parsed) = X509Certificate::from_der(&pem.contents).map_err(|_| odd())?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CollectorError::new(Exit::Config, "the CA's key is another one than its certificate's"));
        }
        let not_after = parsed.validity().not_after.timestamp();
        Ok(Self { issuer: Issuer::from_ca_cert_pem(cert, key).map_err(wrong)?, pem: cert.to_owned(), not_after })
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for the server with a new key, valid for these names and addresses.
    pub fn server(&self, hosts: &[String], ttl: Duration) -> Result<Issued> {
        let key = KeyPair::generate().map_err(wrong)?;
        let (cert, about) = self.server_again(hosts, ttl, &key)?;
        Ok(Issued { cert, key: key.serialize_pem(), about })
    }

    /// As [`Self::server`], for a key that there is.
    pub fn server_again(&self, hosts: &[String], ttl: Duration, key: &KeyPair) -> Result<(String, About)> {
        let (mut params, mut about) = params("guard-collector", ttl, self.not_after)?;
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().map_err(wrong)?),
            });
        }
        limit(&mut params, ExtendedKeyUsagePurpose::ServerAuth);
        (about.name, about.role) = ("guard-collector".to_owned(), "server".to_owned());
        about.public_key = digest(key);
        Ok((params.signed_by(key, &self.issuer).map_err(wrong)?.pem(), about))
    }

    /// A certificate for a node, a person or a service, with a new key.
    pub fn client(&self, caller: &Caller, ttl: Duration) -> Result<Issued> {
        let key = KeyPair::generate().map_err(wrong)?;
        let (params, mut about) = self.of_caller(caller, ttl)?;
        about.public_key = digest(&key);
        Ok(Issued { cert: params.signed_by(&key, &self.issuer).map_err(wrong)?.pem(), key: key.serialize_pem(), about })
    }

    /// The same for a key that its owner keeps.
    pub fn sign(&self, csr: &Csr, caller: &Caller, ttl: Duration) -> Result<(String, About)> {
        let (params, mut about) = self.of_caller(caller, ttl)?;
        about.public_key = csr.public_key();
        Ok((params.signed_by(&csr.0, &self.issuer).map_err(wrong)?.pem(), about))
    }

    fn of_caller(&self, caller: &Caller, ttl: Duration) -> Result<(CertificateParams, About)> {
        let (mut params, mut about) = params(&caller.name, ttl, self.not_after)?;
        params.subject_alt_names.push(SanType::URI(caller.uri().as_str().try_into().map_err(wrong)?));
        limit(&mut params, ExtendedKeyUsagePurpose::ClientAuth);
        (about.name, about.role) = (caller.name.clone(), caller.role.to_string());
        Ok((params, about))
    }
}

fn limit(params: &mut CertificateParams, usage: ExtendedKeyUsagePurpose) {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
}

/// A caller for whom a certificate may be made.
pub fn caller(name: &str, role: Role) -> Result<Caller> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(fits) {
        return Err(CollectorError::new(
            Exit::Usage,
            format_args!("name {name:?}: accepted are 1 to {NAME_MAX} letters, digits and . _ - @"),
        ));
    }
    Ok(Caller { name: name.to_owned(), role })
}
