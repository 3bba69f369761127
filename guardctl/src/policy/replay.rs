//! The facts of a recorded exec, put together again so that a policy can judge them.
//!
//! It must not judge what a record does not hold as if it did: what is missing is named, and taken as the stricter case or not
//! replayed at all. Fails: with the reason why a record cannot be replayed.

use guard_policy::{Facts, FileRef, Policy, Role, Stdin, Verdict};
use guard_proto::v1::{self, ExecFacts};

/// From so many reasons on, some may have been left out of the record (`guard-policy` keeps 32).
const REASONS_FULL: usize = 32;
/// A path that no command names: nothing is inside a workspace that is not known.
const NOWHERE: &[u8] = b"/proc/0/workspace-not-recorded";

/// A recorded exec that can be judged again.
#[derive(Clone, Debug)]
pub struct Replay<'a> {
    recorded: &'a ExecFacts,
    files: Vec<FileRef<'a>>,
    home: Vec<u8>,
    workspace: &'a [u8],
    env: Vec<Vec<u8>>,
    /// Facts that the record does not hold, and how each was taken.
    pub missing: Vec<&'static str>,
}

/// What stands beside the record.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// Working directory of the session's start.
    pub workspace: Option<&'a [u8]>,
    /// Home of the session's user, as the caller names it.
    pub home: Option<&'a str>,
}

impl<'a> Replay<'a> {
    /// Puts the facts together, or says why they cannot be.
    pub fn of(facts: &'a ExecFacts, said: &v1::Verdict, beside: Beside<'a>) -> Result<Self, &'static str> {
        complete(facts, said)?;
        let mut missing = Vec::new();
        let files = files(facts, said, &mut missing)?;
        let home = match beside.home {
            Some(home) => home.as_bytes().to_vec(),
            None => {
                missing.push("home of the user: taken from uid and paths");
                derived_home(facts.uid, &[beside.workspace.unwrap_or_default(), &facts.cwd])
                    .ok_or("the user's home is not recorded and cannot be told: give --home")?
            }
        };
        if beside.workspace.is_none() {
            missing.push("workspace: no path counts as inside it");
        }
        Ok(Replay {
            recorded: facts,
            files,
            home,
            workspace: beside.workspace.unwrap_or(NOWHERE),
            env: environment(facts, &mut missing),
            missing,
        })
    }

    /// What `policy` says of it.
    pub fn judge(&self, policy: &Policy) -> Verdict {
        policy.decide(&Facts {
            argv: &self.recorded.argv,
            files: &self.files,
            cwd: &self.recorded.cwd,
            home: &self.home,
            workspace: self.workspace,
            uid: self.recorded.uid,
            env: &self.env,
            // Not recorded. It decides whose approval covers what follows, never the tier.
            stdin: Stdin::Other,
            entry: self.recorded.entry,
        })
    }
}

fn complete(facts: &ExecFacts, said: &v1::Verdict) -> Result<(), &'static str> {
    if said.reasons.iter().any(|r| r.rule_id == "builtin.delete-budget") {
        return Err("no exec: a request for more deletions");
    }
    if said.reasons.iter().any(|r| r.rule_id == "builtin.not-kept") {
        return Err("denied by the daemon, not by policy: its arguments could not be kept");
    }
    if !facts.masked.is_empty() {
        return Err("secrets are masked in its arguments");
    }
    if facts.argv_omitted > 0 {
        return Err("arguments are left out of the record (blob)");
    }
    if u32::try_from(facts.argv.len()) != Ok(facts.argv_count) {
        return Err("the record holds other arguments than it counts");
    }
    if !facts.cwd.starts_with(b"/") {
        return Err("no working directory is recorded");
    }
    Ok(())
}

/// Whether the session could change a file is not a field of the record: the recorded verdict has it among its reasons.
fn files<'a>(
    facts: &'a ExecFacts,
    said: &v1::Verdict,
    missing: &mut Vec<&'static str>,
) -> Result<Vec<FileRef<'a>>, &'static str> {
    let full = said.reasons.len() >= REASONS_FULL;
    if full {
        missing.push("what the session can change: every file counts as changeable");
    }
    let mut found = Vec::new();
    for file in &facts.files {
        let role = match file.role.as_str() {
            "program" => Role::Program,
            "script" => Role::Script,
            "interpreter" => Role::Interpreter,
            "loader" => Role::Loader,
            _ => return Err("a file has a role that this version does not know"),
        };
        let marked = |rule: &str| full || marked(facts, said, rule, &file.path);
        found.push(FileRef {
            path: &file.path,
            role,
            session_writable: marked("builtin.session-writable"),
            foreign: marked("builtin.foreign-file-system"),
        });
    }
    Ok(found)
}

