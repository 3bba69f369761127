//! Checks of a wish to start a session: who asks, for whom, as whom, with what.
//!
//! Fails: with what is wrong and what would be right. Nothing has been started then.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use guard_log::record::SessionId;
use guard_policy::roles::{Right, Roles, Subject};
use guard_proto::v1::{Identity, LocalError, StartChild, StartSession};
use rustix::fs::FileType;
use rustix::net::UCred;
use sha2::{Digest, Sha256};

use crate::config::SessionConfig;
use crate::control::error;
use crate::credentials;
use crate::fresh;
use crate::inside::child;
use crate::kept::{Owner, ProcessId};
use crate::kernel::proc::{self, User};
use crate::kernel::time;
use crate::longlived::{self, Found, OnLongLived};
use crate::node::Node;
use crate::renewal;
use crate::roles::{self, Rights};
use crate::session::{Session, Wanted};

const NAME_MAX: usize = 64;
const PURPOSE_MAX: usize = 2000;
/// Bytes of a reference to a ticket or a job.
const REFERENCE_MAX: usize = 200;
const PATH_DEFAULT: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// The descriptors must be what guardctl makes: one terminal, or pipes. Nothing else crosses into a session.
pub fn check_stdio(stdio: &[OwnedFd; 3], tty: bool) -> Result<(), LocalError> {
    for fd in stdio {
        let stat = rustix::fs::fstat(fd).map_err(|e| error("usage", format!("a descriptor: {e}"), ""))?;
        let good = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Fifo => !tty,
            FileType::CharacterDevice => tty && rustix::termios::isatty(fd.as_fd()),
            _ => false,
        };
        if !good {
            return Err(error("usage", "descriptors of a session must be one terminal or pipes", "use guardctl run"));
        }
    }
    Ok(())
}

/// Checks everything else.
pub fn check(node: &Node, peer: UCred, wish: StartSession) -> Result<Wanted, LocalError> {
    let config = &node.config.session;
    check_name(&wish.agent)?;
    check_text("purpose", &wish.purpose, PURPOSE_MAX)?;
    check_text("ticket", &wish.ticket, REFERENCE_MAX)?;
    check_text("job", &wish.job, REFERENCE_MAX)?;
    check_command(&wish.argv, &wish.cwd)?;
    let gone = |e: std::io::Error| error("usage", format!("reading the caller's limits: {e}"), "");
    let process = peer.pid.as_raw_nonzero().get().unsigned_abs();
    let limits = proc::limits(process).map_err(gone)?;
    let owner = Owner { uid: peer.uid.as_raw(), process: ProcessId::of(process).map_err(gone)? };
    let peer = user(peer.uid.as_raw())?;
    let judges = node.policies.of(&wish.agent);
    let in_force = judges.counts;
    fresh::allows(node, &in_force, &wish.agent)?;
    let user = acting_user(config, in_force.roles.as_ref(), &peer, &wish.initiator)?;
    if user.uid == 0 && !config.allow_root {
        return Err(error(
            "denied",
            "sessions do not run as root here",
            "start it as the user it is for, or set session.allow_root",
        ));
    }
    let ttl = ttl(config, wish.ttl_seconds)?;
    let started_by = if user.uid == peer.uid { String::new() } else { peer.name.clone() };
    let rights = roles::rights(&in_force, &node.config, [&user.name, &wish.agent, &started_by])
        .map_err(|why| error("denied", why, roles::HINT))?;
    let id = SessionId(u128::from(ulid::Ulid::generate()).to_be_bytes());
    let identity = Identity {
        session_id: id.to_string(),
        instance: format!("spiffe://{}/agent/{}/{id}", node.config.node.name, wish.agent),
        agent: wish.agent,
        initiator: user.name.clone(),
        initiator_uid: user.uid,
        rights_digest: rights_digest(&rights, &in_force.digest),
        categories: rights.categories,
        started_by,
        roles_digest: rights.snapshot.as_ref().map(|s| s.digest.clone()).unwrap_or_default(),
        roles_serial: in_force.roles_serial(),
        ..Identity::default()
    };
    let mut env = environment(config, &user, &wish.env);
    let found = long_lived(config, &mut env, &user)?;
    credentials::permitted(&node.config, &wish.credentials, &identity, rights.snapshot.as_ref())?;
    Ok(Wanted {
        id,
        identity,
        roles: rights.snapshot,
        observed: judges.observed,
        env,
        found,
        user,
        ttl,
        argv: wish.argv,
        cwd: wish.cwd,
        purpose: wish.purpose,
        ticket: wish.ticket,
        job: wish.job,
        tty: wish.tty,
        umask: wish.umask & 0o777,
        limits,
        owner,
        credentials: wish.credentials,
        not_after_boot_ns: u64::MAX,
    })
}

