//! `[oidc]` of `collector.toml`: who vouches for people, and what they get.
//!
//! It must not let in everybody by leaving something out: without a rule in `[[oidc.allow]]` the table is refused. Fails: an error
//! that names the key and says what is accepted.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use crate::alerts::where_to::{self, Reach};
use crate::identity::Role;

/// Longest file of a secret or of authorities.
const FILE_MAX: u64 = 1 << 20;
/// Most rules, domains, scopes and values of a rule.
const LIST_MAX: usize = 100;
const TEXT_MAX: usize = 256;

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawOidc {
    issuer: String,
    client_id: String,
    client_secret_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    #[serde(default = "default_scopes")]
    scopes: Vec<String>,
    #[serde(default = "default_name")]
    name_claim: String,
    #[serde(default)]
    domains: Vec<String>,
    #[serde(default)]
    strip_domain: bool,
    #[serde(default = "default_seconds")]
    certificate_seconds: u64,
    #[serde(default)]
    within_token: bool,
    #[serde(default)]
    allow: Vec<RawAllow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAllow {
    role: String,
    claim: Option<String>,
    #[serde(default)]
    values: Vec<String>,
}

fn default_scopes() -> Vec<String> {
    vec!["profile".to_owned()]
}

fn default_name() -> String {
    "preferred_username".to_owned()
}

fn default_seconds() -> u64 {
    12 * 3600
}

/// Who gets a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Of the certificate.
    pub role: Role,
    /// The claim that is looked at; not there: everybody whom the issuer vouches for.
    pub claim: Option<String>,
    /// One of these it has to have.
    pub values: Vec<String>,
}

/// The validated form.
#[derive(Clone, Debug)]
pub struct OidcConfig {
    /// The issuer as it is written: tokens have to say exactly that.
    pub issuer_text: String,
    /// The same as an address.
    pub issuer: Url,
    /// What the issuer's addresses may lead to.
    pub reach: Reach,
    /// As which the collector is known to the issuer.
    pub client_id: String,
    /// File of the client's secret, if it has one.
    pub client_secret_file: Option<PathBuf>,
    /// PEM file of the only authorities that the issuer's certificate may come from; not there: the system's.
    pub ca_file: Option<PathBuf>,
    /// What is asked for beside `openid`.
    pub scopes: Vec<String>,
    /// The claim that is the person's name.
    pub name_claim: String,
    /// Where names are addresses: those that are accepted, in lower case. None: names are taken as they are.
    pub domains: Vec<String>,
    /// Whether the name is the part in front of the one domain.
    pub strip_domain: bool,
    /// Lifetime of a certificate.
    pub ttl: Duration,
    /// Whether it ends with the ID token, if that is earlier.
    pub within_token: bool,
    /// Who gets which role; the first that fits counts.
    pub allow: Vec<Allow>,
}

fn bounded(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes));
    read.map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(bytes)
}

fn listed(key: &str, list: &[String]) -> Result<(), String> {
    let fits = |text: &String| !text.is_empty() && text.len() <= TEXT_MAX && !text.chars().any(char::is_control);
    if list.len() <= LIST_MAX && list.iter().all(fits) {
        return Ok(());
    }
    Err(format!("{key}: accepted are up to {LIST_MAX} texts of 1 to {TEXT_MAX} characters"))
}

impl RawAllow {
    fn checked(self) -> Result<Allow, String> {
        let role: Role = self.role.parse().map_err(|e| format!("allow.role: {e}"))?;
        if role == Role::Node {
            return Err(
                "allow.role = \"node\": hosts enrol with a join token; accepted are admin, reviewer, viewer".into()
            );
        }
        listed("allow.values", &self.values)?;
        match (&self.claim, self.values.is_empty()) {
            (Some(_), false) | (None, true) => Ok(Allow { role, claim: self.claim, values: self.values }),
            (Some(claim), true) => Err(format!("allow.claim = {claim:?}: name the `values` that it may have")),
            (None, false) => Err("allow.values: name the `claim` that has them".to_owned()),
        }
    }
}

impl RawOidc {
    /// Validates the table of a file in `base`.
    pub fn checked(self, base: &Path) -> Result<OidcConfig, String> {
        self.parsed(base).map_err(|e| format!("oidc.{e}"))
    }

