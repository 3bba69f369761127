//! `guardctl policy sign | bundle | publish`: signed policy bundles, from the files to the hosts.
//!
//! It must not sign what does not load: a bundle that every host refuses helps nobody. The admin key is read here and goes nowhere
//! else; signing needs no collector and may be done on another machine. Fails: 78 when a file is no policy, no bundle or no
//! key, with the place; what the collector refuses is said in its words.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use guard_bundle::{Bundle, POLICY, ROLES, Stage};
use guard_log::frame;
use guard_log::note::Verifier;
use guard_log::signer::KeyFile;
use guard_policy::roles::{Known, Roles};
use guard_policy::{Policy, Source};
use guard_proto::v1::{GetPolicyRequest, PolicyBundle, PublishPolicyRequest};
use prost::Message;
use serde_json::{Value, json};

use super::{Texts, refused};
use crate::client;
use crate::config::Config;
use crate::duration;
use crate::exit::{CliError, Exit, Result};
use crate::log;
use crate::output::Out;
use crate::text::escape_str;
use crate::time;

/// Longest bundle that is read.
const FILE_MAX: u64 = 4 << 20;

/// Arguments of `policy sign`.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// Policy files, in the order in which the daemon reads them
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The role file that goes with them [default: hosts keep their own]
    #[arg(long, value_name = "FILE")]
    pub roles: Option<PathBuf>,
    /// The admin key, which `guard-collector init` made
    #[arg(long, value_name = "FILE")]
    pub admin_key: PathBuf,
    /// Number of the bundle; hosts take none that is not higher than the one they have [default: seconds since 1970]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub serial: Option<u64>,
    /// How far it counts for an agent: `coder=observe:14d` (verdicts are recorded, what they deny RUNS, for so long),
    /// `coder=shadow`, `*=enforce`; for agents not named `*` holds [default: *=enforce]
    #[arg(long = "stage", value_name = "AGENT=STAGE", value_parser = stage)]
    pub stages: Vec<(String, Wish)>,
    /// Where the bundle is written
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
}

/// Arguments of `policy bundle`.
#[derive(Debug, Args)]
pub struct BundleArgs {
    /// A bundle [default: the collector's newest]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Verifier key of the admin key [default: `admin_vkey` of the configuration]
    #[arg(long, value_name = "KEY")]
    pub admin_vkey: Option<String>,
    /// Write its files to this new folder
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

/// A stage as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// For so long from now on.
    Observe(Duration),
    /// Beside what counts.
    Shadow,
    /// It counts.
    Enforce,
}

impl Wish {
    fn stage(self, now_unix: u64) -> Stage {
        match self {
            Self::Observe(time) => Stage::Observe { until_unix: now_unix.saturating_add(time.as_secs()) },
            Self::Shadow => Stage::Shadow,
            Self::Enforce => Stage::Enforce,
        }
    }
}

fn stage(text: &str) -> std::result::Result<(String, Wish), String> {
    let (agent, word) = text.split_once('=').ok_or("of the form AGENT=STAGE")?;
    let wish = match word.split_once(':') {
        None if word == "shadow" => Wish::Shadow,
        None if word == "enforce" => Wish::Enforce,
        Some(("observe", time)) => Wish::Observe(duration::parse(time).map_err(|e| format!("{word:?}: {e}"))?),
        _ => {
            return Err(format!("stage {word:?}: accepted are observe:TIME (such as observe:14d), shadow and enforce"));
        }
    };
    Ok((agent.to_owned(), wish))
}

fn wrong(path: &Path, error: &dyn std::fmt::Display) -> CliError {
    CliError::new(Exit::Config, format_args!("{}: {error}", path.display()))
}

/// `guardctl policy sign`.
pub fn sign(args: &SignArgs, out: &Out) -> Result<()> {
    let texts = Texts::read(&args.files)?;
    let policy = Policy::load(&texts.sources()).map_err(|e| refused(&e))?;
    let mut files = named(texts)?;
    if let Some(path) = &args.roles {
        let text = frame::read_text(path, FILE_MAX).map_err(|e| wrong(path, &e))?;
        let source = Source { name: &path.display().to_string(), text: &text };
        Roles::load(&source, Known::Only(&policy.categories())).map_err(|e| wrong(path, &e))?;
        files.push((ROLES.to_owned(), text));
    }
    let key =
        KeyFile::read(&args.admin_key).map_err(|e| CliError::new(Exit::Config, format_args!("--admin-key: {e}")))?;
    let now = u64::try_from(time::now_ns() / 1_000_000_000).unwrap_or_default();
    let mut stages: Vec<_> = args.stages.iter().map(|(agent, wish)| (agent.clone(), wish.stage(now))).collect();
    if !stages.iter().any(|(agent, _)| agent == "*") {
        stages.insert(0, ("*".to_owned(), Stage::Enforce));
    }
    let bundle = Bundle::sign(args.serial.unwrap_or(now), now, stages, files, &key)
        .map_err(|e| CliError::new(Exit::Usage, e))?;
    write_new(&args.to, &bundle.bytes().encode_to_vec())?;
    if out.is_json() {
        return out.json(&described(&bundle));
    }
    let observed = bundle.manifest().observed(now).map(|(agent, until)| {
        format!("WHAT AGENT {agent} DOES IS ONLY RECORDED until {}: what is denied runs\n", seconds(until))
    });
    out.print(&format!(
        "bundle {} written to {}: {} rules; `guardctl policy publish {}` hands it to the hosts\n{}",
        bundle.manifest().serial(),
        args.to.display(),
        policy.rule_count(),
        args.to.display(),
        observed.collect::<String>()
    ))
}