/// The process that asks for a child session.
pub struct Asker {
    /// Its limits.
    pub limits: Vec<(u64, u64)>,
    /// It answers for the child.
    pub owner: Owner,
}

/// Checks a wish to start a child session: what the parent has, or less of it, as things are now.
pub fn child(node: &Node, parent: &Session, asker: Asker, wish: StartChild) -> Result<Wanted, LocalError> {
    let config = &node.config.session;
    check_text("purpose", &wish.purpose, PURPOSE_MAX)?;
    check_command(&wish.argv, &wish.cwd)?;
    let categories = child::categories(parent, &wish.categories)?;
    renewal::still_entitled(node, &parent.identity, &categories)?;
    let max_risk = child::max_risk(wish.max_risk)?;
    let now = time::boot_ns();
    let not_after_boot_ns = child::end(parent.life.until().boot_ns, now, wish.ttl_seconds, config.default_ttl_seconds)?;
    let found = user(parent.rights.uid)?;
    if !parent.rights.groups.contains(&found.gid) {
        return Err(error("denied", format!("group {} is not one of the session's", found.gid), ""));
    }
    let user = User { name: parent.identity.initiator.clone(), groups: parent.rights.groups.clone(), ..found };
    let id = SessionId(u128::from(ulid::Ulid::generate()).to_be_bytes());
    let of = &parent.identity;
    let judges = node.policies.of(&of.agent);
    let in_force = judges.counts;
    let identity = Identity {
        session_id: id.to_string(),
        instance: format!("spiffe://{}/agent/{}/{id}", node.config.node.name, of.agent),
        agent: of.agent.clone(),
        initiator: of.initiator.clone(),
        initiator_uid: of.initiator_uid,
        rights_digest: child_digest(&of.session_id, &categories, max_risk, &in_force.digest, &of.roles_digest),
        categories,
        started_by: of.started_by.clone(),
        roles_digest: of.roles_digest.clone(),
        roles_serial: of.roles_serial,
        parent_session_id: of.session_id.clone(),
        max_risk,
        ..Identity::default()
    };
    let mut env = environment(config, &user, &wish.env);
    let found = long_lived(config, &mut env, &user)?;
    Ok(Wanted {
        id,
        identity,
        roles: parent.roles.clone(),
        observed: judges.observed && parent.began_observed,
        env,
        found,
        user,
        ttl: Duration::from_nanos(not_after_boot_ns.saturating_sub(now)),
        argv: wish.argv,
        cwd: wish.cwd,
        purpose: wish.purpose,
        ticket: String::new(),
        job: String::new(),
        tty: wish.tty,
        umask: wish.umask & 0o777,
        limits: asker.limits,
        owner: asker.owner,
        credentials: Vec::new(),
        not_after_boot_ns,
    })
}

fn check_command(argv: &[Vec<u8>], cwd: &[u8]) -> Result<(), LocalError> {
    if argv.is_empty() || argv.iter().any(|a| a.contains(&0)) {
        return Err(error("usage", "a command is needed, without NUL bytes", "guardctl run --agent NAME -- COMMAND"));
    }
    if cwd.first() != Some(&b'/') || cwd.contains(&0) {
        return Err(error("usage", "the working folder must be an absolute path", ""));
    }
    Ok(())
}

