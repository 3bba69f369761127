//! The daemon's configuration file: typed, complete, refused whole when a line of it is wrong.
//!
//! It must not touch what it names. Fails: the message says file, line, key and what to do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_log::note::Verifier;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::backoff::Pauses;
use crate::certificate::Files;
use crate::credentials::config::CredentialsConfig;
use crate::expiry::OnExpiry;
use crate::longlived::OnLongLived;
use crate::profile::Profiles;

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not what it must be.
    #[error("configuration {path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column, key and cause, as the parser says them.
        reason: String,
    },
    /// A value is out of its bounds.
    #[error("configuration {path}: {key}: {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong and what is right.
        reason: String,
    },
}

/// All of it. Tables that may be left out have the defaults that deploy/agent.toml shows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host.
    pub node: NodeConfig,
    /// Where records go.
    pub collector: CollectorConfig,
    /// What is allowed.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// Who may request what.
    #[serde(default)]
    pub roles: RolesConfig,
    /// Detection rules.
    #[serde(default)]
    pub sigma: SigmaConfig,
    /// Kernel side.
    #[serde(default)]
    pub kernel: KernelConfig,
    /// Holding and review.
    #[serde(default)]
    pub hold: HoldConfig,
    /// Whose decisions count, and when nobody is asked.
    #[serde(default)]
    pub reviews: ReviewsConfig,
    /// Sessions.
    #[serde(default)]
    pub session: SessionConfig,
    /// What sessions may do beside exec, by name of the profile.
    #[serde(default, rename = "profile")]
    pub profiles: Profiles,
    /// Names and files that governed tasks may not change, or not read, beside those that are built in.
    #[serde(default)]
    pub protect: Vec<crate::protect::ProtectConfig>,
    /// Where credentials of sessions come from; none are given without it.
    pub credentials: Option<CredentialsConfig>,
    /// The journal.
    #[serde(default)]
    pub journal: JournalConfig,
    /// The control socket.
    #[serde(default)]
    pub control: ControlConfig,
    /// The supervisor.
    #[serde(default)]
    pub supervisor: SupervisorConfig,
}

/// This host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Name shown to people; the certificate's name is what counts.
    pub name: String,
    /// Host id and open sessions are kept here.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
}

fn state_dir() -> PathBuf {
    "/var/lib/guard/agent".into()
}

/// The collector and this node's certificate for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectorConfig {
    /// `https://host:port`.
    pub address: String,
    /// PEM file of the authority that signed the collector's certificate.
    pub ca: PathBuf,
    /// PEM file of this node's certificate.
    pub cert: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
    /// Verifier key of the collector's log, `name+id+base64`. Without it the key that is met first is kept.
    pub log_vkey: Option<String>,
    /// Verifier key of the admin key that signs for a successor of the log. Without it no successor is believed.
    pub admin_vkey: Option<String>,
    /// TOML file with those two keys, which `guard-agent enroll` writes; where they stand here too, these count.
    pub pins: Option<PathBuf>,
}

/// What stands in the file of pins.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Pins {
    /// Verifier key of the collector's log.
    pub log_vkey: Option<String>,
    /// Verifier key of the key that signs for a successor of it.
    pub admin_vkey: Option<String>,
}

impl CollectorConfig {
    /// This node's certificate and key.
    pub fn files(&self) -> Files {
        Files { cert: self.cert.clone(), key: self.key.clone() }
    }

    /// With what the file of pins says beside it.
    pub fn pinned(&self) -> Result<Self, String> {
        const FILE_MAX: u64 = 64 << 10;
        let Some(path) = &self.pins else { return Ok(self.clone()) };
        let text = guard_log::frame::read_text(path, FILE_MAX).map_err(|e| {
            format!(
                "collector.pins: {}: {e}; `guard-agent enroll` writes it; a host that does not enrol has no such key",
                path.display()
            )
        })?;
        let pins: Pins = toml::from_str(&text).map_err(|e| format!("collector.pins: {}: {e}", path.display()))?;
        let (log_vkey, admin_vkey) = (self.log_vkey.clone(), self.admin_vkey.clone());
        let pinned =
            Self { log_vkey: log_vkey.or(pins.log_vkey), admin_vkey: admin_vkey.or(pins.admin_vkey), ..self.clone() };
        pinned.log_key()?;
        pinned.admin_key()?;
        Ok(pinned)
    }

