//! The configuration file: where the collector is, which certificate to show it, and where the daemon's socket is.
//!
//! It must not fall back silently: a file that is named or found is used whole or refused with its position. Fails: a
//! [`CliError`] of kind `config` that names the file, the key and what is accepted.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::exit::{CliError, Exit, Result};

/// The commented example that is shipped; a test parses it.
#[cfg(test)]
const EXAMPLE: &str = include_str!("../guardctl.example.toml");

/// What the file may hold; unknown keys are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the collector, `https://HOST:PORT`.
    pub collector: Option<String>,
    /// Where the collector lets people log in, `HOST:PORT`; not there: port 7444 of the collector's host.
    pub login: Option<String>,
    /// PEM file of the CA that signed the collector's certificate.
    pub ca: Option<PathBuf>,
    /// PEM file of the caller's certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of the caller's key.
    pub key: Option<PathBuf>,
    /// Verifier key of the log. Without it the first key seen is kept in the state file.
    pub log_vkey: Option<String>,
    /// Verifier key of the admin key, which signs for a successor of the log.
    pub admin_vkey: Option<String>,
    /// Path of the daemon's control socket.
    pub socket: Option<PathBuf>,
    /// Where the last verified checkpoint is kept.
    pub state: Option<PathBuf>,
    /// File of the key that signs the caller's decisions.
    pub review_key: Option<PathBuf>,
}

impl Config {
    /// Reads the file that `explicit` names, else the first that exists of `$GUARDCTL_CONFIG`,
    /// `~/.config/guard/guardctl.toml` and `/etc/guard/guardctl.toml`; no file at all gives the defaults.
    pub fn load(explicit: Option<&Path>) -> Result<Config> {
        if let Some(path) = explicit {
            return Config::read(path);
        }
        if let Some(path) = env::var_os("GUARDCTL_CONFIG").filter(|p| !p.is_empty()) {
            return Config::read(Path::new(&path));
        }
        let home = home_dir().map(|h| h.join(".config/guard/guardctl.toml"));
        for path in home.into_iter().chain([PathBuf::from("/etc/guard/guardctl.toml")]) {
            match fs::metadata(&path) {
                Ok(_) => return Config::read(&path),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(CliError::new(Exit::Config, format_args!("{}: {e}", path.display()))),
            }
        }
        Ok(Config::default())
    }

    fn read(path: &Path) -> Result<Config> {
        let text = fs::read_to_string(path)
            .map_err(|e| CliError::new(Exit::Config, format_args!("cannot read {}: {e}", path.display())))?;
        let mut config = Config::parse(&text).map_err(|e| {
            CliError::new(Exit::Config, format_args!("{}: {}", path.display(), e.message)).hint(
                "keys are collector, login, ca, cert, key, log_vkey, admin_vkey, socket, state and review_key; see guardctl.example.toml for each",
            )
        })?;
        // Relative names count from the file that holds them, so that a folder of certificates can be moved whole.
        let base = path.parent().unwrap_or(Path::new("."));
        let names = [
            &mut config.ca,
            &mut config.cert,
            &mut config.key,
            &mut config.socket,
            &mut config.state,
            &mut config.review_key,
        ];
        for name in names.into_iter().flatten() {
            *name = base.join(&*name);
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Config> {
        let config: Config = toml::from_str(text).map_err(|e| CliError::new(Exit::Config, e.to_string().trim_end()))?;
        if let Some(url) = &config.collector
            && !url.starts_with("https://")
        {
            return Err(CliError::new(
                Exit::Config,
                format_args!("collector = {url:?}: accepted is \"https://HOST:PORT\"; no call is made without TLS"),
            ));
        }
        Ok(config)
    }

    /// The state file: from the configuration, else under `$XDG_STATE_HOME` or `~/.local/state`.
    pub fn state_path(&self) -> Result<PathBuf> {
        if let Some(path) = &self.state {
            return Ok(path.clone());
        }
        let base = env::var_os("XDG_STATE_HOME")
            .filter(|p| !p.is_empty())
            .map(PathBuf::from)
            .or_else(|| home_dir().map(|h| h.join(".local/state")))
            .ok_or_else(|| {
                CliError::new(Exit::Config, "no home folder to keep the verified checkpoint in").hint("set `state`")
            })?;
        Ok(base.join("guard/guardctl-state.json"))
    }

    /// The file of the caller's key for decisions: from the configuration, else beside the state file.
    pub fn review_key_path(&self) -> Result<PathBuf> {
        match &self.review_key {
            Some(path) => Ok(path.clone()),
            None => Ok(self.state_path()?.with_file_name("review.key")),
        }
    }

    /// The file of what `guardctl login` got: beside the state file.
    pub fn login_path(&self) -> Result<PathBuf> {
        Ok(self.state_path()?.with_file_name("login.pem"))
    }

    /// The daemon's control socket.
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| PathBuf::from(guard_proto::CONTROL_SOCKET))
    }
}

fn home_dir() -> Option<PathBuf> {
    env::var_os("HOME").filter(|h| !h.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_example_is_valid() {
        let config = Config::parse(EXAMPLE).expect("the example parses");
        assert_eq!(config.collector.as_deref(), Some("https://localhost:7443"));
        assert!(config.ca.is_some() && config.cert.is_some() && config.key.is_some() && config.socket.is_some());
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let error = Config::parse("collector = \"https://localhost:7443\"\ncolector = 1\n").expect_err("unknown key");
        assert_eq!(error.kind, Exit::Config);
        assert!(error.message.contains("line 2") && error.message.contains("colector"), "{}", error.message);
    }

    #[test]
    fn a_collector_without_tls_is_refused() {
        let error = Config::parse("collector = \"http://localhost:7443\"").expect_err("no TLS");
        assert!(error.message.contains("https://HOST:PORT"), "{}", error.message);
    }

    #[test]
    fn relative_paths_count_from_the_file() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let file = dir.path().join("guardctl.toml");
        fs::write(&file, "ca = \"ca.pem\"\ncert = \"/abs/cert.pem\"\n").expect("written");
        let config = Config::load(Some(&file)).expect("loads");
        assert_eq!(config.ca, Some(dir.path().join("ca.pem")));
        assert_eq!(config.cert, Some(PathBuf::from("/abs/cert.pem")));
    }
}
