//! Who calls, and what they may: the role in the client certificate's URI name against the method.
//!
//! It must not trust anything but the certificate that TLS verified; whether that was revoked since is asked by `standing`, before
//! any call. Fails closed: no certificate, no or more than one role, an unknown role: refused.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::pki::NAME_MAX;

const URI: &str = "guard://role/";

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything people may do.
    Admin,
    /// Reads, and decides requests.
    Reviewer,
    /// Reads.
    Viewer,
    /// A host's daemon.
    Node,
}

/// What a method needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// The node service.
    Node,
    /// Reading sessions, reviews, records, the log.
    Read,
    /// Deciding requests.
    Decide,
    /// Erasing what lies beside the log.
    Erase,
    /// Join tokens, revoking.
    Administer,
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// By name in the certificate.
    pub name: String,
    /// The certificate's role.
    pub role: Role,
}

/// A certificate that TLS has verified, with what says whether it still counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is.
    pub caller: Caller,
    /// In lower-case hexadecimal digits.
    pub serial: String,
    /// Its end, in seconds since 1970.
    pub not_after: i64,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Admin => "admin",
            Role::Reviewer => "reviewer",
            Role::Viewer => "viewer",
            Role::Node => "node",
        })
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "admin" => Ok(Role::Admin),
            "reviewer" => Ok(Role::Reviewer),
            "viewer" => Ok(Role::Viewer),
            "node" => Ok(Role::Node),
            other => Err(format!("role {other:?}: accepted are admin, reviewer, viewer and node")),
        }
    }
}

impl Role {
    /// Whether the certificate reaches so far.
    pub fn may(self, right: Right) -> bool {
        match (self, right) {
            (Role::Node, Right::Node) => true,
            (Role::Node, Right::Read | Right::Decide | Right::Erase | Right::Administer) => false,
            (Role::Admin | Role::Reviewer | Role::Viewer, Right::Node) => false,
            (Role::Admin | Role::Reviewer | Role::Viewer, Right::Read) => true,
            (Role::Admin | Role::Reviewer, Right::Decide) => true,
            (Role::Viewer, Right::Decide) => false,
            (Role::Admin, Right::Erase | Right::Administer) => true,
            (Role::Reviewer | Role::Viewer, Right::Erase | Right::Administer) => false,
        }
    }
}

impl Caller {
    /// The form in the certificate.
    pub fn uri(&self) -> String {
        format!("{URI}{}/{}", self.role, self.name)
    }

    /// From a certificate that TLS has verified.
    pub fn from_certificate(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| format!("unreadable certificate: {e}"))?;
        Self::named_in(&certificate)
    }

    fn named_in(certificate: &X509Certificate<'_>) -> Result<Self, String> {
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| format!("unreadable names: {e}"))?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let mut found = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(URI),
            _ => None,
        });
        let Some(role) = found.next() else {
            return Err(format!("no role: it has no name of the form {URI}ROLE/NAME"));
        };
        if found.next().is_some() {
            return Err("more than one role".to_owned());
        }
        let (role, name) = role.split_once('/').ok_or("a role without a name")?;
        if name.is_empty() || name.len() > NAME_MAX || name.contains('/') || !name.chars().all(|c| c.is_ascii_graphic())
        {
            return Err("a name of unaccepted form".to_owned());
        }
        Ok(Self { name: name.to_owned(), role: role.parse()? })
    }

    /// The caller of a request, if they may.
    pub fn of<T>(request: &Request<T>, right: Right) -> Result<Self, Status> {
        let Certificate { caller, .. } = Certificate::of(request)?;
        if caller.role.may(right) {
            return Ok(caller);
        }
        let needs = match right {
            Right::Node => "the role node",
            Right::Read => "the role viewer, reviewer or admin",
            Right::Decide => "the role reviewer or admin",
            Right::Erase | Right::Administer => "the role admin",
        };
        Err(Status::permission_denied(format!("this call needs {needs}; {} has the role {}", caller.name, caller.role)))
    }
}

impl Certificate {
    /// From a certificate that TLS has verified.
    pub fn parse(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| format!("unreadable certificate: {e}"))?;
        // The form of the log: DER puts a zero before a number that would else be negative.
        let serial = certificate.raw_serial();
        let serial = hex::encode(serial.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(serial));
        let not_after = certificate.validity().not_after.timestamp();
        let public_key = Sha256::digest(certificate.public_key().raw).to_vec();
        Ok(Self { caller: Caller::named_in(&certificate)?, serial, not_after, public_key })
    }

    /// That of a request's connection.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let needed = || Status::unauthenticated("a client certificate is needed");
        let certificates = request.peer_certs().ok_or_else(needed)?;
        let first = certificates.first().ok_or_else(needed)?;
        Self::parse(first).map_err(|e| Status::unauthenticated(format!("the client certificate was not accepted: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pki::{Authority, CLIENT_TTL, Csr};

    fn der(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM").1.contents
    }

    #[test]
    fn a_certificate_says_who_and_what() {
        let (authority, own) = Authority::create("t").expect("CA");
        let bob = Caller { name: "bob".into(), role: Role::Reviewer };
        let issued = authority.client(&bob, CLIENT_TTL).expect("issued");
        assert_eq!(Caller::from_certificate(&der(&issued.cert)), Ok(bob.clone()));
        let read = Certificate::parse(&der(&issued.cert)).expect("read");
        let about = &issued.about;
        assert_eq!(
            (read.serial, read.not_after, read.public_key),
            (about.serial.clone(), about.not_after_unix, about.public_key.clone())
        );
        assert!(Caller::from_certificate(&der(&own.cert)).expect_err("a CA is nobody").starts_with("no role"));
        assert!(Caller::from_certificate(b"x").is_err());
    }

    #[test]
    fn a_signing_request_gives_its_key_and_nothing_else() {
        let (authority, _) = Authority::create("t").expect("CA");
        let key = rcgen::KeyPair::generate().expect("key");
        let mut wants = rcgen::CertificateParams::new(vec!["evil.example".to_owned()]).expect("params");
        wants.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let csr = wants.serialize_request(&key).expect("request").der().to_vec();
        let box7 = Caller { name: "box7".into(), role: Role::Node };
        let (cert, about) = authority.sign(&Csr::parse(&csr).expect("taken"), &box7, CLIENT_TTL).expect("signed");
        let (cert, now) = (der(&cert), crate::pki::now());
        let read = Certificate::parse(&cert).expect("read");
        assert_eq!((read.caller, read.public_key), (box7, about.public_key));
        let (_, parsed) = X509Certificate::from_der(&cert).expect("parsed");
        assert!(!parsed.is_ca());
        assert_eq!(parsed.subject_alternative_name().expect("names").expect("names").value.general_names.len(), 1);
        assert!(
            parsed.validity().not_before.timestamp() <= now - 600,
            "a host whose clock is ten minutes late takes it"
        );
        // Who signed the request must have its key.
        let mut forged = csr.clone();
        *forged.last_mut().expect("bytes") ^= 1;
        assert!(Csr::parse(&forged).is_err() && Csr::parse(&[0x30; 5000]).is_err() && Csr::parse(b"").is_err());
    }

    #[test]
    fn each_role_may_exactly_its_own() {
        let roles = [Role::Admin, Role::Reviewer, Role::Viewer, Role::Node];
        let may = |right| roles.iter().filter(|r| r.may(right)).map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(may(Right::Node), BTreeSet::from(["node".to_owned()]));
        assert_eq!(may(Right::Decide), BTreeSet::from(["admin".to_owned(), "reviewer".to_owned()]));
        assert_eq!(may(Right::Read).len(), 3);
    }
}
