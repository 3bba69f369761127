//! The collector's own certificate authority: the CA, the server's certificate, and one certificate for each node or person.
//!
//! Names and roles stand in the certificate (`guard://role/ROLE/NAME`), so that the CA's key decides who may do what. It must
//! not hand out a certificate without a role. Fails: errors of rcgen as they are; a certificate authority that cannot be read
//! is an error that names the file.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::exit::{CollectorError, Exit, Result};
use crate::identity::{Caller, Role};

/// Most characters of a name in a certificate.
pub const NAME_MAX: usize = 64;

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, both as PEM.
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

fn wrong(error: rcgen::Error) -> CollectorError {
    CollectorError::new(Exit::Internal, format_args!("cannot make a certificate: {error}"))
}

fn params(common_name: &str, names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names).map_err(wrong)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    // A development CA outlives the machines it is for; rotation is not part of this version.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2046, 1, 1);
    Ok(params)
}

impl Authority {
    /// A new one; its certificate and key as PEM come with it.
    pub fn create(name: &str) -> Result<(Self, Issued)> {
        let mut params = params(&format!("guard CA {name}"), vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(wrong)?;
        let key_pem = key.serialize_pem();
        let cert = CertifiedIssuer::self_signed(params, key).map_err(wrong)?.pem();
        let authority = Self::from_pem(&cert, &key_pem)?;
        Ok((authority, Issued { cert, key: key_pem }))
    }

    /// From the files that `init` wrote.
    pub fn read(cert: &Path, key: &Path) -> Result<Self> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|e| CollectorError::io(Exit::Config, format_args!("cannot read {}", path.display()), &e))
        };
        Self::from_pem(&read(cert)?, &read(key)?)
    }

    fn from_pem(cert: &str, key: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key).map_err(wrong)?;
        Ok(Self { issuer: Issuer::from_ca_cert_pem(cert, key).map_err(wrong)?, pem: cert.to_owned() })
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for the server, valid for these names and addresses.
    pub fn server(&self, hosts: &[String]) -> Result<Issued> {
        let mut params = params("guard-collector", vec![])?;
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().map_err(wrong)?),
            });
        }
        self.issue(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate for a node, a person or a service.
    pub fn client(&self, caller: &Caller) -> Result<Issued> {
        let mut params = params(&caller.name, vec![])?;
        params.subject_alt_names.push(SanType::URI(caller.uri().as_str().try_into().map_err(wrong)?));
        self.issue(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Result<Issued> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(wrong)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(wrong)?;
        Ok(Issued { cert: cert.pem(), key: key.serialize_pem() })
    }
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