fn seconds(unix: u64) -> String {
    time::date_time(i64::try_from(unix).unwrap_or(i64::MAX).saturating_mul(1_000_000_000))
}

/// Files by their name in the bundle, which is that of the file without its folder.
fn named(texts: Texts) -> Result<Vec<(String, String)>> {
    let mut seen = BTreeMap::new();
    let mut files = Vec::new();
    for (path, text) in texts.0 {
        let name = Path::new(&path).file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if let Some(other) = seen.insert(name.to_owned(), path.clone()) {
            return Err(CliError::new(
                Exit::Usage,
                format_args!("{other} and {path} would have one name in the bundle"),
            )
            .hint("rename one of them"));
        }
        files.push((format!("{POLICY}{name}"), text));
    }
    Ok(files)
}

/// A file that must not be there yet.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    made.and_then(|mut file| file.write_all(bytes)).map_err(|e| wrong(path, &e))
}

fn read(path: &Path) -> Result<PolicyBundle> {
    let bytes = frame::read_bounded(path, FILE_MAX).map_err(|e| wrong(path, &e))?;
    PolicyBundle::decode(bytes.as_slice()).map_err(|e| wrong(path, &format_args!("not a policy bundle: {e}")))
}

fn admin(named: Option<&str>, config: &Config) -> Result<Verifier> {
    log::admin(named, config)?.ok_or_else(|| {
        CliError::new(Exit::Config, "no key to check the bundle with")
            .hint("give --admin-vkey, or set admin_vkey in the configuration: `admin.vkey` of the collector's folder")
    })
}

/// `guardctl policy bundle`.
pub async fn show(args: &BundleArgs, config: &Config, out: &Out) -> Result<()> {
    let admin = admin(args.admin_vkey.as_deref(), config)?;
    let bytes = match &args.file {
        Some(path) => read(path)?,
        None => {
            let mut client = client::connect(config).await?;
            client.get_policy(GetPolicyRequest {}).await.map_err(client::refused)?.into_inner()
        }
    };
    let bundle = Bundle::open(bytes, &admin).map_err(|e| CliError::new(Exit::No, e))?;
    if let Some(dir) = &args.to {
        unpack(&bundle, dir)?;
    }
    if out.is_json() { out.json(&described(&bundle)) } else { out.print(&text(&bundle)) }
}

fn unpack(bundle: &Bundle, dir: &Path) -> Result<()> {
    std::fs::create_dir(dir).map_err(|e| wrong(dir, &e))?;
    for (name, text) in bundle.policy().chain(bundle.roles().map(|text| (ROLES, text))) {
        write_new(&dir.join(name.trim_start_matches(POLICY)), text.as_bytes())?;
    }
    Ok(())
}

/// `guardctl policy publish`.
pub async fn publish(path: &Path, config: &Config, out: &Out) -> Result<()> {
    let bundle = read(path)?;
    let mut client = client::connect(config).await?;
    let asked = PublishPolicyRequest { bundle: Some(bundle) };
    let reply = client.publish_policy(asked).await.map_err(client::refused)?.into_inner();
    if out.is_json() {
        return out.json(&json!({"leaf": reply.leaf, "digest": reply.digest}));
    }
    out.print(&format!("published; recorded as leaf {}. `guardctl status` shows which hosts have it\n", reply.leaf))
}

fn described(bundle: &Bundle) -> Value {
    let manifest = bundle.manifest();
    let stages = manifest.stages().iter().map(|(agent, stage)| match stage {
        Stage::Observe { until_unix } => json!({"agent": agent, "stage": stage.word(), "until_unix": until_unix}),
        Stage::Shadow | Stage::Enforce => json!({"agent": agent, "stage": stage.word()}),
    });
    json!({"serial": manifest.serial(), "made_unix": manifest.made_unix(), "digest": bundle.digest(),
        "stages": stages.collect::<Vec<_>>(),
        "files": bundle.bytes().files.iter().map(|f| json!({"name": f.name, "bytes": f.content.len()})).collect::<Vec<_>>()})
}

fn text(bundle: &Bundle) -> String {
    let manifest = bundle.manifest();
    let mut text = format!(
        "bundle {}, made {}, signed by the admin key\ndigest {}\n",
        manifest.serial(),
        seconds(manifest.made_unix()),
        bundle.digest()
    );
    for (agent, stage) in manifest.stages() {
        let until = match stage {
            Stage::Observe { until_unix } => format!(" until {}", seconds(*until_unix)),
            Stage::Shadow | Stage::Enforce => String::new(),
        };
        text.push_str(&format!("stage  {} {}{until}\n", escape_str(agent), stage.word()));
    }
    for file in &bundle.bytes().files {
        text.push_str(&format!("file   {} ({} bytes)\n", escape_str(&file.name), file.content.len()));
    }
    text
}
