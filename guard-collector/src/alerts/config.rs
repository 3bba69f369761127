//! `[[webhook]]` of `collector.toml`: who is told what.
//!
//! It must not accept an address that only a mistake or an attack would name: plain HTTP is for this machine alone, and
//! link-local addresses (where clouds hand out credentials) are for nobody. Fails: an error that names webhook and key and says
//! what is accepted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use super::event::Kind;
use super::secret::Secrets;
use super::where_to::{self, Reach};

/// Receivers.
const WEBHOOKS_MAX: usize = 16;
const NAME_MAX: usize = 32;
const CA_MAX: u64 = 1 << 20;

/// One table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawWebhook {
    name: String,
    url: String,
    secret_file: PathBuf,
    ca_file: Option<PathBuf>,
    kinds: Option<Vec<Kind>>,
    #[serde(default)]
    min_risk: u32,
    #[serde(default = "default_failing")]
    failing_after_seconds: u64,
    #[serde(default = "default_fold")]
    fold_seconds: u64,
}

fn default_failing() -> u64 {
    300
}

fn default_fold() -> u64 {
    60
}

/// One receiver.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Names its cursor; stays when the address changes.
    pub name: String,
    /// Where messages go.
    pub url: Url,
    /// What the address may lead to.
    pub reach: Reach,
    /// File of the secrets that sign.
    pub secret_file: PathBuf,
    /// PEM file of the only authorities that the receiver's certificate may come from; not there: the system's.
    pub ca_file: Option<PathBuf>,
    /// What is told.
    pub kinds: BTreeSet<Kind>,
    /// Denied execs of a lower risk are not told.
    pub min_risk: u32,
    /// Failing for so long is a record.
    pub failing_after: Duration,
    /// Events like one that was told are told together after so long.
    pub fold: Duration,
}

impl Webhook {
    /// The secrets, as they are in the file now.
    pub fn secrets(&self) -> Result<Secrets, String> {
        Secrets::read(&self.secret_file).map_err(|e| format!("webhook {:?}: secret_file: {e}", self.name))
    }

    /// The authorities' certificates, as they are in the file now.
    pub fn authorities(&self) -> Result<Option<Vec<u8>>, String> {
        let read = |path: &PathBuf| {
            let mut text = Vec::new();
            let file = File::open(path).and_then(|file| file.take(CA_MAX).read_to_end(&mut text));
            file.map_err(|e| format!("webhook {:?}: ca_file: {}: {e}", self.name, path.display()))?;
            Ok(text)
        };
        self.ca_file.as_ref().map(read).transpose()
    }

    /// Scheme and host: the rest of an address may be a secret of its own.
    pub fn shown(&self) -> String {
        where_to::shown(&self.url)
    }
}

/// Validates the tables of a file in `base`.
pub fn webhooks(raw: Vec<RawWebhook>, base: &Path) -> Result<Vec<Webhook>, String> {
    if raw.len() > WEBHOOKS_MAX {
        return Err(format!("{} webhooks: at most {WEBHOOKS_MAX} are accepted", raw.len()));
    }
    let mut names = BTreeSet::new();
    raw.into_iter()
        .map(|raw| {
            let name = raw.name.clone();
            if !names.insert(name.clone()) {
                return Err(format!("webhook.name = {name:?}: there are two of that name"));
            }
            one(raw, base).map_err(|e| format!("webhook {name:?}: {e}"))
        })
        .collect()
}

fn one(raw: RawWebhook, base: &Path) -> Result<Webhook, String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if raw.name.is_empty() || raw.name.len() > NAME_MAX || !raw.name.bytes().all(fits) {
        return Err(format!("name: accepted are 1 to {NAME_MAX} lower-case letters, digits and `-`"));
    }
    if raw.kinds.as_ref().is_some_and(Vec::is_empty) {
        return Err("kinds: an empty list tells nothing; leave it out for all of them".to_owned());
    }
    if raw.min_risk > 100 {
        return Err(format!("min_risk = {}: accepted is 0 to 100", raw.min_risk));
    }
    if !(1..=86_400).contains(&raw.failing_after_seconds) {
        return Err(format!("failing_after_seconds = {}: accepted is 1 to 86400", raw.failing_after_seconds));
    }
    if !(1..=3600).contains(&raw.fold_seconds) {
        return Err(format!("fold_seconds = {}: accepted is 1 to 3600", raw.fold_seconds));
    }
    let (url, reach) = where_to::parse(&raw.url).map_err(|e| format!("url: {e}"))?;
    Ok(Webhook {
        name: raw.name,
        url,
        reach,
        secret_file: base.join(raw.secret_file),
        ca_file: raw.ca_file.map(|path| base.join(path)),
        kinds: raw.kinds.map_or_else(|| Kind::ALL.into(), BTreeSet::from_iter),
        min_risk: raw.min_risk,
        failing_after: Duration::from_secs(raw.failing_after_seconds),
        fold: Duration::from_secs(raw.fold_seconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Webhook>, String> {
        #[derive(Deserialize)]
        struct File {
            webhook: Vec<RawWebhook>,
        }
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        webhooks(file.webhook, Path::new("/srv/guard"))
    }

    fn with(more: &str) -> Result<Vec<Webhook>, String> {
        parse(&format!("[[webhook]]\nname = \"siem\"\nsecret_file = \"keys/siem\"\n{more}\n"))
    }

    #[test]
    fn everything_is_told_unless_kinds_are_named() {
        let all = with("url = \"https://siem.example/guard\"").expect("accepted").remove(0);
        assert_eq!((all.kinds.len(), all.min_risk), (Kind::ALL.len(), 0));
        assert_eq!(all.secret_file, Path::new("/srv/guard/keys/siem"));
        assert_eq!(all.shown(), "https://siem.example");
        let some = with("url = \"https://siem.example/\"\nkinds = [\"exec.denied\", \"log.gap\"]\nmin_risk = 70");
        assert_eq!(some.expect("accepted").remove(0).kinds, BTreeSet::from([Kind::ExecDenied, Kind::LogGap]));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_accepted() {
        let url = "url = \"https://siem.example/\"";
        for (text, words) in [
            (format!("{url}\nkinds = [\"exec.allowed\"]"), "exec.denied"),
            (format!("{url}\nkinds = []"), "leave it out"),
            (format!("{url}\nmin_risk = 101"), "0 to 100"),
            (format!("{url}\nfailing_after_seconds = 0"), "1 to 86400"),
            (format!("{url}\nfold_seconds = 3601"), "1 to 3600"),
            (format!("{url}\nretries = 3"), "failing_after_seconds"),
            ("url = \"http://siem.example/\"".to_owned(), "https"),
        ] {
            let error = with(&text).expect_err("refused");
            assert!(error.contains(words), "{text}: {error}");
        }
        let two = "[[webhook]]\nname = \"a\"\nurl = \"https://x.example/\"\nsecret_file = \"s\"\n".repeat(2);
        assert!(parse(&two).expect_err("refused").contains("two of that name"));
        let path = two.replace("\"a\"", "\"../a\"");
        assert!(parse(&path).expect_err("refused").contains("lower-case letters"));
    }
}
