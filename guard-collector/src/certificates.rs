//! Which certificates were issued and which were revoked, as the log says.
//!
//! Folded from the log's own records, so that a restart forgets no revocation. A certificate that is not on record (the first
//! ones, or of a CA whose key was used elsewhere) counts as older than everything: revoking its name ends it. It must not
//! forget a revocation before the certificate has ended by itself. Bounded: issued certificates are forgotten some time after
//! their end. Fails: never.

use std::collections::{BTreeMap, HashMap};

use guard_proto::CLOCK_SKEW_SECONDS;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{CertificateIssued, CertificateRevoked};

use crate::admit::Arrival;
use crate::{body, snapshot};

/// Kinds of the records that it is folded from.
const KINDS: [u16; 2] = [60, 61];
/// So many certificates are kept before those that have ended are looked for.
const SWEEP: usize = 1024;
/// A certificate is kept for so long after its end: clocks differ.
const KEPT: i64 = 2 * CLOCK_SKEW_SECONDS;

/// A certificate on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Who it is for.
    pub name: String,
    /// Its role, in words.
    pub role: String,
    /// Its end, in seconds since 1970.
    pub not_after: i64,
    /// Of its record.
    pub leaf: u64,
}

/// The record that ended a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Its leaf.
    pub leaf: u64,
    /// When it was written, in nanoseconds since 1970.
    pub at: i64,
    /// The end of the certificate that it names; not known: 0.
    until: i64,
}

/// What the log says of certificates.
#[derive(Debug, Default)]
pub struct Certificates {
    issued: HashMap<String, Issued>,
    serials: HashMap<String, Revocation>,
    names: BTreeMap<String, Revocation>,
    revocations: u64,
    sweep_at: usize,
}

impl Certificates {
    /// Takes a record of the log, in order.
    pub fn fold(&mut self, leaf: u64, arrival: &Arrival) {
        if !KINDS.contains(&arrival.header.kind.0) {
            return;
        }
        let at = arrival.header.wall_unix_ns;
        match body::parse(&arrival.record) {
            Some(Body::CertificateIssued(issued)) => self.issue(leaf, at / 1_000_000_000, issued),
            Some(Body::CertificateRevoked(revoked)) => self.revoke(leaf, at, revoked),
            _ => {}
        }
    }

    fn issue(&mut self, leaf: u64, now: i64, about: CertificateIssued) {
        if self.issued.len() >= self.sweep_at.max(SWEEP) {
            self.issued.retain(|_, issued| issued.not_after.saturating_add(KEPT) > now);
            self.serials.retain(|_, revoked| revoked.until == 0 || revoked.until.saturating_add(KEPT) > now);
            self.sweep_at = self.issued.len().saturating_mul(2);
        }
        let CertificateIssued { name, role, serial, not_after_unix, .. } = about;
        // Only its first record counts: a command's notice may come twice.
        self.issued.entry(serial).or_insert(Issued { name, role, not_after: not_after_unix, leaf });
    }

    fn revoke(&mut self, leaf: u64, at: i64, revoked: CertificateRevoked) {
        self.revocations = leaf.saturating_add(1);
        let until = self.issued.get(&revoked.serial).map_or(0, |issued| issued.not_after);
        let revocation = Revocation { leaf, at, until };
        match revoked.serial.as_str() {
            "" => {
                self.names.insert(revoked.name, Revocation { until: 0, ..revocation });
            }
            serial => {
                self.serials.entry(serial.to_owned()).or_insert(revocation);
            }
        }
    }

    /// The record that ended a certificate.
    pub fn revoked(&self, name: &str, serial: &str) -> Option<Revocation> {
        if let Some(revocation) = self.serials.get(serial) {
            return Some(*revocation);
        }
        let since = self.issued.get(serial).map(|issued| issued.leaf);
        self.names.get(name).copied().filter(|revocation| since.is_none_or(|leaf| leaf < revocation.leaf))
    }

    /// The record that ended every certificate of a name that there was.
    pub fn name_revoked(&self, name: &str) -> Option<Revocation> {
        self.names.get(name).copied()
    }

    /// A certificate on record.
    pub fn get(&self, serial: &str) -> Option<&Issued> {
        self.issued.get(serial)
    }

    /// Whether anything is on record for a name.
    pub fn knows(&self, name: &str) -> bool {
        self.issued.values().any(|issued| issued.name == name)
    }