    fn parsed(self, base: &Path) -> Result<OidcConfig, String> {
        let (issuer, reach) = where_to::parse(&self.issuer).map_err(|e| format!("issuer: {e}"))?;
        if issuer.query().is_some() {
            return Err("issuer: a query does not belong into it".to_owned());
        }
        listed("client_id", std::slice::from_ref(&self.client_id))?;
        listed("name_claim", std::slice::from_ref(&self.name_claim))?;
        listed("scopes", &self.scopes)?;
        listed("domains", &self.domains)?;
        if self.scopes.iter().any(|scope| scope.contains(' ')) {
            return Err("scopes: one scope is one text of the list".to_owned());
        }
        if self.strip_domain && self.domains.len() != 1 {
            return Err(
                "strip_domain: accepted where `domains` names exactly one, or two people would be one".to_owned()
            );
        }
        if !(60..=30 * 86_400).contains(&self.certificate_seconds) {
            return Err(format!("certificate_seconds = {}: accepted is 60 to 2592000", self.certificate_seconds));
        }
        if self.allow.is_empty() || self.allow.len() > LIST_MAX {
            return Err(format!("allow: 1 to {LIST_MAX} tables [[oidc.allow]] say who gets which role"));
        }
        Ok(OidcConfig {
            issuer_text: self.issuer,
            issuer,
            reach,
            client_id: self.client_id,
            client_secret_file: self.client_secret_file.map(|path| base.join(path)),
            ca_file: self.ca_file.map(|path| base.join(path)),
            scopes: self.scopes.into_iter().filter(|scope| scope != "openid").collect(),
            name_claim: self.name_claim,
            domains: self.domains.iter().map(|domain| domain.to_ascii_lowercase()).collect(),
            strip_domain: self.strip_domain,
            ttl: Duration::from_secs(self.certificate_seconds),
            within_token: self.within_token,
            allow: self.allow.into_iter().map(RawAllow::checked).collect::<Result<_, _>>()?,
        })
    }
}

impl OidcConfig {
    /// The authorities' certificates, as they are in the file now.
    pub fn authorities(&self) -> Result<Option<Vec<u8>>, String> {
        let read = |path: &PathBuf| bounded(path).map_err(|e| format!("oidc.ca_file: {e}"));
        self.ca_file.as_ref().map(read).transpose()
    }

    /// The client's secret, as it is in the file now.
    pub fn client_secret(&self) -> Result<Option<zeroize::Zeroizing<String>>, String> {
        let read = |path: &PathBuf| {
            let wrong = |e: &dyn std::fmt::Display| format!("oidc.client_secret_file: {e}");
            let bytes = zeroize::Zeroizing::new(bounded(path).map_err(|e| wrong(&e))?);
            let text = std::str::from_utf8(&bytes).map_err(|e| wrong(&e))?;
            Ok(zeroize::Zeroizing::new(text.trim().to_owned()))
        };
        self.client_secret_file.as_ref().map(read).transpose()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ALLOW: &str = "[[allow]]\nrole = \"reviewer\"\nclaim = \"groups\"\nvalues = [\"guard-reviewers\"]\n\
        [[allow]]\nrole = \"viewer\"\nclaim = \"groups\"\nvalues = [\"guard-viewers\"]\n";

    fn parse(text: &str) -> Result<OidcConfig, String> {
        let raw: RawOidc = toml::from_str(text).map_err(|e| e.to_string())?;
        raw.checked(Path::new("/srv/guard"))
    }

    pub(in super::super) fn config(more: &str) -> Result<OidcConfig, String> {
        parse(&format!("issuer = \"https://id.example/work\"\nclient_id = \"guard\"\n{more}\n{ALLOW}"))
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_accepted() {
        let good = config("ca_file = \"id.pem\"").expect("accepted");
        assert_eq!((good.ttl.as_secs(), good.reach), (43_200, Reach::Others));
        assert_eq!(good.ca_file.as_deref(), Some(Path::new("/srv/guard/id.pem")));
        let least = "issuer = \"https://id.example\"\nclient_id = \"g\"\n";
        for (text, words) in [
            (least.to_owned(), "oidc.allow: 1 to 100"),
            (format!("{least}[[allow]]\nrole = \"node\""), "join token"),
            (format!("{least}[[allow]]\nrole = \"viewer\"\nclaim = \"groups\""), "`values`"),
            (format!("{least}[[allow]]\nrole = \"viewer\"\nvalues = [\"a\"]"), "`claim`"),
            (format!("{least}strip_domain = true\n{ALLOW}"), "exactly one"),
            (format!("{least}certificate_seconds = 1\n{ALLOW}"), "60 to 2592000"),
            (format!("{least}scopes = [\"a b\"]\n{ALLOW}"), "one scope"),
            (format!("{least}clientid = \"x\"\n{ALLOW}"), "client_id"),
            (format!("issuer = \"http://id.example\"\nclient_id = \"g\"\n{ALLOW}"), "use https"),
            (format!("issuer = \"https://id.example?x\"\nclient_id = \"g\"\n{ALLOW}"), "a query"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(words), "{text}: {error}");
        }
        let all = parse(&format!("{least}[[allow]]\nrole = \"viewer\"")).expect("everybody, said by name");
        assert_eq!(all.allow, [Allow { role: Role::Viewer, claim: None, values: vec![] }]);
    }
}
