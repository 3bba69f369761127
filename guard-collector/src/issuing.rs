//! Issuing and revoking: for join tokens, for nodes that renew, for people who log in, by order of an admin.
//!
//! The record of a certificate is durable before the certificate is handed out, and a join token is marked as used, durably,
//! before that: a crash at any point leaves a token that its key alone can use again, for the same certificate. It must not
//! see a host's private key. Fails closed: a log that takes no records issues nothing.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{CertificateRevoked, EnrolRefused, EnrolRequest, Enrolled, LoggedIn};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tonic::Status;

use crate::config::{CertificatesConfig, Config};
use crate::exit::{CollectorError, Result};
use crate::identity::{Caller, Certificate, Role};
use crate::ledger::{Ledger, LedgerError};
use crate::oidc::claims::Person;
use crate::pki::{self, About, Authority, Csr};
use crate::tokens::{ID_BYTES, Kept, Tokens, Used};

/// Wrong secrets for a token's id before it is void until the collector starts anew.
const WRONG_MAX: u32 = 10;
/// Ids that are counted; all begin anew when there are more.
const COUNTED_MAX: usize = 10_000;
/// Certificates of one name that have not ended and are not revoked; more are not issued to it by itself.
const LIVE_MAX: usize = 64;
const TEXT_MAX: usize = 1024;

/// Issues.
pub struct Issuing {
    authority: Authority,
    ledger: Arc<Ledger>,
    tokens: Tokens,
    node_ttl: Duration,
    admin_vkey: PathBuf,
    /// One at a time: a token must not be used twice.
    alone: Mutex<HashMap<[u8; ID_BYTES], u32>>,
}

/// What a client is told instead.
pub fn refused(code: &str, message: impl Into<String>) -> EnrolRefused {
    EnrolRefused { code: code.to_owned(), message: message.into() }
}

fn unavailable(error: impl std::fmt::Display) -> EnrolRefused {
    tracing::error!(%error, "no certificate could be issued");
    refused("unavailable", format!("the collector could not issue a certificate now: {error}; try again"))
}

/// One message for whatever is not a token of this collector: nothing is said of which part is wrong.
fn unknown() -> EnrolRefused {
    refused(
        "unknown",
        "the collector does not know this token: it was changed, has ended more than a day ago, or is of another collector; \
         make a new one there with `guard-collector node token NAME`",
    )
}

/// Records it and waits for the disk.
fn record(ledger: &Ledger, body: Body) -> std::result::Result<u64, LedgerError> {
    let (leaf, durable) = ledger.say(SessionId::NONE, body)?;
    durable.block()?;
    Ok(leaf)
}

/// Ends certificates: `target` is a serial that is on record, else 16 or 20 bytes in hexadecimal digits, else a name. Blocks.
pub fn revoke(ledger: &Ledger, target: &str, by: &str, reason: &str) -> std::result::Result<(u64, String), Status> {
    if target.len() > pki::NAME_MAX || by.len() > TEXT_MAX || reason.len() > TEXT_MAX {
        return Err(Status::invalid_argument(format!(
            "a name or serial of at most {} bytes and a reason of at most {TEXT_MAX} are accepted",
            pki::NAME_MAX
        )));
    }
    let known = ledger.state().certificates.get(&target.to_ascii_lowercase()).map(|issued| issued.name.clone());
    let is_serial = known.is_some() || (matches!(target.len(), 32 | 40) && hex::decode(target).is_ok());
    let (by, reason) = (by.to_owned(), reason.to_owned());
    let (body, text) = if is_serial {
        let (serial, name) = (target.to_ascii_lowercase(), known.unwrap_or_default());
        let whose = if name.is_empty() { "not on record here".to_owned() } else { format!("of {name}") };
        let text = format!("the certificate with serial {serial} ({whose}) is revoked");
        (CertificateRevoked { name, serial, by, reason }, text)
    } else {
        let Caller { name, .. } =
            pki::caller(target, Role::Node).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let known = ledger.state().certificates.knows(&name) || ledger.state().admit.knows(&name);
        let doubt = if known { "" } else { "; nothing is on record under this name: look whether it is spelled right" };
        let text = format!("every certificate of {name} that there is now is revoked{doubt}");
        (CertificateRevoked { name, serial: String::new(), by, reason }, text)
    };
    tracing::warn!(name = %body.name, serial = %body.serial, by = %body.by, reason = %body.reason, "revoked");
    let leaf = record(ledger, Body::CertificateRevoked(body))?;
    Ok((leaf, format!("{text}, by record {leaf}")))
}

