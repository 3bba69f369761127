//! The policies in force: from the host's own files, or from the signed bundles that the collector hands on.
//!
//! A bundle counts by the admin key's signature alone; where it stands in the stage `shadow` for an agent, what was in force
//! before goes on judging that agent's sessions, and the bundle's verdict is recorded beside. In the stage `observe` it judges, and
//! what it denies runs, for a time, by name alone and recorded as such. It must not take an older bundle than
//! it had, nor half of one. Fails: what cannot be read, is not signed or does not load changes nothing but what `status` says,
//! and is recorded; a kept bundle that is damaged is an error at the start, never the built-in policy.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use guard_bundle::{Bundle, Manifest, Stage};
use guard_log::frame;
use guard_log::note::Verifier;
use guard_log::record::SessionId;
use guard_policy::roles::Roles;
use guard_policy::{Policy, Source};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{ObservedAgent, PolicyBundle, PolicyLoaded};
use prost::Message;

use crate::config::Config;
use crate::kernel::time;
use crate::node::Node;

/// In the state folder: the bundle that counts for every agent.
const WHOLE: &str = "policy.bundle";
/// The newest one, while it does not count for every agent yet.
const CANDIDATE: &str = "policy.candidate.bundle";
const BUNDLE_MAX: u64 = 4 << 20;
const FILE_MAX: u64 = 4 << 20;

/// A policy that is loaded, with what came with it.
pub struct InForce {
    /// The rules.
    pub policy: Policy,
    /// Their digest, in every verdict.
    pub digest: String,
    /// Who may request what; none are in force without a file.
    pub roles: Option<Roles>,
    /// They are the bundle's, so that the admin key signed for them.
    pub signed_roles: bool,
    /// Detection rules; none without paths.
    pub sigma: Option<crate::detect::Detections>,
    /// What the bundle says of itself, and its digest; nothing for the host's own files.
    pub bundle: Option<(Manifest, String)>,
}

/// What judges the sessions of an agent.
pub struct Judges {
    /// Its verdict counts.
    pub counts: Arc<InForce>,
    /// Its verdict is only recorded beside.
    pub beside: Option<Arc<InForce>>,
    /// The verdict that counts is not enforced in sessions that began so: the stage is `observe`.
    pub observed: bool,
}

/// What judges: a policy, and one more for some agents.
#[derive(Clone)]
pub struct Policies {
    base: Arc<InForce>,
    candidate: Option<Arc<InForce>>,
}

/// The policies in force, and what became of the last change.
pub struct Current {
    policies: RwLock<Policies>,
    error: Mutex<String>,
    /// Digest of the bundle that was refused last: it comes again with each connection.
    refused: Mutex<String>,
    /// One change at a time.
    changing: Mutex<()>,
}