fn marked(facts: &ExecFacts, said: &v1::Verdict, rule: &str, path: &[u8]) -> bool {
    let is = |path: &[u8], evidence: &str| {
        let path = String::from_utf8_lossy(path);
        evidence.strip_suffix('…').map_or(path == evidence, |start| path.starts_with(start))
    };
    let reasons = said.reasons.iter().filter(|r| r.rule_id == rule);
    // A reason that names none of the files, as its path was masked, holds for all of them.
    reasons.into_iter().any(|r| is(path, &r.evidence) || !facts.files.iter().any(|f| is(&f.path, &r.evidence)))
}

/// Names without values match no value that policy takes for harmless.
fn environment(facts: &ExecFacts, missing: &mut Vec<&'static str>) -> Vec<Vec<u8>> {
    if !facts.env_notable.is_empty() {
        missing.push("values of variables: none counts as harmless");
    }
    if facts.envc as usize > facts.env_notable.len() {
        missing.push("variables that the policy of that time did not note");
    }
    let kept = facts.env_values.iter().filter(|v| !facts.env_notable.contains(&v.name));
    let kept = kept.map(|v| [v.name.as_slice(), b"=", &v.value].concat());
    facts.env_notable.iter().cloned().chain(kept).collect()
}

fn derived_home(uid: u32, paths: &[&[u8]]) -> Option<Vec<u8>> {
    if uid == 0 {
        return Some(b"/root".to_vec());
    }
    paths.iter().find_map(|path| {
        let name = path.strip_prefix(b"/home/")?.split(|b| *b == b'/').next().filter(|n| !n.is_empty())?;
        Some([b"/home/", name].concat())
    })
}

#[cfg(test)]
mod tests {
    use guard_policy::Tier;
    use guard_proto::v1::{MaskedArg, Reason};

    use super::*;
    use crate::testing::ran;

    fn tier(facts: &ExecFacts, said: &v1::Verdict) -> Tier {
        let policy = Policy::load(&[]).unwrap();
        let beside = Beside { workspace: Some(b"/home/alice/repo"), home: None };
        Replay::of(facts, said, beside).unwrap().judge(&policy).tier
    }

    #[test]
    fn a_complete_record_is_judged_as_it_was() {
        assert_eq!(tier(&ran(&["ls", "-l"]), &v1::Verdict::default()), Tier::Allow);
        assert_eq!(tier(&ran(&["rm", "-rf", "/"]), &v1::Verdict::default()), Tier::Deny);
    }

    #[test]
    fn a_variable_without_its_value_is_never_harmless() {
        let mut facts = ran(&["ls"]);
        facts.env_notable = vec![b"LD_PRELOAD".to_vec()];
        assert_eq!(tier(&facts, &v1::Verdict::default()), Tier::Review);
    }

    #[test]
    fn a_file_that_the_session_could_change_still_is_one() {
        let reason = |evidence: &str| Reason {
            rule_id: "builtin.session-writable".into(),
            evidence: evidence.into(),
            ..Reason::default()
        };
        for evidence in ["/usr/bin/ls", "/usr/b…", "/home/***"] {
            let said = v1::Verdict { reasons: vec![reason(evidence)], ..v1::Verdict::default() };
            assert_eq!(tier(&ran(&["ls"]), &said), Tier::Review, "{evidence}");
        }
        let full = v1::Verdict { reasons: vec![Reason::default(); REASONS_FULL], ..v1::Verdict::default() };
        assert_eq!(tier(&ran(&["ls"]), &full), Tier::Review);
    }

    #[test]
    fn what_a_record_does_not_hold_is_not_replayed() {
        let said = v1::Verdict::default();
        let whole = ran(&["ls"]);
        let refused = |facts: &ExecFacts| Replay::of(facts, &said, Beside::default()).err();
        let masked = ExecFacts { masked: vec![MaskedArg::default()], ..whole.clone() };
        assert_eq!(refused(&masked), Some("secrets are masked in its arguments"));
        assert!(refused(&ExecFacts { argv_omitted: 1, ..whole.clone() }).is_some());
        assert!(refused(&ExecFacts { argv_count: 2, ..whole.clone() }).is_some());
        assert!(refused(&ExecFacts { cwd: b"/srv".to_vec(), ..whole.clone() }).unwrap().contains("--home"));
        assert_eq!(refused(&whole), None);
    }
}