/// SHA-256 over what a child session may request, as a part of which session, under which policy and which roles.
fn child_digest(parent: &str, categories: &[String], max_risk: Option<u32>, policy: &str, roles: &str) -> Vec<u8> {
    let mut hasher = Sha256::new();
    hasher.update(b"guard child rights v1\0");
    let risk = max_risk.map(|risk| risk.to_string()).unwrap_or_default();
    for part in [parent, &risk, policy, roles].into_iter().chain(categories.iter().map(String::as_str)) {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().to_vec()
}

fn check_name(name: &str) -> Result<(), LocalError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(good) {
        let text =
            format!("agent name `{}` must have 1 to {NAME_MAX} letters, digits, `.`, `_`, `-`", name.escape_debug());
        return Err(error("usage", text, "guardctl run --agent coder -- COMMAND"));
    }
    Ok(())
}

fn check_text(what: &str, text: &str, max: usize) -> Result<(), LocalError> {
    if text.len() > max {
        Err(error("usage", format!("{what} has {} bytes, at most {max} are taken", text.len()), ""))
    } else {
        Ok(())
    }
}

fn user(uid: u32) -> Result<User, LocalError> {
    proc::user_by_id(uid).ok_or_else(|| {
        error(
            "denied",
            format!("uid {uid} is no known user; records need a name"),
            "sessions are started by users of this host",
        )
    })
}

/// The user that the session runs as: the peer, or another that it may start for. Where roles are in force they alone say
/// so.
fn acting_user(
    config: &SessionConfig,
    roles: Option<&Roles>,
    peer: &User,
    initiator: &str,
) -> Result<User, LocalError> {
    if initiator.is_empty() || initiator == peer.name {
        return Ok(peer.clone());
    }
    if let Some(roles) = roles {
        let right = Right::StartFor(initiator);
        roles.check(Subject::Principal(&peer.name), right).map_err(|m| error("denied", m.to_string(), roles::HINT))?;
    } else if !config.may_start_for_others.contains(&peer.name) {
        let text = format!("{} may not start sessions for others", peer.name);
        return Err(error("denied", text, "see session.may_start_for_others in the daemon's configuration"));
    }
    proc::user_by_name(initiator).ok_or_else(|| error("usage", format!("no user {}", initiator.escape_debug()), ""))
}

fn ttl(config: &SessionConfig, asked: u64) -> Result<Duration, LocalError> {
    match asked {
        0 => Ok(Duration::from_secs(config.default_ttl_seconds)),
        asked if asked <= config.max_ttl_seconds => Ok(Duration::from_secs(asked)),
        asked => {
            let text = format!("a session of {asked} s is longer than the {} s allowed here", config.max_ttl_seconds);
            Err(error("usage", text, "ask for a shorter --ttl"))
        }
    }
}

