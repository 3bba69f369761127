//! `[credentials]` of the configuration: the provider, how the daemon logs in there, and which session may have what.
//!
//! It must not touch what it names. What is not said is not given. Fails: the message names key and value.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use guard_proto::v1::{Identity, RoleSnapshot};
use serde::Deserialize;

/// Longest life of one lease, in seconds.
const TTL_MAX: u64 = 86_400;
/// Credentials that the configuration may name.
const NAMED_MAX: usize = 256;

/// The provider and what it gives.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialsConfig {
    /// `https://host:port` of OpenBao or Vault.
    pub address: String,
    /// PEM file of the authorities that its certificate is checked with; no other is believed.
    pub ca: PathBuf,
    /// Where the AppRole method is mounted.
    #[serde(default = "approle")]
    pub auth_mount: String,
    /// The daemon's role id.
    pub role_id: String,
    /// File with its secret id.
    pub secret_id_file: PathBuf,
    /// What sessions may have, by name.
    #[serde(default)]
    pub named: BTreeMap<String, Named>,
}

fn approle() -> String {
    "approle".into()
}

/// How a credential is made.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A stored value: the same for all, without an end.
    Kv2,
    /// A database user of its own.
    Database,
    /// A certificate with its key.
    Pki,
    /// A token of the provider itself.
    Token,
}

impl Kind {
    /// As records name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kv2 => "kv2",
            Self::Database => "database",
            Self::Pki => "pki",
            Self::Token => "token",
        }
    }
}

/// One credential. A session may have it if its agent is named and all else that is named here is so too.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// How it is made.
    pub kind: Kind,
    /// Path at the provider, without `/v1/`.
    pub path: String,
    /// Agents; `*` for each.
    pub agents: BTreeSet<String>,
    /// Initiators by name.
    #[serde(default)]
    pub initiators: BTreeSet<String>,
    /// Initiators by role: one of these (needs a role file).
    #[serde(default)]
    pub roles: BTreeSet<String>,
    /// Categories that the session must all be able to request.
    #[serde(default)]
    pub categories: BTreeSet<String>,
    /// Longest life of one lease: a daemon that dies leaves it no longer than this.
    #[serde(default = "max_ttl")]
    pub max_ttl_seconds: u64,
    /// Names of files by field. Fields without a name are not handed over; without any, each is `NAME.FIELD`.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Sent along when it is made, such as `common_name` of a certificate. `{session}`, `{agent}` and `{initiator}` are filled in.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Policies of a token.
    #[serde(default)]
    pub policies: Vec<String>,
}

fn max_ttl() -> u64 {
    900
}

/// Whether a text is a name that may stand in paths and messages.
pub fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.is_empty() && text.len() <= 64 && !text.starts_with('.') && text.chars().all(good)
}

impl CredentialsConfig {
    /// Says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if !self.address.starts_with("https://") || self.address.len() > 300 {
            return Err(format!("address: `{}` must start with https://", self.address.escape_debug()));
        }
        if !is_path(&self.auth_mount) {
            return Err(format!("auth_mount: `{}` is no path", self.auth_mount.escape_debug()));
        }
        if self.role_id.is_empty() || self.role_id.len() > 200 {
            return Err("role_id: must have 1 to 200 characters".into());
        }
        for (key, path) in [("ca", &self.ca), ("secret_id_file", &self.secret_id_file)] {
            if !path.is_absolute() {
                return Err(format!("{key}: {} must be an absolute path", path.display()));
            }
        }
        if self.named.len() > NAMED_MAX {
            return Err(format!("named: {} are more than {NAMED_MAX}", self.named.len()));
        }
        let wrong = |name: &String, why: String| format!("named.{}: {why}", name.escape_debug());
        self.named.iter().try_for_each(|(name, one)| one.check(name).map_err(|why| wrong(name, why)))
    }
}

fn is_path(text: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p != ".." && p != "." && p.bytes().all(|b| b.is_ascii_graphic());
    text.len() <= 300 && text.split('/').all(part) && !text.contains(['?', '#', '%', '\\'])
}

impl Named {
    fn check(&self, name: &str) -> Result<(), String> {
        if !is_name(name) {
            return Err("a name has 1 to 64 letters, digits, `.`, `_`, `-`".into());
        }
        if !is_path(&self.path) {
            return Err(format!("path: `{}` is none (such as database/creds/readonly)", self.path.escape_debug()));
        }
        if self.agents.is_empty() {
            return Err("agents: without one nobody may have it".into());
        }
        if self.initiators.is_empty() && self.roles.is_empty() && self.categories.is_empty() {
            return Err("initiators, roles or categories: one of them must say who may have it".into());
        }
        if !(1..=TTL_MAX).contains(&self.max_ttl_seconds) {
            return Err(format!("max_ttl_seconds: {} is not between 1 and {TTL_MAX}", self.max_ttl_seconds));
        }
        if let Some(file) = self.files.values().find(|file| !is_name(file)) {
            return Err(format!("files: `{}` is no file name", file.escape_debug()));
        }
        match (self.kind, self.policies.is_empty()) {
            (Kind::Token, true) => return Err("policies: without any a token could do what the daemon can".into()),
            (Kind::Token, false) | (_, true) => {}
            (_, false) => return Err("policies: only a token has them".into()),
        }
        if self.kind == Kind::Pki && !self.path.contains("/issue/") {
            return Err(format!("path: `{}` must be MOUNT/issue/ROLE", self.path.escape_debug()));
        }
        if self.kind == Kind::Token && !self.path.starts_with("auth/token/create") {
            return Err("path: must be auth/token/create or auth/token/create/ROLE".into());
        }
        Ok(())
    }

