//! The configuration file of `serve` and `reindex`.
//!
//! It must not fall back: unknown keys, wrong types and values out of range refuse the whole file. Relative paths count from
//! the file's folder, so that a collector's folder can be moved whole. Fails: an error that names file and key and says what
//! is accepted.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_log::store::StoreOptions;
use serde::Deserialize;

use crate::alerts::config::{RawWebhook, Webhook, webhooks};
use crate::exit::{CollectorError, Exit, Result};
use crate::oidc::config::{OidcConfig, RawOidc};
use crate::quota::Limits;
use crate::retention::Policy;
use crate::witness::{WithoutQuorum, WitnessConfig};

/// The file that `init` writes.
pub const FILE_NAME: &str = "collector.toml";
/// What `init` writes into it; a test parses it.
pub const DEFAULT: &str = include_str!("../collector.example.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: SocketAddr,
    roles: Option<PathBuf>,
    tls: RawTls,
    log: RawLog,
    index: RawIndex,
    witness: Option<RawWitness>,
    certificates: Option<RawCertificates>,
    oidc: Option<RawOidc>,
    #[serde(default)]
    retention: RawRetention,
    #[serde(default)]
    review: RawReview,
    #[serde(default)]
    node: RawNode,
    #[serde(default)]
    webhook: Vec<RawWebhook>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    dir: PathBuf,
    lock: PathBuf,
    key: PathBuf,
    #[serde(default = "default_segment")]
    segment_bytes: u64,
    #[serde(default = "default_publish")]
    publish_ms: u64,
    #[serde(default = "default_keep")]
    keep_segments_hours: u64,
    #[serde(default = "yes")]
    require_real_disk: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWitness {
    policy: PathBuf,
    #[serde(default = "default_ask")]
    ask_ms: u64,
    #[serde(default)]
    without_quorum: WithoutQuorum,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCertificates {
    ca_key: PathBuf,
    dir: PathBuf,
    enrol_listen: Option<SocketAddr>,
    #[serde(default = "default_node_seconds")]
    node_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIndex {
    file: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRetention {
    entries_days: Option<u64>,
    minimum_records: u64,
}

impl Default for RawRetention {
    fn default() -> Self {
        Self { entries_days: None, minimum_records: 100_000 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawReview {
    approval_seconds: u64,
}

impl Default for RawReview {
    fn default() -> Self {
        Self { approval_seconds: 900 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNode {
    records_per_second: u64,
    bytes_per_second: u64,
}

impl Default for RawNode {
    fn default() -> Self {
        Self { records_per_second: 100_000, bytes_per_second: 256 << 20 }
    }
}

fn default_node_seconds() -> u64 {
    86_400
}

fn default_segment() -> u64 {
    64 << 20
}

fn default_publish() -> u64 {
    200
}

fn default_ask() -> u64 {
    1000
}

fn default_keep() -> u64 {
    168
}

fn yes() -> bool {
    true
}

/// What the running collector issues.
#[derive(Clone, Debug)]
pub struct CertificatesConfig {
    /// PEM file of the CA's key.
    pub ca_key: PathBuf,
    /// Join tokens, and orders of this machine's commands.
    pub dir: PathBuf,
    /// Where hosts enrol, if they can.
    pub enrol_listen: Option<SocketAddr>,
    /// Lifetime of a node's certificate.
    pub node_ttl: Duration,
}

/// The validated form.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder that relative paths count from.
    pub folder: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Who may what, inside what certificates allow; not there: certificates alone say.
    pub roles: Option<PathBuf>,
    /// PEM file of the CA that client certificates must come from.
    pub ca: PathBuf,
    /// PEM file of the server's certificate.
    pub cert: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
    /// The log.
    pub store: StoreOptions,
    /// File of the key that signs checkpoints.
    pub log_key: PathBuf,
    /// How often tiles and checkpoint are published.
    pub publish: Duration,
    /// How long write-ahead segments stay that the public tree holds as well.
    pub keep_segments: Duration,
    /// Who cosigns the log, if anybody.
    pub witness: Option<WitnessConfig>,
    /// What the running collector issues; nothing without it.
    pub certificates: Option<CertificatesConfig>,
    /// How people log in; not there: nobody can.
    pub oidc: Option<OidcConfig>,
    /// The SQLite file.
    pub index: PathBuf,
    /// How long entries of the log stay; not there: for ever.
    pub retention: Option<Policy>,
    /// How long an approval may be used.
    pub approval: Duration,
    /// What one node may send.
    pub quota: Limits,
    /// Who is told of what somebody has to look at.
    pub webhooks: Vec<Webhook>,
}

impl Config {
    /// Reads and validates a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| CollectorError::io(Exit::Config, format_args!("cannot read {}", path.display()), &e))?;
        let base = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, base).map_err(|e| CollectorError::new(Exit::Config, format_args!("{}: {e}", path.display())))
    }

    fn parse(text: &str, base: &Path) -> std::result::Result<Self, String> {
        let raw: Raw = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        let within = |key: &str, value: u64, low: u64, high: u64| match value {
            v if (low..=high).contains(&v) => Ok(v),
            v => Err(format!("{key} = {v}: accepted is {low} to {high}")),
        };
        let at = |path: &Path| base.join(path);
        let store = StoreOptions {
            dir: at(&raw.log.dir),
            lock: at(&raw.log.lock),
            segment_bytes: within("log.segment_bytes", raw.log.segment_bytes, 1 << 20, 1 << 32)?,
            require_real_disk: raw.log.require_real_disk,
        };
        if store.lock.starts_with(&store.dir) {
            return Err(format!(
                "log.lock = {}: lies inside log.dir; a backup of the log must not bring back its lock",
                store.lock.display()
            ));
        }
        let witness = |raw: RawWitness| {
            Ok::<_, String>(WitnessConfig {
                policy: at(&raw.policy),
                every: Duration::from_millis(within("witness.ask_ms", raw.ask_ms, 100, 3_600_000)?),
                without_quorum: raw.without_quorum,
            })
        };
        let certificates = |raw: RawCertificates| {
            Ok::<_, String>(CertificatesConfig {
                ca_key: at(&raw.ca_key),
                dir: at(&raw.dir),
                enrol_listen: raw.enrol_listen,
                node_ttl: Duration::from_secs(within("certificates.node_seconds", raw.node_seconds, 5, 365 * 86_400)?),
            })
        };
        let certificates = raw.certificates.map(certificates).transpose()?;
        let oidc = raw.oidc.map(|oidc| oidc.checked(base)).transpose()?;
        if oidc.is_some() && certificates.as_ref().and_then(|c| c.enrol_listen).is_none() {
            return Err("oidc: people log in at certificates.enrol_listen, which is not set".to_owned());
        }
        let minimum = within("retention.minimum_records", raw.retention.minimum_records, 0, 1 << 48)?;
        let policy =
            |days| Ok::<_, String>(Policy { days: within("retention.entries_days", days, 1, 36_500)?, minimum });
        Ok(Self {
            webhooks: webhooks(raw.webhook, base)?,
            retention: raw.retention.entries_days.map(policy).transpose()?,
            folder: base.to_owned(),
            listen: raw.listen,
            roles: raw.roles.as_deref().map(at),
            ca: at(&raw.tls.ca),
            cert: at(&raw.tls.cert),
            key: at(&raw.tls.key),
            store,
            log_key: at(&raw.log.key),
            publish: Duration::from_millis(within("log.publish_ms", raw.log.publish_ms, 10, 60_000)?),
            keep_segments: Duration::from_secs(
                3600 * within("log.keep_segments_hours", raw.log.keep_segments_hours, 1, 1_000_000)?,
            ),
            witness: raw.witness.map(witness).transpose()?,
            certificates,
            oidc,
            index: at(&raw.index.file),
            quota: Limits {
                records: within("node.records_per_second", raw.node.records_per_second, 100, 100_000_000)?,
                bytes: within("node.bytes_per_second", raw.node.bytes_per_second, 100_000, 1 << 40)?,
            },
            approval: Duration::from_secs(within("review.approval_seconds", raw.review.approval_seconds, 1, 86_400)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Config::parse(text, Path::new("/x")).expect_err("refused")
    }

    #[test]
    fn the_default_file_is_accepted() {
        let config = Config::parse(DEFAULT, Path::new("/srv/guard")).expect("parses");
        assert_eq!(config.listen.to_string(), "127.0.0.1:7443");
        assert_eq!(config.store.dir, Path::new("/srv/guard/data"));
        assert_eq!(config.approval, Duration::from_secs(900));
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let error = refused(&DEFAULT.replace("[review]", "[review]\nspeed = 1"));
        assert!(error.contains("speed") && error.contains("approval_seconds"), "{error}");
    }

    #[test]
    fn values_out_of_range_name_key_and_range() {
        let error = refused(&DEFAULT.replace("publish_ms = 200", "publish_ms = 1"));
        assert_eq!(error, "log.publish_ms = 1: accepted is 10 to 60000");
    }

    #[test]
    fn witnesses_are_a_policy_file_and_what_happens_without_them() {
        let with = |text: &str| Config::parse(&format!("{DEFAULT}\n[witness]\n{text}"), Path::new("/srv/guard"));
        let config = with("policy = \"witnesses\"\nwithout_quorum = \"hold\"").expect("parses").witness.expect("there");
        assert_eq!(config.policy, Path::new("/srv/guard/witnesses"));
        assert_eq!((config.every, config.without_quorum), (Duration::from_secs(1), WithoutQuorum::Hold));
        let error = with("policy = \"witnesses\"\nwithout_quorum = \"wait\"").expect_err("refused");
        assert!(error.contains("go_on") && error.contains("hold"), "{error}");
    }

    #[test]
    fn certificates_are_issued_where_the_cas_key_is_named() {
        let config = Config::parse(DEFAULT, Path::new("/srv/guard")).expect("parses").certificates.expect("there");
        assert_eq!((config.enrol_listen, config.node_ttl), (None, Duration::from_secs(86_400)));
        assert_eq!(config.ca_key, Path::new("/srv/guard/ca/key.pem"));
        let error = refused(&DEFAULT.replace("node_seconds = 86400", "node_seconds = 1"));
        assert_eq!(error, "certificates.node_seconds = 1: accepted is 5 to 31536000");
        let older = DEFAULT.split("[certificates]").next().expect("before");
        let older = format!("{older}[log]{}", DEFAULT.split("[log]").nth(1).expect("after"));
        assert!(Config::parse(&older, Path::new("/x")).expect("parses").certificates.is_none());
    }

    #[test]
    fn people_log_in_where_hosts_enrol() {
        let oidc =
            "[oidc]\nissuer = \"https://id.example\"\nclient_id = \"guard\"\n[[oidc.allow]]\nrole = \"viewer\"\n";
        let error = refused(&format!("{DEFAULT}\n{oidc}"));
        assert!(error.contains("certificates.enrol_listen"), "{error}");
        let listening = DEFAULT.replace("# enrol_listen", "enrol_listen");
        let config = Config::parse(&format!("{listening}\n{oidc}"), Path::new("/x")).expect("parses");
        assert_eq!(config.oidc.expect("there").client_id, "guard");
        // The commented table of the shipped file is a good one.
        let shipped = listening.split("# [oidc]").nth(1).expect("it is there").split("\n\n").next().expect("a part");
        let shipped: String = shipped
            .lines()
            .filter_map(|l| l.strip_prefix("# "))
            .filter(|l| {
                l.starts_with("[[")
                    || l.split_once(" = ")
                        .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
            })
            .map(|l| format!("{l}\n"))
            .collect();
        let config = Config::parse(&format!("{listening}\n[oidc]\n{shipped}"), Path::new("/x")).expect(&shipped);
        assert_eq!(config.oidc.expect("there").allow.len(), 2);
    }

    #[test]
    fn entries_stay_for_ever_unless_a_number_of_days_is_set() {
        let with = |text: &str| Config::parse(&format!("{DEFAULT}\n[retention]\n{text}"), Path::new("/x"));
        assert_eq!(Config::parse(DEFAULT, Path::new("/x")).expect("parses").retention, None);
        assert_eq!(with("minimum_records = 7").expect("parses").retention, None);
        let policy = with("entries_days = 90\nminimum_records = 7").expect("parses").retention;
        assert_eq!(policy, Some(Policy { days: 90, minimum: 7 }));
        let error = with("entries_days = 0").expect_err("refused");
        assert_eq!(error, "retention.entries_days = 0: accepted is 1 to 36500");
        assert!(with("entries_hours = 1").expect_err("refused").contains("entries_days"));
    }

    #[test]
    fn a_lock_inside_the_log_is_refused() {
        let error = refused(&DEFAULT.replace("lock/log", "data/lock"));
        assert!(error.starts_with("log.lock"), "{error}");
    }
}