/// Records a certificate that was made. Blocks.
pub fn issued(ledger: &Ledger, about: About) -> std::result::Result<u64, LedgerError> {
    record(ledger, Body::CertificateIssued(about))
}

impl Issuing {
    /// Reads the CA.
    pub fn open(config: &Config, certificates: &CertificatesConfig, ledger: Arc<Ledger>) -> Result<Self> {
        let authority = Authority::read(&config.ca, &certificates.ca_key)
            .map_err(|e| CollectorError::new(e.kind, format_args!("certificates.ca_key: {e}")))?;
        Ok(Self {
            authority,
            ledger,
            tokens: Tokens::of(&certificates.dir),
            node_ttl: certificates.node_ttl,
            admin_vkey: config.folder.join("admin.vkey"),
            alone: Mutex::default(),
        })
    }

    /// The CA.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The join tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    fn alone(&self) -> MutexGuard<'_, HashMap<[u8; ID_BYTES], u32>> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A certificate for a join token. Blocks.
    pub fn enrol(&self, request: &EnrolRequest) -> std::result::Result<Enrolled, EnrolRefused> {
        let csr = Csr::parse(&request.csr).map_err(|e| refused("malformed", e))?;
        let mut wrong = self.alone();
        let (id, mut kept) = self.authentic(request, &mut wrong)?;
        let (name, public_key) = (kept.name.clone(), csr.public_key());
        let again = || format!("make another one with `guard-collector node token {name}`");
        if request.name != name {
            let other: String = request.name.chars().take(pki::NAME_MAX).collect();
            return Err(refused("foreign", format!("the token is for another node than {other:?}: {}", again())));
        }
        if kept.expires <= pki::now() {
            return Err(refused("expired", format!("the token for {name} has expired: {}", again())));
        }
        let revoked = self.ledger.state().certificates.name_revoked(&name);
        if revoked.is_some_and(|revocation| revocation.at >= kept.made) {
            let text = format!("{name} was revoked after the token was made: {}", again());
            return Err(refused("revoked", text));
        }
        let used = match kept.used.take() {
            Some(used) if used.public_key == hex::encode(&public_key) => used,
            Some(used) => {
                tracing::warn!(
                    node = name,
                    serial = used.serial,
                    "a join token was used a second time, with another key"
                );
                let text = format!(
                    "the token for {name} was used already, by another key (serial {}): {}; if nobody of yours did that, \
                     `guard-collector revoke {name}`",
                    used.serial,
                    again()
                );
                return Err(refused("used", text));
            }
            None => self.use_up(&id, &mut kept, &csr)?,
        };
        self.enrolled(&id, kept, used, public_key)
    }

    /// The token of a request whose secret is right.
    fn authentic(
        &self,
        request: &EnrolRequest,
        wrong: &mut HashMap<[u8; ID_BYTES], u32>,
    ) -> std::result::Result<([u8; ID_BYTES], Kept), EnrolRefused> {
        let Ok(id) = <[u8; ID_BYTES]>::try_from(request.token.as_slice()) else { return Err(unknown()) };
        let Some(kept) = self.tokens.read(&id).map_err(unavailable)? else { return Err(unknown()) };
        if wrong.get(&id).is_some_and(|count| *count >= WRONG_MAX) {
            return Err(unknown());
        }
        let shown = hex::encode(Sha256::digest(&request.secret));
        if !bool::from(shown.as_bytes().ct_eq(kept.digest.as_bytes())) {
            if wrong.len() >= COUNTED_MAX {
                wrong.clear();
            }
            let count = wrong.entry(id).or_default();
            *count += 1;
            tracing::warn!(node = kept.name, count, "a wrong secret for a join token");
            return Err(unknown());
        }
        Ok((id, kept))
    }

    /// Makes the certificate and marks the token.
    fn use_up(&self, id: &[u8; ID_BYTES], kept: &mut Kept, csr: &Csr) -> std::result::Result<Used, EnrolRefused> {
        let caller = Caller { name: kept.name.clone(), role: Role::Node };
        let (certificate, about) = self.authority.sign(csr, &caller, self.node_ttl).map_err(unavailable)?;
        let used = Used {
            public_key: hex::encode(&about.public_key),
            serial: about.serial,
            not_before: about.not_before_unix,
            not_after: about.not_after_unix,
            certificate,
        };
        kept.used = Some(used.clone());
        self.tokens.note(id, kept).map_err(unavailable)?;
        Ok(used)
    }

