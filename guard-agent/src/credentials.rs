//! Credentials of sessions: fetched from OpenBao or Vault at the start, handed over in a file system that only the session has,
//! renewed while it lives, revoked when it ends.
//!
//! A session has a login of its own at the provider, under which everything of it is made: with it all of that ends, also what a
//! daemon that died had no time to note. A secret goes from the provider's answer into that file system and nowhere else:
//! not into environment, configuration, log, records or what is kept. Fails closed: a credential that cannot be had keeps
//! the session from starting; one that cannot be revoked is tried again, with alerts, by this daemon and the next ones.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{CredentialAct, Identity, LocalError, RoleSnapshot};
use serde_json::json;

use crate::config::Config;
use crate::control::error;
use crate::kernel::{time, tmpfs};
use crate::node::Node;
use crate::record;
use crate::session::{Session, Wanted};

pub mod config;
mod fields;
mod leases;
mod provider;

use config::{CredentialsConfig, Kind, Named};
use fields::Text;
use leases::{Held, LOGIN, Lease};
use provider::{Login, Made, Provider, ProviderError};

/// Where a session finds its credentials.
pub const FOLDER: &str = "/run/guard/credentials";
/// Credentials of one session.
const ASKED_MAX: usize = 16;
/// Bytes of all files of one session.
const BYTES_MAX: usize = 512 << 10;
/// Size of the file system.
const SIZE: u64 = 1 << 20;
/// How often is looked what is to be renewed or revoked.
const STEP: Duration = Duration::from_millis(500);

/// All of them.
pub struct Credentials {
    config: Option<CredentialsConfig>,
    provider: Option<Provider>,
    dir: PathBuf,
    held: Mutex<HashMap<String, Held>>,
    /// For renewing and revoking: the daemon's own login, and until when it is used.
    login: Mutex<Option<(Login, u64)>>,
}