    /// Certificates that have not ended, by name and then in the order of issuing; whether each is revoked.
    pub fn live(&self, name: &str, now: i64) -> Vec<(String, Issued, bool)> {
        let mut found: Vec<_> = self
            .issued
            .iter()
            .filter(|(_, issued)| issued.not_after > now && (name.is_empty() || issued.name == name))
            .map(|(serial, issued)| (serial.clone(), issued.clone(), self.revoked(&issued.name, serial).is_some()))
            .collect();
        found.sort_by(|a, b| (&a.1.name, a.1.leaf).cmp(&(&b.1.name, b.1.leaf)));
        found
    }

    /// Changes with every revocation.
    pub fn revocations(&self) -> u64 {
        self.revocations
    }

    /// For a file, in an order of its own.
    pub fn keep(&self) -> snapshot::Certificates {
        let mut issued: Vec<_> = self
            .issued
            .iter()
            .map(|(serial, i)| snapshot::Certificate {
                serial: serial.clone(),
                name: i.name.clone(),
                role: i.role.clone(),
                not_after: i.not_after,
                leaf: i.leaf,
            })
            .collect();
        issued.sort_by_key(|i| i.leaf);
        let kept = |(of, r): (&String, &Revocation)| snapshot::Revocation {
            of: of.clone(),
            leaf: r.leaf,
            at: r.at,
            until: r.until,
        };
        let mut serials: Vec<_> = self.serials.iter().map(kept).collect();
        serials.sort_by_key(|r| r.leaf);
        snapshot::Certificates {
            issued,
            serials,
            names: self.names.iter().map(kept).collect(),
            revocations: self.revocations,
        }
    }

    /// From a file.
    pub fn restore(kept: &snapshot::Certificates) -> Self {
        let of = |r: &snapshot::Revocation| (r.of.clone(), Revocation { leaf: r.leaf, at: r.at, until: r.until });
        let issued = |i: &snapshot::Certificate| {
            let (name, role) = (i.name.clone(), i.role.clone());
            (i.serial.clone(), Issued { name, role, not_after: i.not_after, leaf: i.leaf })
        };
        Self {
            issued: kept.issued.iter().map(issued).collect(),
            serials: kept.serials.iter().map(of).collect(),
            names: kept.names.iter().map(of).collect(),
            revocations: kept.revocations,
            sweep_at: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(name: &str, serial: &str, not_after_unix: i64) -> CertificateIssued {
        CertificateIssued { name: name.into(), serial: serial.into(), not_after_unix, ..CertificateIssued::default() }
    }

    fn revoked(name: &str, serial: &str) -> CertificateRevoked {
        CertificateRevoked { name: name.into(), serial: serial.into(), ..CertificateRevoked::default() }
    }

    #[test]
    fn a_name_is_revoked_with_all_that_it_had_and_not_with_what_it_gets_later() {
        let mut state = Certificates::default();
        state.issue(1, 0, issued("a", "01", 100));
        state.revoke(2, 0, revoked("a", ""));
        state.issue(3, 0, issued("a", "02", 100));
        let gone = |state: &Certificates, serial| state.revoked("a", serial).is_some();
        assert!(gone(&state, "01") && !gone(&state, "02"));
        assert!(gone(&state, "ff"), "one that is not on record was there before");
        assert!(state.revoked("b", "ff").is_none());
        // A notice that comes twice makes nothing new of an old certificate.
        state.issue(4, 0, issued("a", "01", 100));
        assert!(gone(&state, "01"));
        let again = Certificates::restore(&state.keep());
        assert!(gone(&again, "01") && !gone(&again, "02") && again.keep() == state.keep());
    }

    #[test]
    fn a_serial_is_revoked_alone_and_not_forgotten_before_its_end() {
        let mut state = Certificates::default();
        state.issue(1, 0, issued("a", "01", 1_000_000));
        state.issue(2, 0, issued("a", "02", 1_000_000));
        state.revoke(3, 0, revoked("a", "01"));
        state.revoke(4, 0, revoked("", "77"));
        for n in 0..5_000 {
            state.issue(10 + n, 500_000, issued("b", &format!("b{n}"), 1_000));
        }
        assert!(state.issued.len() < 2 * SWEEP, "{}", state.issued.len());
        for n in ["01", "77"] {
            assert!(state.revoked("a", n).is_some(), "{n}");
        }
        assert!(state.revoked("a", "02").is_none());
        let live = state.live("a", 500_000);
        assert_eq!(live.iter().map(|(s, _, r)| (s.as_str(), *r)).collect::<Vec<_>>(), [("01", true), ("02", false)]);
    }
}