/// The host's wall clock, which governed tasks cannot set.
fn now_unix() -> u64 {
    u64::try_from(time::wall_unix_ns() / 1_000_000_000).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl InForce {
    /// Serial number of its bundle; 0 for the host's own files.
    pub fn serial(&self) -> u64 {
        self.bundle.as_ref().map_or(0, |(manifest, _)| manifest.serial())
    }

    /// Serial number of the bundle that the roles are signed in; 0: they are not.
    pub fn roles_serial(&self) -> u64 {
        if self.signed_roles { self.serial() } else { 0 }
    }
}

impl Policies {
    /// What judges an agent's sessions. Without a bundle that says otherwise, every verdict counts and is enforced.
    fn of(&self, agent: &str, now_unix: u64) -> Judges {
        let alone = |counts: &Arc<InForce>| Judges { counts: Arc::clone(counts), beside: None, observed: false };
        let Some(candidate) = &self.candidate else { return alone(&self.base) };
        let stage = candidate.bundle.as_ref().map_or(Stage::Shadow, |(manifest, _)| manifest.stage_of(agent, now_unix));
        match stage {
            Stage::Enforce => alone(candidate),
            Stage::Observe { .. } => Judges { observed: true, ..alone(candidate) },
            Stage::Shadow => Judges { beside: Some(Arc::clone(candidate)), ..alone(&self.base) },
        }
    }

    /// Serial number of the newest bundle; 0: there is none.
    fn serial(&self) -> u64 {
        self.candidate.as_ref().unwrap_or(&self.base).serial()
    }

    /// What of it is the newest.
    pub fn newest(&self) -> &InForce {
        self.candidate.as_ref().unwrap_or(&self.base)
    }
}

impl From<Policies> for Current {
    fn from(policies: Policies) -> Self {
        let policies = RwLock::new(policies);
        Self { policies, error: Mutex::default(), refused: Mutex::default(), changing: Mutex::default() }
    }
}

impl Current {
    fn get(&self) -> Policies {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The policy of agents for which no bundle is rolled out further.
    pub fn base(&self) -> Arc<InForce> {
        self.get().base
    }

    /// What judges an agent's sessions.
    pub fn of(&self, agent: &str) -> Judges {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).of(agent, now_unix())
    }

    /// Agents whose verdicts are not enforced now, each with its end.
    pub fn observed(&self) -> Vec<ObservedAgent> {
        let now = self.get();
        let Some((manifest, _)) = &now.newest().bundle else { return Vec::new() };
        let ends = |until: u64| i64::try_from(until).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
        let told = |(agent, until): (&str, u64)| ObservedAgent { agent: agent.to_owned(), until_unix_ns: ends(until) };
        manifest.observed(now_unix()).map(told).collect()
    }

    /// The one that counts for most, and the bundle that is not rolled out to all.
    pub fn all(&self) -> Vec<Arc<InForce>> {
        let Policies { base, candidate } = self.get();
        std::iter::once(base).chain(candidate).collect()
    }

    /// Serial number of the newest bundle; 0: there is none.
    pub fn serial(&self) -> u64 {
        self.get().serial()
    }

    /// Why the newest policy was refused; empty if it is in force.
    pub fn error(&self) -> String {
        lock(&self.error).clone()
    }

    fn put(&self, policies: Policies) {
        *self.policies.write().unwrap_or_else(PoisonError::into_inner) = policies;
        lock(&self.error).clear();
    }
}

/// Reads everything again, and takes all or nothing. Gives the digest of what counts for most.
pub fn reload(node: &Node) -> Result<String, String> {
    let _one = lock(&node.policies.changing);
    let taken = load(&node.config).and_then(|fresh| {
        record(node, loaded(fresh.newest(), &node.config))?;
        Ok(fresh)
    });
    match taken {
        Ok(fresh) => {
            let digest = fresh.base.digest.clone();
            node.policies.put(fresh);
            Ok(digest)
        }
        Err(error) => {
            let refused = PolicyLoaded { source: source(&node.config), refused: true, ..PolicyLoaded::default() };
            Err(refuse(node, refused, error))
        }
    }
}

/// A bundle that the collector sent.
pub fn arrived(node: &Node, bytes: PolicyBundle) {
    let _one = lock(&node.policies.changing);
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(bytes.encode_to_vec()));
    if let Err((serial, error)) = take(node, bytes) {
        tracing::error!(error, serial, "a policy bundle is refused; what is in force stays");
        if std::mem::replace(&mut *lock(&node.policies.refused), digest.clone()) == digest {
            return;
        }
        let refused = PolicyLoaded {
            source: "collector".into(),
            refused: true,
            bundle_serial: serial,
            ..PolicyLoaded::default()
        };
        refuse(node, refused, error);
    }
}

/// Checks a bundle, keeps it, records it, puts it in force.
fn take(node: &Node, bytes: PolicyBundle) -> Result<(), (u64, String)> {
    let now = node.policies.get();
    let (bundle, fresh) = checked(&node.config, bytes, now.serial())?;
    let (serial, fresh) = (fresh.serial(), Arc::new(fresh));
    let told = |error: String| (serial, error);
    let whole = bundle.manifest().is_whole();
    keep(&node.config.node.state_dir, &bundle).map_err(|e| told(format!("it cannot be kept: {e}")))?;
    record(node, loaded(&fresh, &node.config)).map_err(told)?;
    tracing::info!(serial, digest = bundle.digest(), "a policy bundle is taken");
    node.policies.put(match whole {
        true => Policies { base: fresh, candidate: None },
        false => Policies { candidate: Some(fresh), ..now },
    });
    Ok(())
}