    /// Whether a session may have it; if not, why.
    pub fn permits(&self, identity: &Identity, roles: Option<&RoleSnapshot>) -> Result<(), String> {
        if !self.agents.contains("*") && !self.agents.contains(&identity.agent) {
            return Err(format!("agent {} is not among those that may have it", identity.agent));
        }
        if !self.initiators.is_empty() && !self.initiators.contains(&identity.initiator) {
            return Err(format!("{} is not among the initiators who may have it", identity.initiator));
        }
        if !self.roles.is_empty() {
            let has = roles.map(|r| r.initiator_roles.as_slice()).unwrap_or_default();
            if !has.iter().any(|role| self.roles.contains(role)) {
                return Err(format!("{} has none of the roles that may have it", identity.initiator));
            }
        }
        match self.categories.iter().find(|c| !identity.categories.contains(c)) {
            Some(lacking) => Err(format!("the session may not request {lacking}, which it needs for it")),
            None => Ok(()),
        }
    }

    /// What is sent along, filled in.
    pub fn filled(&self, identity: &Identity) -> BTreeMap<String, String> {
        let fill = |text: &String| {
            text.replace("{session}", &identity.session_id)
                .replace("{agent}", &identity.agent)
                .replace("{initiator}", &identity.initiator)
        };
        self.parameters.iter().map(|(key, text)| (key.clone(), fill(text))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(named: &str) -> Result<CredentialsConfig, String> {
        let head = "address='https://bao:8200'\nca='/ca'\nrole_id='r'\nsecret_id_file='/s'\n";
        let config: CredentialsConfig = toml::from_str(&format!("{head}{named}")).map_err(|e| e.to_string())?;
        config.check().map(|()| config)
    }

    const DB: &str = "[named.db]\nkind='database'\npath='database/creds/ro'\nagents=['coder']\ninitiators=['alice']\n";

    fn who(agent: &str, initiator: &str) -> Identity {
        Identity { agent: agent.into(), initiator: initiator.into(), ..Identity::default() }
    }

    #[test]
    fn who_may_have_it_must_be_said_and_all_that_is_said_must_hold() {
        let db = &config(DB).unwrap().named["db"];
        assert!(db.permits(&who("coder", "alice"), None).is_ok());
        assert!(db.permits(&who("other", "alice"), None).unwrap_err().contains("agent other"));
        assert!(db.permits(&who("coder", "bob"), None).unwrap_err().contains("bob is not among"));
        let more = format!("{DB}roles=['dev']\ncategories=['db.run']\n");
        let db = &config(&more).unwrap().named["db"];
        let roles = RoleSnapshot { initiator_roles: vec!["dev".into()], ..RoleSnapshot::default() };
        assert!(db.permits(&who("coder", "alice"), None).unwrap_err().contains("roles"));
        assert!(db.permits(&who("coder", "alice"), Some(&roles)).unwrap_err().contains("db.run"));
        let able = Identity { categories: vec!["db.run".into()], ..who("coder", "alice") };
        assert!(db.permits(&able, Some(&roles)).is_ok());
    }

    #[test]
    fn what_would_give_too_much_is_refused() {
        let refused = |named: &str| config(named).unwrap_err();
        assert!(refused("[named.db]\nkind='database'\npath='d'\nagents=['a']\n").contains("who may have it"));
        assert!(refused("[named.db]\nkind='database'\npath='d'\nagents=[]\ninitiators=['a']\n").contains("agents"));
        let token = "[named.t]\nkind='token'\npath='auth/token/create'\nagents=['a']\ninitiators=['a']\n";
        assert!(refused(token).contains("policies"));
        assert!(config(&format!("{token}policies=['app']\n")).is_ok());
        assert!(refused(&DB.replace("database/creds/ro", "../sys/seal")).contains("path"));
        assert!(refused(&format!("{DB}files={{password='../x'}}\n")).contains("file name"));
        assert!(refused(&format!("{DB}max_ttl_seconds=0\n")).contains("max_ttl_seconds"));
        assert!(refused(&DB.replace("[named.db]", "[named.'a b']")).contains("a name has"));
        let plain = CredentialsConfig { address: "http://bao".into(), ..config(DB).unwrap() };
        assert!(plain.check().unwrap_err().contains("https://"));
    }

    #[test]
    fn parameters_are_filled_in_with_who_it_is_for() {
        let db = &config(&format!("{DB}parameters={{common_name='{{agent}}.{{initiator}}.x'}}\n")).unwrap().named["db"];
        assert_eq!(db.filled(&who("coder", "alice"))["common_name"], "coder.alice.x");
    }
}
