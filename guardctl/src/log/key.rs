//! Which verifier key a log is held to: named by the caller, else by the configuration, else the one kept from first use.
//!
//! It must not take a new key where one is known. Fails: a `config` error that says where a key can be named.

use guard_log::note::Verifier;
use guard_proto::v1::StatusRequest;

use crate::client::{self, Client};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::log::state::State;
use crate::output;
use crate::text::escape_str;

/// A key and where it comes from.
#[derive(Debug)]
pub struct Key {
    /// The key.
    pub verifier: Verifier,
    /// `argument`, `configuration`, `state` or `first use`.
    pub from: &'static str,
}

/// The key for the collector's log. At first use the collector is believed, once, and that is said.
pub async fn of_collector(
    named: Option<&str>,
    config: &Config,
    state: &State,
    address: &str,
    client: &mut Client,
) -> Result<Key> {
    let known = state.get(address).map(|known| known.vkey.as_str());
    if let Some(key) = chosen(named, config, known)? {
        return Ok(key);
    }
    let vkey = client.status(StatusRequest {}).await.map_err(client::refused)?.into_inner().log_vkey;
    let key = Key { verifier: parse(&vkey, "the collector's answer")?, from: "first use" };
    output::note(&format!(
        "guardctl: first use of this log; its key is kept: {}\n  hint: compare it with the operator's and pin it as `log_vkey`",
        escape_str(&vkey)
    ));
    Ok(key)
}

/// The key for an exported log of this name.
pub fn of_folder(named: Option<&str>, config: &Config, state: &State, origin: &str) -> Result<Key> {
    find(named, config, state, origin)?.ok_or_else(|| {
        CliError::new(Exit::Config, format_args!("no verifier key for the log {origin:?}"))
            .hint("name it with --vkey or as `log_vkey` in the configuration; `guardctl status` prints it")
    })
}

/// The same, where it may do without.
pub fn find(named: Option<&str>, config: &Config, state: &State, origin: &str) -> Result<Option<Key>> {
    let known = state.all().map(|known| known.vkey.as_str()).find(|v| v.split('+').next() == Some(origin));
    chosen(named, config, known)
}

/// The admin key: named by the caller, else by the configuration.
pub fn admin(named: Option<&str>, config: &Config) -> Result<Option<Verifier>> {
    match (named, config.admin_vkey.as_deref()) {
        (Some(vkey), _) => parse(vkey, "--admin-vkey").map(Some),
        (None, Some(vkey)) => parse(vkey, "`admin_vkey` of the configuration").map(Some),
        (None, None) => Ok(None),
    }
}

fn chosen(named: Option<&str>, config: &Config, known: Option<&str>) -> Result<Option<Key>> {
    let (vkey, from, place) = match (named, config.log_vkey.as_deref(), known) {
        (Some(vkey), ..) => (vkey, "argument", "--vkey"),
        (None, Some(vkey), _) => (vkey, "configuration", "`log_vkey` of the configuration"),
        (None, None, Some(vkey)) => (vkey, "state", "the state file"),
        (None, None, None) => return Ok(None),
    };
    Ok(Some(Key { verifier: parse(vkey, place)?, from }))
}

fn parse(vkey: &str, place: &str) -> Result<Verifier> {
    Verifier::parse(vkey).map_err(|e| CliError::new(Exit::Config, format_args!("{place}: {e}")))
}