/// A bundle that the admin key signed, that is newer than the one of number `have`, and that loads.
fn checked(config: &Config, bytes: PolicyBundle, have: u64) -> Result<(Bundle, InForce), (u64, String)> {
    let admin = admin_key(config).map_err(|e| (0, e))?;
    let bundle = Bundle::open(bytes, &admin).map_err(|e| (0, e.to_string()))?;
    let serial = bundle.manifest().serial();
    if serial <= have {
        return Err((serial, format!("bundle {serial} is not newer than bundle {have}, which this host has")));
    }
    let fresh = of_bundle(config, &bundle).map_err(|e| (serial, e))?;
    Ok((bundle, fresh))
}

/// Puts the bundle where the next daemon finds it.
fn keep(state_dir: &Path, bundle: &Bundle) -> std::io::Result<()> {
    let bytes = bundle.bytes().encode_to_vec();
    if !bundle.manifest().is_whole() {
        return frame::replace(&state_dir.join(CANDIDATE), &bytes);
    }
    frame::replace(&state_dir.join(WHOLE), &bytes)?;
    // One that stays behind is older than this one, and not read.
    match std::fs::remove_file(state_dir.join(CANDIDATE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A policy counts once its record is durable.
fn record(node: &Node, loaded: PolicyLoaded) -> Result<(), String> {
    let ticket = node.append(SessionId::NONE, Body::PolicyLoaded(loaded)).map_err(|e| e.to_string())?;
    ticket.wait().map(drop).map_err(|e| e.to_string())
}

fn refuse(node: &Node, refused: PolicyLoaded, error: String) -> String {
    node.note(SessionId::NONE, Body::PolicyLoaded(PolicyLoaded { error: error.clone(), ..refused }));
    lock(&node.policies.error).clone_from(&error);
    error
}

const NO_ADMIN: &str =
    "policy.from_collector needs collector.admin_vkey: bundles count by the admin key's signature alone";

/// Reads and checks what is in force: the bundles that were kept, where the host takes any and has one, else its own files.
pub fn load(config: &Config) -> Result<Policies, String> {
    let alone = |base: InForce| Policies { base: Arc::new(base), candidate: None };
    if !config.policy.from_collector {
        return of_files(config).map(alone);
    }
    let whole = kept(config, WHOLE)?;
    let base = match &whole {
        Some(bundle) => of_bundle(config, bundle)?,
        None => of_files(config)?,
    };
    let candidate = kept(config, CANDIDATE)?.filter(|bundle| bundle.manifest().serial() > base.serial());
    let candidate = candidate.map(|bundle| of_bundle(config, &bundle)).transpose()?.map(Arc::new);
    Ok(Policies { candidate, ..alone(base) })
}

/// The key that bundles count by: of the configuration, or what enrolment pinned.
fn admin_key(config: &Config) -> Result<Verifier, String> {
    config.collector.pinned()?.admin_key()?.ok_or_else(|| NO_ADMIN.to_owned())
}

fn kept(config: &Config, name: &str) -> Result<Option<Bundle>, String> {
    let path = config.node.state_dir.join(name);
    let told = |error: &dyn std::fmt::Display| {
        format!("{}: {error}: take the file away, and the collector sends the newest bundle again", path.display())
    };
    let admin = admin_key(config)?;
    let bytes = match frame::read_bounded(&path, BUNDLE_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(told(&error)),
    };
    let bytes = PolicyBundle::decode(bytes.as_slice()).map_err(|e| told(&e))?;
    Bundle::open(bytes, &admin).map(Some).map_err(|e| told(&e))
}

fn of_bundle(config: &Config, bundle: &Bundle) -> Result<InForce, String> {
    let named = |name: &str| format!("bundle {} {name}", bundle.manifest().serial());
    let texts: Vec<(String, &str)> = bundle.policy().map(|(name, text)| (named(name), text)).collect();
    let sources: Vec<Source<'_>> = texts.iter().map(|(name, text)| Source { name, text }).collect();
    let policy = Policy::load(&sources).map_err(|e| format!("policy {e}"))?;
    let roles = match bundle.roles() {
        Some(text) => Some(crate::roles::parse(&named(guard_bundle::ROLES), text, &policy)?),
        None => crate::roles::load(config, &policy)?,
    };
    let signed_roles = bundle.roles().is_some();
    let sigma = crate::detect::load(&config.sigma)?;
    let bundle = Some((bundle.manifest().clone(), bundle.digest().to_owned()));
    Ok(InForce { digest: policy.digest(), policy, roles, signed_roles, sigma, bundle })
}

/// Reads and checks the host's own policy files and role file. All or nothing.
fn of_files(config: &Config) -> Result<InForce, String> {
    let mut texts: Vec<(PathBuf, String)> = Vec::new();
    for path in &config.policy.files {
        let bytes =
            crate::files::read_bounded(path, FILE_MAX).map_err(|e| format!("policy {}: {e}", path.display()))?;
        let text = String::from_utf8(bytes).map_err(|e| format!("policy {}: {e}", path.display()))?;
        texts.push((path.clone(), text));
    }
    let names: Vec<String> = texts.iter().map(|(path, _)| path.display().to_string()).collect();
    let sources: Vec<Source<'_>> = names.iter().zip(&texts).map(|(name, (_, text))| Source { name, text }).collect();
    let policy = Policy::load(&sources).map_err(|e| format!("policy {e}"))?;
    let roles = crate::roles::load(config, &policy)?;
    let sigma = crate::detect::load(&config.sigma)?;
    Ok(InForce { digest: policy.digest(), policy, roles, signed_roles: false, sigma, bundle: None })
}

/// Names of the host's own policy files, for the record.
fn source(config: &Config) -> String {
    match config.policy.files.as_slice() {
        [] => "built-in".into(),
        files => files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
    }
}

/// The record of a policy that was taken, and of the roles beside it.
pub fn loaded(policy: &InForce, config: &Config) -> PolicyLoaded {
    let roles_source = policy.roles.as_ref().and(config.roles.file.as_ref());
    let stage = |(agent, stage): &(String, Stage)| format!("{agent} {stage}");
    let bundle = policy.bundle.as_ref();
    PolicyLoaded {
        digest: policy.digest.clone(),
        source: bundle.map_or_else(|| source(config), |_| "collector".into()),
        rules: policy.policy.rule_count(),
        roles_digest: policy.roles.as_ref().map(|r| r.digest().to_owned()).unwrap_or_default(),
        sigma_rules: policy.sigma.as_ref().map_or(0, |s| s.count()),
        sigma_set_aside: policy.sigma.as_ref().map_or(0, |s| s.set_aside()),
        sigma_digest: policy.sigma.as_ref().map(|s| s.digest().to_owned()).unwrap_or_default(),
        roles_source: roles_source.map(|f| f.display().to_string()).unwrap_or_default(),
        bundle_serial: policy.serial(),
        bundle_digest: bundle.map(|(_, digest)| digest.clone()).unwrap_or_default(),
        stages: bundle.map(|(manifest, _)| manifest.stages().iter().map(stage).collect()).unwrap_or_default(),
        ..PolicyLoaded::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guard_log::signer::KeyFile;

    const RULE: &str = "version: 1\nextends: default\nrules:\n  - id: own.no-cat\n    tier: deny\n    reason: none\n    \
        when: {program: [cat]}\n    match: [\"cat README.md\"]\n";

    const NOW: u64 = 1_000;

    struct World {
        dir: tempfile::TempDir,
        key: KeyFile,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { dir, key: KeyFile::generate("guard-admin/test").unwrap() }
        }

        fn config(&self, from_collector: bool) -> Config {
            let text = format!(
                "[node]\nname = \"n\"\nstate_dir = \"{}\"\n[collector]\naddress = \"https://c\"\nca = \"/c\"\ncert = \"/c\"\n\
                 key = \"/c\"\nadmin_vkey = \"{}\"\n[policy]\nfrom_collector = {from_collector}\n",
                self.dir.path().display(),
                self.key.vkey()
            );
            toml::from_str(&text).unwrap()
        }

        fn bundle(&self, serial: u64, stages: &[(&str, Stage)]) -> Bundle {
            let stages = stages.iter().map(|(agent, stage)| ((*agent).to_owned(), *stage)).collect();
            Bundle::sign(serial, 1, stages, vec![("policy/a.yaml".into(), RULE.into())], &self.key).unwrap()
        }

        fn keep(&self, bundle: &Bundle) {
            keep(self.dir.path(), bundle).unwrap();
        }

        /// Serials that count for the agent, and that are beside it.
        fn serials(&self, agent: &str) -> (u64, Option<u64>) {
            let judges = load(&self.config(true)).unwrap().of(agent, NOW);
            assert!(!judges.observed);
            (judges.counts.serial(), judges.beside.map(|s| s.serial()))
        }
    }

    #[test]
    fn the_next_daemon_has_the_bundle_and_its_stages() {
        let world = World::new();
        assert_eq!(world.serials("coder"), (0, None), "the host's own files until one comes");
        world.keep(&world.bundle(3, &[("*", Stage::Shadow)]));
        assert_eq!(world.serials("coder"), (0, Some(3)));
        world.keep(&world.bundle(4, &[("*", Stage::Enforce)]));
        assert_eq!(world.serials("coder"), (4, None), "the candidate before it is gone");
        world.keep(&world.bundle(6, &[("*", Stage::Enforce), ("coder", Stage::Shadow)]));
        assert_eq!((world.serials("coder"), world.serials("other")), ((4, Some(6)), (6, None)));
        // A host that no longer takes bundles has its own files again.
        assert_eq!(load(&world.config(false)).unwrap().of("coder", NOW).counts.serial(), 0);
    }

    /// Not enforcing needs the newest bundle, the agent's name in it and time that is left: all else is enforced.
    #[test]
    fn only_the_named_agent_is_observed_and_only_for_its_time() {
        let world = World::new();
        world.keep(&world.bundle(4, &[("*", Stage::Enforce)]));
        world.keep(&world.bundle(5, &[("*", Stage::Enforce), ("coder", Stage::Observe { until_unix: NOW + 1 })]));
        let said = |agent: &str, now: u64| {
            let judges = load(&world.config(true)).unwrap().of(agent, now);
            (judges.counts.serial(), judges.beside.is_some(), judges.observed)
        };
        assert_eq!(said("coder", NOW), (5, false, true));
        assert_eq!(said("coder", NOW + 1), (5, false, false), "then it is enforced");
        assert_eq!(said("coder2", NOW), (5, false, false));
        // What says so is gone, or the host takes no bundles any more.
        std::fs::remove_file(world.dir.path().join(CANDIDATE)).unwrap();
        assert_eq!(said("coder", NOW), (4, false, false));
        let own = load(&world.config(false)).unwrap().of("coder", NOW);
        assert!(!own.observed && own.counts.serial() == 0);
    }

    /// What a collector in the wrong hands can try with what the admin key signed once, and with what it did not.
    #[test]
    fn an_older_bundle_and_one_of_another_key_are_refused() {
        let world = World::new();
        let config = world.config(true);
        let bytes = |serial| world.bundle(serial, &[("*", Stage::Enforce)]).bytes().clone();
        assert_eq!(checked(&config, bytes(5), 4).map(|(_, fresh)| fresh.serial()).ok(), Some(5));
        for serial in [4, 3] {
            let (of, error) = checked(&config, bytes(serial), 4).err().unwrap();
            assert!(of == serial && error.contains("not newer than bundle 4"), "{error}");
        }
        let other = World { key: KeyFile::generate("guard-admin/test").unwrap(), ..World::new() };
        let foreign = other.bundle(9, &[("*", Stage::Enforce)]).bytes().clone();
        assert!(checked(&config, foreign, 4).is_err());
    }

    /// A crash between the two steps of `keep` leaves a candidate that is older than the bundle that counts.
    #[test]
    fn an_older_candidate_is_not_looked_at() {
        let world = World::new();
        world.keep(&world.bundle(3, &[("*", Stage::Shadow)]));
        let left = std::fs::read(world.dir.path().join(CANDIDATE)).unwrap();
        world.keep(&world.bundle(4, &[("*", Stage::Enforce)]));
        std::fs::write(world.dir.path().join(CANDIDATE), left).unwrap();
        assert_eq!(world.serials("coder"), (4, None));
    }

    #[test]
    fn a_kept_bundle_that_is_damaged_is_an_error_and_never_other_rules() {
        let world = World::new();
        world.keep(&world.bundle(4, &[("*", Stage::Enforce)]));
        let path = world.dir.path().join(WHOLE);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = load(&world.config(true)).err().unwrap();
        assert!(error.contains(WHOLE) && error.contains("not the one that was signed"), "{error}");
    }
}