/// What a session is given.
pub struct Handed {
    /// The file system.
    pub mount: OwnedFd,
    /// The group that may read it, which no other process has: another one of the same user can come to the files through
    /// `/proc/PID/root`, and must not read them.
    pub gid: u32,
    /// One record each.
    pub acts: Vec<CredentialAct>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ns(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

/// What is configured, in words, for `check`.
pub fn describe(config: &Config) -> Result<String, String> {
    let Some(wanted) = &config.credentials else { return Ok("none are configured".into()) };
    Provider::new(wanted).map_err(|e| e.to_string())?;
    crate::files::read_bounded(&wanted.secret_id_file, 64 << 10)
        .map_err(|e| format!("secret_id_file {}: {e}", wanted.secret_id_file.display()))?;
    Ok(format!("{} from {}", wanted.named.len(), wanted.address))
}

/// Which of these names a session may not have, and why.
pub fn permitted(
    config: &Config,
    names: &[String],
    identity: &Identity,
    roles: Option<&RoleSnapshot>,
) -> Result<(), LocalError> {
    if names.is_empty() {
        return Ok(());
    }
    let hint = "see [credentials] in the daemon's configuration";
    if names.len() > ASKED_MAX {
        return Err(error("usage", format!("{} credentials are more than {ASKED_MAX}", names.len()), ""));
    }
    let mut files = BTreeSet::new();
    for name in names {
        let known = config.credentials.as_ref().and_then(|c| c.named.get(name));
        let Some(named) = known else {
            return Err(error("usage", format!("no credential `{}` is configured here", name.escape_debug()), hint));
        };
        named.permits(identity, roles).map_err(|why| error("denied", format!("credential {name}: {why}"), hint))?;
        let own = if named.files.is_empty() { vec![name] } else { named.files.values().collect() };
        if let Some(twice) = own.into_iter().find(|file| !files.insert(*file)) {
            return Err(error("usage", format!("credential {name}: `{twice}` is there already"), hint));
        }
    }
    Ok(())
}

impl Credentials {
    /// Reads what earlier daemons have left. Asks nobody anything.
    pub fn open(config: &Config) -> Result<Self, String> {
        let dir = leases::folder(&config.node.state_dir).map_err(|e| format!("folder for credentials: {e}"))?;
        let provider = config.credentials.as_ref().map(Provider::new).transpose().map_err(|e| e.to_string())?;
        let held = leases::read(&dir, time::boot_ns(), time::wall_unix_ns());
        if provider.is_none() && !held.is_empty() {
            tracing::error!(
                sessions = held.len(),
                "credentials of earlier sessions cannot be revoked: [credentials] is gone from the configuration"
            );
        }
        let held = held.into_iter().map(|held| (held.session_id.clone(), held)).collect();
        let config = config.credentials.clone();
        Ok(Self { config, provider, dir, held: Mutex::new(held), login: Mutex::default() })
    }

    /// Fetches what a session wants. What was made before one of them could not be had is revoked again.
    pub fn issue(&self, wanted: &Wanted) -> Result<Option<Handed>, LocalError> {
        if wanted.credentials.is_empty() {
            return Ok(None);
        }
        let handed = self.make(wanted);
        if handed.is_err() {
            self.abandon(wanted.id);
        }
        handed.map(Some)
    }

    fn make(&self, wanted: &Wanted) -> Result<Handed, LocalError> {
        let (Some(provider), Some(config)) = (&self.provider, &self.config) else {
            return Err(error("usage", "no credentials are configured here", ""));
        };
        let (chain, session) = (record::chain(&wanted.identity), wanted.id);
        let login = provider.login().map_err(|e| refused("the login for this session", &e))?;
        let mut held = Held::new(session, &chain);
        let mut own = Lease {
            kind: LOGIN.into(),
            handle: login.accessor.clone(),
            renewable: true,
            max_ttl_seconds: login.ttl.as_secs(),
            ..Lease::default()
        };
        own.lives(ns(login.ttl), time::boot_ns(), time::wall_unix_ns());
        let mut acts = vec![CredentialAct { ttl_ns: ns(login.ttl), ..own.act(&chain, String::new()) }];
        held.leases.push(own);
        // From here on whatever is made with this login can be revoked by name.
        self.put(&held)?;
        let mut files: Vec<(String, Text)> = Vec::new();
        for name in &wanted.credentials {
            let Some(named) = config.named.get(name) else { continue };
            let made =
                one(provider, &login.token, named, wanted).map_err(|e| refused(&format!("credential {name}"), &e))?;
            let mut lease = Lease {
                name: name.clone(),
                kind: named.kind.word().into(),
                path: named.path.clone(),
                handle: made.lease.clone(),
                renewable: made.renewable,
                max_ttl_seconds: named.max_ttl_seconds,
                ..Lease::default()
            };
            lease.lives(ns(made.ttl), time::boot_ns(), time::wall_unix_ns());
            held.leases.push(lease.clone());
            self.put(&held)?;
            bounded(provider, &login.token, named, &mut lease, made.ttl, wanted.ttl)
                .map_err(|e| refused(&format!("credential {name}"), &e))?;
            if let Some(last) = held.leases.last_mut() {
                last.clone_from(&lease);
            }
            let own = named_files(name, named, made)
                .map_err(|why| error("internal", format!("credential {name}: {why}"), ""))?;
            let ttl_ns =
                lease.ends_boot_ns.checked_sub(time::boot_ns()).filter(|_| lease.ends_unix_ns != 0).unwrap_or(0);
            acts.push(CredentialAct {
                ttl_ns,
                files: own.iter().map(|(file, _)| file.clone()).collect(),
                ..lease.act(&chain, String::new())
            });
            files.extend(own);
        }
        self.put(&held)?;
        let gid = own_group().map_err(|e| error("internal", format!("drawing a group: {e}"), ""))?;
        let mount = filled(&files, gid).map_err(|e| error("internal", format!("credentials: {e}"), ""))?;
        Ok(Handed { mount, gid, acts })
    }

    fn put(&self, held: &Held) -> Result<(), LocalError> {
        held.keep(&self.dir).map_err(|e| error("internal", format!("keeping the names of leases: {e}"), ""))?;
        lock(&self.held).insert(held.session_id.clone(), held.clone());
        Ok(())
    }

    /// The session's start is recorded: what becomes of its credentials is recorded as its.
    pub fn started(&self, id: SessionId) -> io::Result<()> {
        let mut all = lock(&self.held);
        let Some(held) = all.get_mut(&id.to_string()) else { return Ok(()) };
        (held.starting, held.recorded) = (false, true);
        held.keep(&self.dir)
    }

    /// The session does not start: what was made for it is revoked.
    pub fn abandon(&self, id: SessionId) {
        if let Some(held) = lock(&self.held).get_mut(&id.to_string()) {
            held.starting = false;
        }
    }

    /// Whether some are to be revoked that can be.
    pub fn is_revoking(&self, node: &Node) -> bool {
        let over = |held: &Held| !held.starting && node.session_by_id(&held.session_id).is_none_or(|s| s.is_ending());
        self.provider.is_some() && lock(&self.held).values().any(over)
    }

    fn round(&self, node: &Node) {
        let Some(provider) = &self.provider else { return };
        let all: Vec<Held> = lock(&self.held).values().filter(|held| !held.starting).cloned().collect();
        for held in all {
            let session = node.session_by_id(&held.session_id);
            let now = time::boot_ns();
            let lives = session.as_ref().filter(|s| !s.is_ending() && !s.life.is_expired(now));
            let away = match lives {
                Some(session) => self.renew(node, provider, held, session),
                None => self.revoke(node, provider, held, session.as_deref()),
            };
            if away {
                // Whoever does not answer one does not answer the next one either.
                return;
            }
        }
    }

    /// Renews what is due. Says whether the provider is away.
    fn renew(&self, node: &Node, provider: &Provider, mut held: Held, session: &Session) -> bool {
        let (chain, ends) = (held.chain(), session.life.until().boot_ns);
        let (mut changed, mut away) = (false, false);
        let mut kept = Vec::new();
        for mut lease in std::mem::take(&mut held.leases) {
            let now = time::boot_ns();
            if lease.is_over(now) {
                let act = lease.act(&chain, "it ended by itself while the session lives".into());
                node.note(held.session(), Body::CredentialExpired(act));
                session.say("credential", format!("credential {} has expired", shown(&lease)), "");
                changed = true;
                continue;
            }
            if !away && lease.is_due(now, ends) {
                changed = true;
                let ttl = Duration::from_nanos(ends - now).min(Duration::from_secs(lease.max_ttl_seconds.max(1)));
                let asked = self.with_login(provider, |token| match lease.kind.as_str() {
                    LOGIN | "token" => provider.renew_accessor(token, &lease.handle, ttl),
                    _ => provider.renew_lease(token, &lease.handle, ttl),
                });
                away = self.renewed(node, &held, &mut lease, asked);
            }
            kept.push(lease);
        }
        held.leases = kept;
        if changed {
            self.update(held);
        }
        away
    }

    fn renewed(&self, node: &Node, held: &Held, lease: &mut Lease, asked: Result<Duration, ProviderError>) -> bool {
        let now = time::boot_ns();
        match asked {
            Ok(ttl) => {
                lease.lives(ns(ttl), now, time::wall_unix_ns());
                let act = CredentialAct { ttl_ns: ns(ttl), ..lease.act(&held.chain(), String::new()) };
                node.keep(held.session(), Body::CredentialRenewed(act));
                false
            }
            Err(error) => {
                if lease.failed(now) {
                    let act = lease.act(&held.chain(), format!("it could not be renewed: {error}"));
                    node.note(held.session(), Body::CredentialAlert(act));
                }
                matches!(error, ProviderError::Away(_))
            }
        }
    }

    /// Revokes what can be, the newest first and the login last. Says whether the provider is away.
    fn revoke(&self, node: &Node, provider: &Provider, mut held: Held, session: Option<&Session>) -> bool {
        let (chain, mut changed, mut away) = (held.chain(), false, false);
        let mut left = Vec::new();
        for mut lease in std::mem::take(&mut held.leases).into_iter().rev() {
            let now = time::boot_ns();
            if lease.handle.is_empty() {
                let text = "its files went with the session; the value itself stays as it is at the provider";
                node.note(held.session(), Body::CredentialExpired(lease.act(&chain, text.into())));
                changed = true;
                continue;
            }
            if lease.attempts > 0 && lease.is_over(now) {
                let text = "it could not be revoked, and has ended by itself".to_owned();
                node.note(held.session(), Body::CredentialExpired(lease.act(&chain, text)));
                changed = true;
                continue;
            }
            if away || now < lease.next_boot_ns {
                left.push(lease);
                continue;
            }
            let asked = self.with_login(provider, |token| match lease.kind.as_str() {
                LOGIN | "token" => provider.revoke_accessor(token, &lease.handle),
                "pki" => provider.revoke_certificate(token, &lease.path, &lease.handle),
                _ => provider.revoke_lease(token, &lease.handle),
            });
            changed = true;
            let Err(error) = asked else {
                node.note(held.session(), Body::CredentialRevoked(lease.act(&chain, String::new())));
                continue;
            };
            if lease.failed(time::boot_ns()) {
                tracing::error!(session = held.session_id, credential = shown(&lease), %error, "a credential is not revoked");
                let act = lease.act(&chain, format!("it is not revoked: {error}"));
                node.note(held.session(), Body::CredentialAlert(act));
                if let Some(session) = session {
                    session.say("credential", format!("credential {} is not revoked: {error}", shown(&lease)), "");
                }
            }
            away = matches!(error, ProviderError::Away(_));
            left.push(lease);
        }
        left.reverse();
        held.leases = left;
        if changed {
            self.update(held);
        }
        away
    }

    /// Keeps what is left; what was revoked and could not be forgotten is revoked once more, which harms nobody.
    fn update(&self, held: Held) {
        let done = held.leases.is_empty();
        let kept = if done { held.forget(&self.dir) } else { held.keep(&self.dir) };
        if let Err(error) = kept {
            tracing::error!(session = held.session_id, %error, "keeping the names of leases");
        }
        let mut all = lock(&self.held);
        if done {
            all.remove(&held.session_id);
        } else {
            all.insert(held.session_id.clone(), held);
        }
    }

    /// Asks with the daemon's own login; with a new one if that is no good any more.
    fn with_login<T>(
        &self,
        provider: &Provider,
        ask: impl Fn(&Text) -> Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        let mut login = lock(&self.login);
        if let Some((own, until)) = &*login
            && time::boot_ns() < *until
        {
            match ask(&own.token) {
                Err(ProviderError::Refused { status: 403, .. }) => {}
                other => return other,
            }
        }
        let fresh = provider.login()?;
        let until = time::boot_ns().saturating_add(ns(fresh.ttl) / 2);
        let answer = ask(&fresh.token);
        *login = Some((fresh, until));
        answer
    }
}

fn shown(lease: &Lease) -> &str {
    if lease.name.is_empty() { "(the session's login)" } else { &lease.name }
}

fn refused(what: &str, why: &ProviderError) -> LocalError {
    let code = match why {
        ProviderError::Away(_) => "unavailable",
        ProviderError::Refused { .. } => "denied",
        ProviderError::Here(_) => "internal",
    };
    error(code, format!("{what}: {why}"), "the session does not start without it")
}

/// Has one credential made.
fn one(provider: &Provider, token: &Text, named: &Named, wanted: &Wanted) -> Result<Made, ProviderError> {
    let ttl = wanted.ttl.min(Duration::from_secs(named.max_ttl_seconds)).max(Duration::from_secs(1));
    let life = format!("{}s", ttl.as_secs());
    match named.kind {
        Kind::Kv2 => provider.stored(token, &named.path),
        Kind::Database => provider.database(token, &named.path),
        Kind::Pki => {
            let mut body = named.filled(&wanted.identity);
            body.insert("ttl".into(), life);
            provider.certificate(token, &named.path, &body, ttl)
        }
        Kind::Token => {
            let body = json!({
                "policies": named.policies, "ttl": life, "no_default_policy": true,
                "display_name": format!("guard-{}", wanted.id),
                "meta": {"guard_session": wanted.identity.session_id, "guard_agent": wanted.identity.agent,
                    "guard_initiator": wanted.identity.initiator},
            });
            provider.token(token, &named.path, &body)
        }
    }
}

/// A lease must not outlive what the configuration allows: if the provider gave more, it is asked for less.
fn bounded(
    provider: &Provider,
    token: &Text,
    named: &Named,
    lease: &mut Lease,
    given: Duration,
    session: Duration,
) -> Result<(), ProviderError> {
    let most = Duration::from_secs(named.max_ttl_seconds);
    let wanted = most.min(session).max(Duration::from_secs(1));
    let mut given = given;
    if given > wanted && lease.renewable && !lease.handle.is_empty() {
        given = match named.kind {
            Kind::Token => provider.renew_accessor(token, &lease.handle, wanted)?,
            _ => provider.renew_lease(token, &lease.handle, wanted)?,
        };
        lease.lives(ns(given), time::boot_ns(), time::wall_unix_ns());
    }
    if given > most {
        return Err(ProviderError::Here(format!(
            "the provider gives it for {} s, more than max_ttl_seconds = {}",
            given.as_secs(),
            named.max_ttl_seconds
        )));
    }
    Ok(())
}

/// Files and what is in them.
fn named_files(name: &str, named: &Named, made: Made) -> Result<Vec<(String, Text)>, String> {
    if named.files.is_empty() {
        let file = |(field, text): (String, Text)| {
            let file = format!("{name}.{field}");
            if config::is_name(&file) {
                Ok((file, text))
            } else {
                Err(format!("its field `{}` makes no file name", field.escape_debug()))
            }
        };
        return made.fields.0.into_iter().map(file).collect();
    }
    let get = |(field, file): (&String, &String)| match made.fields.get(field) {
        Some(text) => Ok((file.clone(), text.clone())),
        None => Err(format!("the provider's answer has no field `{field}`")),
    };
    named.files.iter().map(get).collect()
}

/// A group id by chance, from a range that neither people, containers nor dynamic users are given.
fn own_group() -> io::Result<u32> {
    const FIRST: u32 = 0x7000_0000;
    const COUNT: u32 = 0x0ffe_0000;
    let mut bytes = [0_u8; 4];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(FIRST + u32::from_ne_bytes(bytes) % COUNT)
}

fn filled(files: &[(String, Text)], gid: u32) -> io::Result<OwnedFd> {
    let bytes: usize = files.iter().map(|(_, text)| text.as_str().len()).sum();
    if bytes > BYTES_MAX {
        return Err(io::Error::other(format!("{bytes} bytes are more than {BYTES_MAX}")));
    }
    // Where the file system will be mounted, in the session's namespace only.
    std::fs::create_dir_all(FOLDER)?;
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, text)| (name.as_str(), text.as_str().as_bytes())).collect();
    tmpfs::sealed(&files, gid, SIZE)
}

/// Starts the thread that renews and revokes. It may wait for the provider; nobody waits for it.
pub fn spawn(node: &Arc<Node>) -> io::Result<()> {
    let node = Arc::clone(node);
    thread::Builder::new().name("credentials".into()).spawn(move || {
        loop {
            node.credentials.round(&node);
            thread::sleep(STEP);
        }
    })?;
    Ok(())
}