    /// The pinned key of the log.
    pub fn log_key(&self) -> Result<Option<Verifier>, String> {
        self.log_vkey.as_deref().map(Verifier::parse).transpose().map_err(|e| format!("collector.log_vkey: {e}"))
    }

    /// The key that signs for a successor of the log.
    pub fn admin_key(&self) -> Result<Option<Verifier>, String> {
        self.admin_vkey.as_deref().map(Verifier::parse).transpose().map_err(|e| format!("collector.admin_vkey: {e}"))
    }
}

/// Policy files; none means the built-in policy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// Read in this order.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// Whether signed bundles from the collector take their place.
    #[serde(default)]
    pub from_collector: bool,
}

/// Sigma rules that execs are matched against.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigmaConfig {
    /// Files, or folders with `.yml` and `.yaml` files in them and below.
    #[serde(default)]
    pub paths: Vec<PathBuf>,
    /// A match of this level or a graver one makes a person decide what would run by itself.
    pub review_from: Option<guard_sigma::Level>,
}

/// The role file; none means that no roles are in force.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolesConfig {
    /// The file.
    pub file: Option<PathBuf>,
    /// No session starts or is renewed when the collector has not confirmed for so long that the host has the newest signed roles;
    /// without it there is no such limit.
    pub max_age_seconds: Option<u64>,
}

/// What the kernel programs do.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Deny by default.
    Enforce,
    /// Judge and record, deny nothing.
    Observe,
}

/// Kernel side.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KernelConfig {
    /// Enforce or observe.
    pub mode: Mode,
    /// Folder below the BPF file system.
    pub pin_dir: PathBuf,
    /// Guard's own cgroup v2 folder.
    pub cgroup: PathBuf,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self { mode: Mode::Enforce, pin_dir: guard_common::PIN_DIR.into(), cgroup: "/sys/fs/cgroup/guard".into() }
    }
}

/// Holding and review.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HoldConfig {
    /// Longest time an exec is held for a person; then it gets `EPERM` while its request stays open.
    pub max_seconds: u64,
    /// Time after which an open request is denied.
    pub review_deadline_seconds: u64,
    /// Time that a request waits for an unreachable collector before it is refused.
    pub collector_grace_seconds: u64,
}

impl Default for HoldConfig {
    fn default() -> Self {
        Self { max_seconds: 20, review_deadline_seconds: 300, collector_grace_seconds: 5 }
    }
}

/// When an approval needs a reviewer's own signature.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Signed {
    /// As soon as the role file names any reviewer's key.
    #[default]
    WithKeys,
    /// Always: without a key in the role file nothing is approved.
    Required,
}

/// Whose decisions count, and when nobody is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReviewsConfig {
    /// When an approval needs a signature.
    pub signed: Signed,
    /// Denials of the same after which nobody is asked for a while; 0: never.
    pub denials_before_pause: u32,
    /// How long the first time.
    pub pause_seconds: u64,
    /// How long at most: each pause is twice as long as the one before.
    pub pause_max_seconds: u64,
}

impl Default for ReviewsConfig {
    fn default() -> Self {
        Self { signed: Signed::default(), denials_before_pause: 3, pause_seconds: 60, pause_max_seconds: 3600 }
    }
}

impl ReviewsConfig {
    /// When to pause.
    pub fn pauses(&self) -> Pauses {
        let (first, longest) = (Duration::from_secs(self.pause_seconds), Duration::from_secs(self.pause_max_seconds));
        Pauses { denials: self.denials_before_pause, first, longest }
    }
}

impl Config {
    /// Name and content of the profile that an agent's sessions have.
    pub fn profile(&self, agent: &str) -> (String, crate::profile::Profile) {
        let name = self.session.profiles.get(agent).map_or(crate::profile::DEFAULT, String::as_str);
        // `check` has seen that the name is known.
        (name.to_owned(), self.profiles.get(name).unwrap_or_default())
    }
}