    /// Sees to it that the certificate is on record, and gives it out.
    fn enrolled(
        &self,
        id: &[u8; ID_BYTES],
        kept: Kept,
        used: Used,
        public_key: Vec<u8>,
    ) -> std::result::Result<Enrolled, EnrolRefused> {
        let recorded = self.ledger.state().certificates.get(&used.serial).is_some();
        if !recorded {
            let about = About {
                name: kept.name.clone(),
                role: Role::Node.to_string(),
                serial: used.serial.clone(),
                not_before_unix: used.not_before,
                not_after_unix: used.not_after,
                public_key,
                how: "enrolled".to_owned(),
                by: kept.by,
                token: hex::encode(id),
                ..About::default()
            };
            issued(&self.ledger, about).map_err(unavailable)?;
        }
        tracing::info!(node = kept.name, serial = used.serial, "a node is enrolled");
        let admin_vkey = std::fs::read_to_string(&self.admin_vkey).unwrap_or_default().trim().to_owned();
        let (ca, log_vkey) = (self.authority.pem().to_owned(), self.ledger.store().vkey());
        Ok(Enrolled { certificate: used.certificate, ca, log_vkey, admin_vkey })
    }

    /// A certificate for somebody whom the issuer vouches for. Blocks.
    pub fn login(
        &self,
        csr: &Csr,
        person: &Person,
        issuer: &str,
        ttl: Duration,
    ) -> std::result::Result<LoggedIn, EnrolRefused> {
        // One at a time, so that each sees what the others were given.
        let _alone = self.alone();
        let name = &person.caller.name;
        let (live, revoked) = {
            let state = self.ledger.state();
            (state.certificates.live(name, pki::now()), state.certificates.name_revoked(name))
        };
        let people = [Role::Admin, Role::Reviewer, Role::Viewer].map(|role| role.to_string());
        if let Some((_, other, _)) = live.iter().find(|(_, issued, _)| !people.contains(&issued.role)) {
            return Err(refused("refused", format!("{name} is the name of a {} here, not of a person", other.role)));
        }
        if live.iter().filter(|(_, _, revoked)| !revoked).count() >= LIVE_MAX {
            return Err(refused(
                "refused",
                format!(
                    "{name} has {LIVE_MAX} certificates that have not ended, which is the limit; an admin ends them with \
                 `guardctl certificate revoke {name}`"
                ),
            ));
        }
        if revoked.is_some_and(|revocation| revocation.at >= person.issued.saturating_mul(1_000_000_000)) {
            return Err(refused("revoked", format!("{name} was revoked after this login began: log in again")));
        }
        let (certificate, about) = self.authority.sign(csr, &person.caller, ttl).map_err(unavailable)?;
        let (not_after_unix, role, serial) = (about.not_after_unix, about.role.clone(), about.serial.clone());
        let about = About { how: "login".into(), by: issuer.to_owned(), subject: person.subject.clone(), ..about };
        issued(&self.ledger, about).map_err(unavailable)?;
        tracing::info!(name, role, serial, issuer, subject = person.subject, "logged in");
        Ok(LoggedIn { certificate, name: name.clone(), role, not_after_unix, issuer: issuer.to_owned() })
    }

    /// A new certificate for a node that has one. Blocks.
    pub fn renew(&self, old: &Certificate, csr: &[u8]) -> std::result::Result<String, Status> {
        let csr = Csr::parse(csr).map_err(Status::invalid_argument)?;
        if csr.public_key() == old.public_key {
            return Err(Status::invalid_argument("a certificate is renewed with a new key"));
        }
        let name = &old.caller.name;
        // A daemon that is asked to renew again and again must not fill the log.
        let live = self.ledger.state().certificates.live(name, pki::now());
        if live.iter().filter(|(_, _, revoked)| !revoked).count() >= LIVE_MAX {
            return Err(Status::resource_exhausted(format!(
                "{name} has {LIVE_MAX} certificates that have not ended, which is the limit; `guard-collector revoke {name}` \
                 and enrolling again end that"
            )));
        }
        let (certificate, about) =
            self.authority.sign(&csr, &old.caller, self.node_ttl).map_err(|e| Status::internal(e.to_string()))?;
        let about = About { how: "renewed".into(), by: name.clone(), replaces: old.serial.clone(), ..about };
        let serial = about.serial.clone();
        issued(&self.ledger, about)?;
        tracing::info!(node = name, serial, replaces = old.serial, "a node's certificate is renewed");
        Ok(certificate)
    }
}
