//! `guardctl node token` and `guardctl certificate`: who may connect, for an administrator.
//!
//! It must not keep a token: it is printed and nothing else. Fails: see `client`.

use guard_proto::v1::{CertificateState, CreateJoinTokenRequest, ListCertificatesRequest, RevokeCertificateRequest};
use serde_json::{Value, json};

use crate::args::{CertificateCommand, NodeCommand};
use crate::client;
use crate::config::Config;
use crate::exit::Result;
use crate::output::Out;
use crate::table::{Cell, Table, Tone, grow, left, right};
use crate::text::escape_str;
use crate::time;

/// Runs `node …`.
pub async fn token(command: &NodeCommand, config: &Config, out: &Out) -> Result<()> {
    let NodeCommand::Token { name, ttl } = command;
    let mut client = client::connect(config).await?;
    // A part of a second is one: 0 would ask for the default.
    let asked = CreateJoinTokenRequest { name: name.clone(), ttl_seconds: ttl.as_secs().max(1) };
    let made = client.create_join_token(asked).await.map_err(client::refused)?.into_inner();
    if out.is_json() {
        return out.json(&json!({"node": name, "token": made.token, "expires": time::rfc3339(made.expires_unix_ns)}));
    }
    out.print(&format!("{}\n", escape_str(&made.token)))
}

/// Runs `certificate …`.
pub async fn run(command: &CertificateCommand, config: &Config, out: &Out) -> Result<()> {
    let mut client = client::connect(config).await?;
    match command {
        CertificateCommand::List { name } => {
            let asked = ListCertificatesRequest { name: name.clone().unwrap_or_default() };
            let found = client.list_certificates(asked).await.map_err(client::refused)?.into_inner().certificates;
            if out.is_json() {
                return out.json(&json!({"certificates": found.iter().map(json).collect::<Vec<_>>()}));
            }
            out.print(&table(&found).render(out.width(), out.color()))
        }
        CertificateCommand::Revoke { target, reason } => {
            let asked = RevokeCertificateRequest { target: target.clone(), reason: reason.clone() };
            let done = client.revoke_certificate(asked).await.map_err(client::refused)?.into_inner();
            if out.is_json() {
                return out.json(&json!({"revoked": target, "leaf": done.leaf, "text": done.text}));
            }
            out.print(&format!("{}\n", escape_str(&done.text)))
        }
    }
}

fn end(certificate: &CertificateState) -> i64 {
    certificate.not_after_unix.saturating_mul(1_000_000_000)
}

fn json(c: &CertificateState) -> Value {
    json!({"name": c.name, "role": c.role, "serial": c.serial, "not_after": time::rfc3339(end(c)), "leaf": c.leaf,
        "revoked": c.revoked})
}

fn table(found: &[CertificateState]) -> Table {
    let mut table =
        Table::new(&[left("NAME", 16), left("ROLE", 8), left("ENDS", 19), right("RECORD", 7), grow("SERIAL")]);
    for c in found {
        let (serial, tone) = match c.revoked {
            true => (format!("{} REVOKED", escape_str(&c.serial)), Tone::Bad),
            false => (escape_str(&c.serial), Tone::Plain),
        };
        table.row([
            escape_str(&c.name).into(),
            escape_str(&c.role).into(),
            time::date_time(end(c)).into(),
            c.leaf.to_string().into(),
            Cell::toned(serial, tone),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_certificate_says_so() {
        let state = |serial: &str, revoked| CertificateState {
            name: "box7".into(),
            role: "node".into(),
            serial: serial.into(),
            not_after_unix: 1_769_860_800,
            leaf: 12,
            revoked,
        };
        let text = table(&[state("4a01", false), state("4a02", true)]).render(80, false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("2026-01-31 12:00:00") && lines[1].trim_end().ends_with("4a01"), "{text}");
        assert!(lines[2].contains("4a02 REVOKED") && lines[2].chars().count() <= 80, "{text}");
    }
}