impl HoldConfig {
    /// Longest hold.
    pub fn max(&self) -> Duration {
        Duration::from_secs(self.max_seconds)
    }
}

/// Sessions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// Life of a session that asks for no other.
    pub default_ttl_seconds: u64,
    /// Longest life.
    pub max_ttl_seconds: u64,
    /// Longest life with all renewals, in seconds; without it `max_ttl_seconds`.
    pub max_life_seconds: Option<u64>,
    /// What becomes of its processes when a session's life is over.
    pub on_expiry: OnExpiry,
    /// After how many seconds.
    pub expiry_grace_seconds: u64,
    /// What is done about keys without an end in environment and home folder.
    pub long_lived: OnLongLived,
    /// Environment variables that pass from the initiator into the session. A `*` at the end stands for any rest.
    pub env_keep: Vec<String>,
    /// Root may start sessions that run as root.
    pub allow_root: bool,
    /// Users who may start sessions for others, where no roles are in force.
    pub may_start_for_others: BTreeSet<String>,
    /// Set-user-id programs gain nothing inside.
    pub no_new_privs: bool,
    /// Sessions open at the same time.
    pub max_sessions: usize,
    /// Execs of one session that wait for a person at the same time; more are denied. Others wait in the kernel, for their
    /// turn.
    pub max_held: usize,
    /// Profile by name of the agent; others have the profile `default`.
    pub profiles: std::collections::BTreeMap<String, String>,
}

impl Default for SessionConfig {
    fn default() -> Self {
        let keep =
            ["PATH", "LANG", "LC_*", "LANGUAGE", "TERM", "COLORTERM", "TZ", "EDITOR", "VISUAL", "NO_COLOR", "CI"];
        Self {
            default_ttl_seconds: 900,
            max_ttl_seconds: 8 * 3600,
            max_life_seconds: None,
            on_expiry: OnExpiry::Kill,
            expiry_grace_seconds: 0,
            long_lived: OnLongLived::Record,
            env_keep: keep.iter().map(|s| (*s).to_owned()).collect(),
            allow_root: false,
            may_start_for_others: BTreeSet::new(),
            no_new_privs: true,
            max_sessions: 64,
            max_held: 64,
            profiles: std::collections::BTreeMap::new(),
        }
    }
}

impl SessionConfig {
    /// Longest life with all renewals, in seconds.
    pub fn max_life_seconds(&self) -> u64 {
        self.max_life_seconds.unwrap_or(self.max_ttl_seconds)
    }
}

/// The journal.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JournalConfig {
    /// Its folder, on a real disk.
    pub dir: PathBuf,
    /// Most MiB of records: those that are not yet acknowledged and, where there is room beside them, those that are kept.
    pub max_mib: u64,
    /// How long records stay after they were acknowledged, in hours: a successor of the log may lack them.
    pub keep_hours: u64,
    /// Records a second that one session may cause at will; more are folded, with their count.
    pub session_records_per_second: u64,
    /// Part of what is free, in per cent, that records of one session which are not acknowledged may take.
    pub session_percent: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            dir: "/var/lib/guard/journal".into(),
            max_mib: 1024,
            keep_hours: 72,
            session_records_per_second: 50,
            session_percent: 25,
        }
    }
}

/// The control socket.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// Its path.
    pub socket: PathBuf,
    /// Group whose members may connect.
    pub group: String,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self { socket: guard_proto::CONTROL_SOCKET.into(), group: "guard".into() }
    }
}

/// The supervisor.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SupervisorConfig {
    /// A daemon that is silent for this long is killed and started again.
    pub heartbeat_seconds: u64,
}