/// SHA-256 over what the session may request, by category, under which policy and which roles.
fn rights_digest(rights: &Rights, policy: &str) -> Vec<u8> {
    let mut hasher = Sha256::new();
    hasher.update(b"guard rights v1\0");
    let roles = rights.snapshot.as_ref().map(|s| s.digest.as_str());
    for part in rights.categories.iter().map(String::as_str).chain([policy]).chain(roles) {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().to_vec()
}

/// Keys without an end that the session would have, and what the configuration says to that.
fn long_lived(config: &SessionConfig, env: &mut Vec<Vec<u8>>, user: &User) -> Result<Found, LocalError> {
    let found = longlived::look(env, user);
    if found.is_empty() {
        return Ok(found);
    }
    match config.long_lived {
        OnLongLived::Record => {}
        OnLongLived::Strip => longlived::strip(env, &found),
        OnLongLived::Refuse => {
            let all: Vec<String> = found.variables.iter().map(|v| format!("${v}")).chain(found.files).collect();
            let text = format!("the session would have keys without an end: {}", all.join(", "));
            return Err(error(
                "denied",
                text,
                "take them away, or ask for a --credential instead; see session.long_lived",
            ));
        }
    }
    Ok(found)
}

/// What the configuration lets through, and what login would set.
fn environment(config: &SessionConfig, user: &User, asked: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut env: Vec<Vec<u8>> = Vec::new();
    for entry in asked.iter().filter(|e| !e.contains(&0)) {
        let Some(end) = entry.iter().position(|b| *b == b'=') else { continue };
        let name = entry.get(..end).unwrap_or_default();
        let known = env.iter().any(|e| e.get(..=end) == entry.get(..=end));
        if !known && config.env_keep.iter().any(|pattern| matches(pattern, name)) {
            env.push(entry.clone());
        }
    }
    let mut set = |name: &[u8], value: &[u8]| {
        let prefix = [name, b"="].concat();
        env.retain(|e| !e.starts_with(&prefix));
        env.push([&prefix, value].concat());
    };
    set(b"HOME", &user.home);
    set(b"USER", user.name.as_bytes());
    set(b"LOGNAME", user.name.as_bytes());
    set(b"SHELL", if user.shell.is_empty() { b"/bin/sh" } else { &user.shell });
    if !env.iter().any(|e| e.starts_with(b"PATH=")) {
        env.push([b"PATH=", PATH_DEFAULT].concat());
    }
    env
}

fn matches(pattern: &str, name: &[u8]) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix.as_bytes()),
        None => name == pattern.as_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use guard_policy::Source;
    use guard_policy::roles::Known;

    use super::*;

    fn me() -> User {
        User {
            name: "alice".into(),
            uid: 1000,
            gid: 1000,
            home: b"/home/alice".to_vec(),
            shell: Vec::new(),
            groups: vec![1000],
        }
    }

    fn env(asked: &[&str]) -> Vec<String> {
        let asked: Vec<Vec<u8>> = asked.iter().map(|e| e.as_bytes().to_vec()).collect();
        let env = environment(&SessionConfig::default(), &me(), &asked);
        env.into_iter().map(|e| String::from_utf8(e).unwrap()).collect()
    }

    #[test]
    fn only_named_variables_pass() {
        let env = env(&["LD_PRELOAD=/x", "LC_ALL=C", "HOME=/root", "TERM=a", "TERM=b", "junk"]);
        assert!(env.contains(&"LC_ALL=C".into()) && env.contains(&"HOME=/home/alice".into()));
        assert!(!env.iter().any(|e| e.starts_with("LD_PRELOAD") || e == "HOME=/root" || e == "TERM=b"));
        assert!(env.iter().any(|e| e.starts_with("PATH=")));
    }

    #[test]
    fn names_and_lives_are_bounded() {
        assert!(check_name("coder-2").is_ok() && check_name("").is_err() && check_name("a b").is_err());
        let config = SessionConfig::default();
        assert_eq!(ttl(&config, 0).unwrap(), Duration::from_secs(900));
        assert_eq!(ttl(&config, 28_801).unwrap_err().code, "usage");
    }

    #[test]
    fn starting_for_others_needs_the_right() {
        let mut config = SessionConfig::default();
        assert_eq!(acting_user(&config, None, &me(), "root").unwrap_err().code, "denied");
        assert_eq!(acting_user(&config, None, &me(), "alice").unwrap().uid, 1000);
        config.may_start_for_others.insert("alice".into());
        assert_eq!(acting_user(&config, None, &me(), "root").unwrap().uid, 0);
        assert_eq!(acting_user(&config, None, &me(), "nobody-by-that-name").unwrap_err().code, "usage");
        // Where roles are in force the configuration's list gives nothing.
        let load = |text| Roles::load(&Source { name: "roles.yaml", text }, Known::Any).unwrap();
        let without = load("version: 1\n");
        let refused = acting_user(&config, Some(&without), &me(), "root").unwrap_err();
        assert_eq!(
            (refused.code.as_str(), refused.message.as_str()),
            ("denied", "alice may not start sessions for root: it has no role")
        );
        let with = load("version: 1\nroles: {lead: {start_for_others: [root]}}\npeople: {alice: [lead]}\n");
        assert_eq!(acting_user(&SessionConfig::default(), Some(&with), &me(), "root").unwrap().uid, 0);
        assert_eq!(acting_user(&SessionConfig::default(), Some(&with), &me(), "bob").unwrap_err().code, "denied");
    }
}
