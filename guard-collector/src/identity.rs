//! Who calls, and what they may: the role in the client certificate's URI name against the method.
//!
//! It must not trust anything but the certificate that TLS verified. Fails closed: no certificate, no or more than one role, an
//! unknown role: refused.

use std::fmt;
use std::str::FromStr;

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
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// By name in the certificate.
    pub name: String,
    /// The certificate's role.
    pub role: Role,
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
            (Role::Node, Right::Read | Right::Decide | Right::Erase) => false,
            (Role::Admin | Role::Reviewer | Role::Viewer, Right::Node) => false,
            (Role::Admin | Role::Reviewer | Role::Viewer, Right::Read) => true,
            (Role::Admin | Role::Reviewer, Right::Decide) => true,
            (Role::Viewer, Right::Decide) => false,
            (Role::Admin, Right::Erase) => true,
            (Role::Reviewer | Role::Viewer, Right::Erase) => false,
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
        let certificates =
            request.peer_certs().ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
        let first = certificates.first().ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
        let caller = Self::from_certificate(first)
            .map_err(|e| Status::unauthenticated(format!("the client certificate was not accepted: {e}")))?;
        if caller.role.may(right) {
            return Ok(caller);
        }
        let needs = match right {
            Right::Node => "the role node",
            Right::Read => "the role viewer, reviewer or admin",
            Right::Decide => "the role reviewer or admin",
            Right::Erase => "the role admin",
        };
        Err(Status::permission_denied(format!("this call needs {needs}; {} has the role {}", caller.name, caller.role)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pki::Authority;

    fn der(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM").1.contents
    }

    #[test]
    fn a_certificate_says_who_and_what() {
        let (authority, own) = Authority::create("t").expect("CA");
        let bob = Caller { name: "bob".into(), role: Role::Reviewer };
        let issued = authority.client(&bob).expect("issued");
        assert_eq!(Caller::from_certificate(&der(&issued.cert)), Ok(bob));
        assert!(Caller::from_certificate(&der(&own.cert)).expect_err("a CA is nobody").starts_with("no role"));
        assert!(Caller::from_certificate(b"x").is_err());
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