impl Default for SupervisorConfig {
    fn default() -> Self {
        Self { heartbeat_seconds: 5 }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.to_path_buf(), reason: error.to_string() })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let wrong = |key, reason: String| Err(ConfigError::Value { path: path.to_path_buf(), key, reason });
        let within = |key, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                wrong(key, format!("{value} is not between {low} and {high}"))
            }
        };
        if self.node.name.is_empty() || self.node.name.len() > 253 {
            return wrong("node.name", "must have 1 to 253 characters".into());
        }
        if !self.collector.address.starts_with("https://") {
            return wrong("collector.address", format!("`{}` must start with https://", self.collector.address));
        }
        if self.collector.cert == self.collector.key {
            return wrong("collector.key", "must be another file than collector.cert".into());
        }
        within("hold.max_seconds", self.hold.max_seconds, 1, 300)?;
        within("hold.review_deadline_seconds", self.hold.review_deadline_seconds, 1, 86_400)?;
        within("hold.collector_grace_seconds", self.hold.collector_grace_seconds, 0, 300)?;
        within("reviews.denials_before_pause", self.reviews.denials_before_pause.into(), 0, 1000)?;
        within("reviews.pause_seconds", self.reviews.pause_seconds, 1, 86_400)?;
        within("reviews.pause_max_seconds", self.reviews.pause_max_seconds, self.reviews.pause_seconds, 86_400)?;
        within("session.max_ttl_seconds", self.session.max_ttl_seconds, 1, 7 * 86_400)?;
        within("session.default_ttl_seconds", self.session.default_ttl_seconds, 1, self.session.max_ttl_seconds)?;
        within("session.max_life_seconds", self.session.max_life_seconds(), self.session.max_ttl_seconds, 30 * 86_400)?;
        within("session.expiry_grace_seconds", self.session.expiry_grace_seconds, 0, 300)?;
        within("session.max_sessions", self.session.max_sessions as u64, 1, 1000)?;
        within("session.max_held", self.session.max_held as u64, 1, 4096)?;
        if let Some((agent, name)) = self.session.profiles.iter().find(|(_, name)| self.profiles.get(name).is_none()) {
            return wrong(
                "session.profiles",
                format!("agent `{agent}` has profile `{name}`, but there is no [profile.{name}]"),
            );
        }
        if let Err(reason) = self.collector.log_key() {
            return wrong("collector.log_vkey", reason);
        }
        if let Err(reason) = self.collector.admin_key() {
            return wrong("collector.admin_vkey", reason);
        }
        if self.policy.from_collector && self.collector.admin_vkey.is_none() && self.collector.pins.is_none() {
            let reason =
                "bundles count by the admin key's signature alone: set collector.admin_vkey, or collector.pins";
            return wrong("policy.from_collector", reason.into());
        }
        if let Some(age) = self.roles.max_age_seconds {
            within("roles.max_age_seconds", age, 10, 30 * 86_400)?;
            if !self.policy.from_collector {
                let reason = "only roles that come in signed bundles have an age: set policy.from_collector too";
                return wrong("roles.max_age_seconds", reason.into());
            }
        }
        if let Err(reason) = crate::network::check(&self.profiles, &self.control.socket) {
            return wrong("profile", reason);
        }
        if let Err(reason) = crate::reach::Reach::new(self) {
            return wrong("collector.address", reason);
        }
        if let Err(reason) = crate::protect::rules(self) {
            return wrong("protect", reason);
        }
        if let Some(Err(reason)) = self.credentials.as_ref().map(CredentialsConfig::check) {
            return wrong("credentials", reason);
        }
        within("journal.max_mib", self.journal.max_mib, 4, 1 << 20)?;
        within("journal.keep_hours", self.journal.keep_hours, 0, 8760)?;
        within("journal.session_records_per_second", self.journal.session_records_per_second, 1, 10_000)?;
        within("journal.session_percent", self.journal.session_percent, 1, 100)?;
        self.check_maps(path)?;
        within("supervisor.heartbeat_seconds", self.supervisor.heartbeat_seconds, 2, 60)?;
        for (key, value) in [
            ("node.state_dir", &self.node.state_dir),
            ("kernel.pin_dir", &self.kernel.pin_dir),
            ("kernel.cgroup", &self.kernel.cgroup),
            ("journal.dir", &self.journal.dir),
            ("control.socket", &self.control.socket),
        ] {
            if !value.is_absolute() {
                return wrong(key, format!("{} must be an absolute path", value.display()));
            }
        }
        Ok(())
    }
}

impl Config {
    /// However many processes sessions have and execs wait, the kernel's maps must have room for all.
    fn check_maps(&self, path: &Path) -> Result<(), ConfigError> {
        let sessions = self.session.max_sessions as u64;
        let standard = self.profiles.get(crate::profile::DEFAULT);
        let processes = self.profiles.all().chain(&standard).map(|p| p.max_processes).max().unwrap_or_default();
        let wrong = |key, reason| Err(ConfigError::Value { path: path.to_path_buf(), key, reason });
        let most = u64::from(guard_common::MARKS_MAX) / sessions;
        if processes < 8 || processes > most {
            let reason = format!("{processes} is not between 8 and {most}, for session.max_sessions = {sessions}");
            return wrong("profile.max_processes", reason);
        }
        // Being decided, and granted but not yet started.
        let most = u64::from(guard_common::GRANTS_MAX) / 2 / sessions;
        if self.session.max_held as u64 > most {
            let reason =
                format!("{} is more than {most}, for session.max_sessions = {sessions}", self.session.max_held);
            return wrong("session.max_held", reason);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "[node]\nname='n'\n[collector]\naddress='https://c:1'\nca='/a'\ncert='/b'\nkey='/c'\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/guard/agent.toml"), text)
    }

    #[test]
    fn little_is_needed() {
        let config = parse(LEAST).unwrap();
        assert_eq!((config.kernel.mode, config.hold.max_seconds), (Mode::Enforce, 20));
    }

    #[test]
    fn agents_have_profiles_by_name() {
        let strict = "[session.profiles]\ncoder = 'strict'\n[profile.strict]\nmemory_exec = 'deny'\n";
        let config = parse(&format!("{LEAST}{strict}")).unwrap();
        assert_eq!(config.profile("coder").1.memory_exec, crate::profile::Treat::Deny);
        assert_eq!(config.profile("other"), ("default".into(), crate::profile::Profile::default()));
        let text = parse(&format!("{LEAST}[session.profiles]\ncoder = 'strikt'\n")).unwrap_err().to_string();
        assert!(text.contains("no [profile.strikt]"), "{text}");
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let text = parse(&format!("{LEAST}[hold]\nmaks = 3\n")).unwrap_err().to_string();
        assert!(text.contains("/etc/guard/agent.toml") && text.contains("maks") && text.contains("line 9"), "{text}");
        let text = parse(&format!("{LEAST}[hold]\nmax_seconds = 0\n")).unwrap_err().to_string();
        assert!(text.contains("hold.max_seconds: 0 is not between 1 and 300"), "{text}");
    }

    #[test]
    fn sessions_together_fit_into_the_kernels_maps() {
        let text = parse(&format!("{LEAST}[profile.big]\nmax_processes = 2000\n")).unwrap_err().to_string();
        assert!(text.contains("profile.max_processes: 2000 is not between 8 and 1024"), "{text}");
        assert!(parse(&format!("{LEAST}[session]\nmax_sessions = 8\n[profile.big]\nmax_processes = 8000\n")).is_ok());
        assert!(parse(&format!("{LEAST}[session]\nmax_held = 100\n")).is_err());
    }

    #[test]
    fn the_shipped_file_is_the_defaults() {
        let shipped = parse(include_str!("../../deploy/agent.toml")).unwrap();
        let least = parse(LEAST).unwrap();
        assert_eq!(format!("{:?}", shipped.hold), format!("{:?}", least.hold));
        assert_eq!(format!("{:?}", shipped.reviews), format!("{:?}", least.reviews));
        assert_eq!(format!("{:?}", shipped.session), format!("{:?}", least.session));
        assert_eq!(shipped.profile("any"), least.profile("any"));
        assert_eq!(format!("{:?}", shipped.kernel), format!("{:?}", least.kernel));
        assert_eq!(format!("{:?}", shipped.journal), format!("{:?}", least.journal));
        assert_eq!(shipped.profiles.get("default"), least.profiles.get("default"));
    }
}
