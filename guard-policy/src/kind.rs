//! Kinds of acts: what a grant for "more of this, for the rest of the session" names.
//!
//! A kind is the rule that asks, the category, and what does it and where, each as text. It must not leave out anything that
//! decides what an act reaches: a grant covers a command only if every one of its reasons to ask is of a kind that was granted.
//! Places are told by the text of paths alone: whoever covers a command by a grant has to look at [`Verdict::places`] for symbolic links.
//! Fails closed: a reason that names no kind, text that cannot be told from other text, and critical risk are offered to nobody.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use crate::act::{Act, Doer, Target};
use crate::invocation::{Invocation, Known, Word};
use crate::model::Policy;
use crate::paths::{Places, is_below};
use crate::raw::Grant;
use crate::verdict::{REASONS_MAX, TEXT_MAX, Tier, Verdict};

/// From this risk on a person decides each command.
const CRITICAL: u8 = 80;
/// In front of the digest of a long text.
const DIGEST: &str = "… sha256:";
/// A grant covers the band of risk in which it was given: 20 to 39 and so on.
const BAND: u8 = 20;
/// The places that are the session's own.
const OWN_PLACE: &str = "the workspace or /tmp";
/// What code of the session's own can do there in its own process, where no exec would be seen.
const OWN_WORK: [&str; 3] = ["fs.write", "fs.perm", "fs.delete"];
/// Folders with fewer names in their path are too wide to be one place: the file itself is named.
const DEPTH_MIN: usize = 2;
/// What every program may use as it likes.
const SCRATCH: &[u8] = b"/tmp";
/// Folders of the root that hold the system, or all homes: no session works in them as a whole.
const SYSTEM: [&[u8]; 12] =
    [b"bin", b"boot", b"dev", b"etc", b"lib", b"lib64", b"proc", b"root", b"run", b"sbin", b"sys", b"usr"];
const HOMES: [&[u8]; 6] = [b"home", b"media", b"mnt", b"opt", b"srv", b"var"];
/// The kind of all acts that run code which policy does not read and the session makes. Whether it is a script, a text on the command line or the project's
/// build makes no difference: the session writes it, a grant cannot name what will be in it. What it starts is judged by itself.
const OWN_CODE: (&str, &str, &str) = ("kind.own-code", "code.run", "code that the session names or can write");

/// A kind of act.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// Id of the rule or built-in check that asks.
    pub rule_id: String,
    /// Category of the part.
    pub category: String,
    /// What does it and where; never empty.
    pub scope: String,
}

/// Kinds that were granted one session.
#[derive(Debug, Clone, Default)]
pub struct Granted {
    kinds: BTreeMap<Kind, u8>,
}

// === impl Kind ===

impl Kind {
    fn own_code() -> Self {
        let (rule_id, category, scope) = OWN_CODE;
        Self { rule_id: rule_id.to_owned(), category: category.to_owned(), scope: scope.to_owned() }
    }

    /// Whether its text ends with a digest, as a long one does.
    #[must_use]
    pub fn is_digested(&self) -> bool {
        self.scope.contains(DIGEST)
    }

    /// Whether code of the session's own could do the same in its own process.
    fn is_own_work(&self) -> bool {
        self.scope == OWN_PLACE && self.rule_id == "builtin.no-rule" && OWN_WORK.contains(&self.category.as_str())
    }
}

// === impl Granted ===

impl Granted {
    /// Grants kinds up to the band of a risk. Gives those that were not granted so far.
    pub fn grant(&mut self, kinds: &BTreeSet<Kind>, risk: u8) -> Vec<Kind> {
        let top = band(risk);
        let missing =
            kinds.iter().filter(|kind| self.kinds.get(*kind).is_none_or(|max| *max < risk)).cloned().collect();
        for kind in kinds {
            let max = self.kinds.entry(kind.clone()).or_default();
            *max = top.max(*max);
        }
        missing
    }

    /// Whether a kind was granted up to this risk.
    #[must_use]
    pub fn has(&self, kind: &Kind, risk: u8) -> bool {
        let granted = |kind: &Kind| self.kinds.get(kind).is_some_and(|max| risk <= *max);
        granted(kind) || (kind.is_own_work() && granted(&Kind::own_code()))
    }

    /// Whether everything for which a person would be asked was granted.
    #[must_use]
    pub fn covers(&self, verdict: &Verdict) -> bool {
        let risk = verdict.standing_risk();
        verdict.kinds().is_some_and(|kinds| kinds.iter().all(|kind| self.has(kind, risk)))
    }
}

/// Highest risk that a grant at this risk covers.
#[must_use]
pub fn band(risk: u8) -> u8 {
    (risk.min(CRITICAL) / BAND * BAND + (BAND - 1)).min(CRITICAL - 1)
}

// === impl Verdict ===

impl Verdict {
    /// What a grant for more of the same has to name, all of it. `None`: no such grant is offered.
    #[must_use]
    pub fn kinds(&self) -> Option<BTreeSet<Kind>> {
        // Where reasons may have been left out, so may have kinds.
        if self.tier != Tier::Review
            || self.takes_commands
            || self.places_lost
            || self.standing_risk() >= CRITICAL
            || self.reasons.len() >= REASONS_MAX
        {
            return None;
        }
        let asked = self.reasons.iter().filter(|r| r.tier == Tier::Review);
        let kinds: Option<BTreeSet<Kind>> = asked
            .map(|r| {
                let told = !r.scope.is_empty() && !r.scope.contains(char::REPLACEMENT_CHARACTER);
                let (own_rule, own_category, own) = OWN_CODE;
                let (rule, category) =
                    if r.scope == own { (own_rule, own_category) } else { (r.rule_id.as_str(), r.category.as_str()) };
                told.then(|| Kind { rule_id: rule.to_owned(), category: category.to_owned(), scope: r.scope.clone() })
            })
            .collect();
        kinds.filter(|kinds| !kinds.is_empty())
    }

    /// The risk without what newness added: that passes.
    #[must_use]
    pub fn standing_risk(&self) -> u8 {
        let novelty = self.risk_parts.iter().filter(|part| part.kind == "novelty").map(|part| part.points).sum();
        self.risk.saturating_sub(novelty)
    }
}

impl Act {
    /// What a grant for more of this names: the session's own code, what does it and all that it reaches, or the whole command.
    /// Empty if that cannot be told.
    pub(crate) fn kind(&self, policy: &Policy, places: &Places<'_>, words: &[Word]) -> String {
        if self.category == "shell" && self.paths.is_empty() {
            // Its commands come from elsewhere.
            return String::new();
        }
        if self.is_own_code(places) {
            return OWN_CODE.2.to_owned();
        }
        let grant = policy.categories.get(&self.category).map(|c| c.grant).unwrap_or_default();
        let does = match (grant, &self.does) {
            (Grant::Exact, _) => return command(words, places),
            // Told by the places that it names.
            (_, Doer::Word | Doer::Named(_)) if !self.paths.is_empty() => None,
            (_, Doer::Word) => Some(one(&self.evidence)),
            (_, Doer::Named(program)) => Some(program.clone()),
            (Grant::Program, Doer::Program(program, _) | Doer::Code(program, _)) => Some(program.clone()),
            (Grant::Places, Doer::Program(program, more) | Doer::Code(program, more)) => {
                Some(format!("{program} {more}").trim_end().to_owned())
            }
        };
        // Without a path, many a program works where it stands.
        let here = self.paths.is_empty().then(|| here(places)).flatten();
        let reached: BTreeSet<String> = self.paths.iter().map(|target| place(target, places)).collect();
        let named = self.hosts.iter().map(|host| authority(host)).chain(self.named.iter().map(String::as_str)).map(one);
        exact(&does.into_iter().chain(here).chain(reached).chain(named).collect::<Vec<_>>().join(" "))
    }

    /// Whether it runs code that the session names or can write, and nothing else decides what that is.
    fn is_own_code(&self, places: &Places<'_>) -> bool {
        let own = |t: &Target| t.known == Known::Fixed && is_own(&t.path, places);
        matches!(self.does, Doer::Code(..))
            && self.hosts.is_empty()
            && self.named.is_empty()
            && self.paths.iter().all(own)
    }
}

/// A whole command, and where it runs. Empty if not all of its words are known now.
fn command(words: &[Word], places: &Places<'_>) -> String {
    if words.is_empty() || !words.iter().all(Word::is_fixed) {
        return String::new();
    }
    let words = words.iter().map(|word| one(&word.lossy()));
    exact(&here(places).into_iter().chain(words).collect::<Vec<_>>().join(" "))
}

/// The working folder, if it is not the session's own.
fn here(places: &Places<'_>) -> Option<String> {
    let own =
        places.cwd == SCRATCH || is_own(&places.cwd, places) || (is_work(places.work()) && places.cwd == places.work());
    (!own).then(|| format!("in {}", one(&String::from_utf8_lossy(&places.cwd))))
}

/// Of an address, who is asked.
fn authority(host: &str) -> &str {
    let Some(begin) = host.find("://").map(|at| at + 3) else { return host };
    let rest = host.get(begin..).unwrap_or_default();
    let end = rest.find(['/', '?', '#']).map_or(host.len(), |at| begin + at);
    host.get(..end).unwrap_or(host)
}

/// The workspace, a folder, or the very file.
fn place(target: &Target, places: &Places<'_>) -> String {
    let shown = String::from_utf8_lossy(&target.path);
    if target.known != Known::Fixed {
        return one(&format!("{shown} (known when it runs)"));
    }
    let wide = [places.work(), SCRATCH]
        .into_iter()
        .find(|folder| (is_work(folder) || *folder == SCRATCH) && is_below(&target.path, folder));
    // What begins with a dot is often read by programs that start others.
    let rest = target.path.get(wide.map_or(0, <[u8]>::len)..).unwrap_or_default();
    if rest.split(|b| *b == b'/').any(|name| name.starts_with(b".")) {
        return one(&shown);
    }
    if wide.is_some() {
        return OWN_PLACE.to_owned();
    }
    let folder = target.path.iter().rposition(|b| *b == b'/').and_then(|at| target.path.get(..at)).unwrap_or_default();
    if names(folder) >= DEPTH_MIN {
        return one(&format!("{}/*", String::from_utf8_lossy(folder)));
    }
    one(&shown)
}

/// Whether the session decides what lies there: its workspace, and scratch.
pub(crate) fn is_own(path: &[u8], places: &Places<'_>) -> bool {
    is_below(path, SCRATCH) || (is_work(places.work()) && is_below(path, places.work()))
}

/// Whether the folder in which a session began is one to work in: not the root, nor a folder of the system.
fn is_work(folder: &[u8]) -> bool {
    let first = folder.split(|b| *b == b'/').find(|name| !name.is_empty()).unwrap_or_default();
    match names(folder) {
        0 => false,
        1 => !SYSTEM.contains(&first) && !HOMES.contains(&first),
        _ => !SYSTEM.contains(&first),
    }
}

/// The kind of running code from a file.
pub(crate) fn of_file(path: &[u8], places: &Places<'_>) -> String {
    if is_own(path, places) { OWN_CODE.2.to_owned() } else { exact(&String::from_utf8_lossy(path)) }
}

/// The kind of one part of a command, such as a flag that nobody described: where code decides what happens, that code's.
pub(crate) fn of_part(invocation: &Invocation<'_>, category: &str, text: &str) -> String {
    let code = category == "build.run" || (invocation.program.runs.is_some() && category == "code.run");
    if code { OWN_CODE.2.to_owned() } else { exact(&format!("{} {text}", invocation.shown())) }
}

fn names(path: &[u8]) -> usize {
    path.split(|b| *b == b'/').filter(|name| !name.is_empty()).count()
}

/// A text that cannot be taken for several.
fn one(text: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '"';
    if text.chars().all(plain) { text.to_owned() } else { format!("{text:?}") }
}

/// Bounds a text and keeps it apart from every other: a long one ends with its digest. Empty if it cannot be kept apart.
pub(crate) fn exact(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        None => text.to_owned(),
        Some(_) if text.contains(char::REPLACEMENT_CHARACTER) => String::new(),
        Some(_) => {
            let begin: String = text.chars().take(TEXT_MAX / 2).collect();
            format!("{begin}{DIGEST}{}", hex::encode(Sha256::digest(text)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Command;

    fn said(argv: &[&str]) -> Verdict {
        let policy = Policy::load(&[]).unwrap();
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        Command::exec(&policy, &argv).judge(&policy)
    }

    fn shell(text: &str) -> Verdict {
        Command::shell(text).judge(&Policy::load(&[]).unwrap())
    }

    /// Whether a grant for the first command covers the second.
    fn covers(first: &Verdict, second: &Verdict) -> bool {
        let mut granted = Granted::default();
        granted.grant(&first.kinds().expect("a kind is offered"), first.standing_risk());
        granted.covers(second)
    }

    #[test]
    fn a_grant_covers_the_same_act_in_the_same_place_alone() {
        let touch = said(&["touch", "a"]);
        assert_eq!(touch.places, [b"/home/dev/work/a"]);
        assert!(covers(&touch, &said(&["mkdir", "sub/dir"])), "written in the workspace, whatever the program");
        for other in [
            &["touch", "/srv/data/a"][..],
            &["touch", "a", "/srv/data/a"],
            &["touch", ".git/hooks/pre-commit"],
            &["touch", "../other"],
            &["rm", "a"],
            &["tar", "xf", "a.tar"],
            &["git", "commit", "-m", "x"],
        ] {
            assert!(!covers(&touch, &said(other)), "{other:?}");
        }
        assert!(covers(&said(&["git", "add", "a"]), &said(&["git", "commit", "-m", "x"])), "one category, one program");
        assert!(!covers(&said(&["git", "fetch"]), &said(&["git", "push"])));
        assert!(!covers(&said(&["git", "add", "a"]), &said(&["git", "config", "core.pager", "./x"])), "apart");
        assert!(covers(&shell("git add a"), &shell("cd sub && git commit -m x")));
        assert!(!covers(&shell("git add a"), &shell("cd /srv/repo && git commit -m x")), "elsewhere");
        let fetched = said(&["curl", "https://a.example/x"]);
        for sent in [&["-d", "@a"][..], &["--proxy", "https://b.example"], &["-T", "a"], &["-X", "DELETE"]] {
            assert!(!covers(&fetched, &said(&[&["curl", "https://a.example/x"], sent].concat())), "{sent:?}");
        }
        assert!(covers(&said(&["curl", "https://a.example/x"]), &said(&["curl", "https://a.example/y?z"])));
        assert!(!covers(&said(&["curl", "https://a.example/x"]), &said(&["curl", "https://b.example/x"])));
    }

    #[test]
    fn every_part_of_a_line_has_to_be_of_a_granted_kind() {
        let both = shell("touch a && git commit -m x");
        assert!(!covers(&shell("touch a"), &both));
        assert!(covers(&both, &shell("git commit -m y; mkdir b")));
        let mut one_by_one = Granted::default();
        for line in ["touch a", "git commit -m x"] {
            let said = shell(line);
            one_by_one.grant(&said.kinds().unwrap(), said.standing_risk());
        }
        assert!(one_by_one.covers(&both));
    }

    #[test]
    fn code_of_the_sessions_own_covers_what_it_could_do_itself_and_no_more() {
        let own = said(&["python3", "tool.py"]);
        for same in [
            &["bash", "run.sh"][..],
            &["python3", "-c", "print(1)"],
            &["touch", "a"],
            &["chmod", "+x", "a"],
            &["python3", "/tmp/x.py"],
        ] {
            assert!(covers(&own, &said(same)), "{same:?}");
        }
        for other in [
            &["python3", "/srv/tools/x.py"][..],
            &["touch", "/srv/data/a"],
            &["touch", ".bashrc"],
            &["pip", "install", "x"],
            &["git", "push"],
            &["curl", "https://a.example/"],
        ] {
            assert!(!covers(&own, &said(other)), "{other:?}");
        }
        assert!(!covers(&said(&["touch", "a"]), &own), "to write is not to run");
        // Programs that have others run code, with other rights or elsewhere, are not the session's own code.
        for other in
            [&["at", "now"][..], &["systemd-run", "id"], &["tmux", "new"], &["git", "-c", "core.editor=x", "add", "a"]]
        {
            assert!(!covers(&own, &said(other)), "{other:?}");
        }
    }

    #[test]
    fn what_all_words_decide_is_covered_by_the_same_words_alone() {
        for (first, second) in [
            (&["psql", "-c", "select 1"][..], &["psql", "-c", "update t set x = 1"][..]),
            (&["kubectl", "apply", "-f", "a.yaml"], &["kubectl", "apply", "-f", "b.yaml"]),
            (&["docker", "run", "alpine"], &["docker", "run", "-v", "/:/host", "alpine"]),
            (&["git", "push"], &["git", "push", "origin", "other"]),
        ] {
            let said_first = said(first);
            assert!(covers(&said_first, &said(first)), "{first:?}");
            assert!(!covers(&said_first, &said(second)), "{second:?}");
        }
    }

    #[test]
    fn risk_beyond_the_band_and_what_cannot_be_told_apart_are_asked_about() {
        assert_eq!([0, 19, 20, 59, 60, 79, 80, 100, 255].map(band), [19, 19, 39, 59, 79, 79, 79, 79, 79]);
        let rm = said(&["rm", "a"]);
        assert!(covers(&rm, &said(&["rm", "b"])));
        assert!(said(&["rm", "-rf", "a", "b"]).standing_risk() > band(rm.standing_risk()));
        assert!(!covers(&rm, &said(&["rm", "-rf", "a", "b"])));
        for none in [
            said(&["mount", "/dev/sda1", "/mnt"]),
            shell("LD_PRELOAD=./x.so ls"),
            shell("$X a"),
            shell("bash"),
            shell(&format!("eval 'echo {}'", "a".repeat(10_000)).replace("echo", "\u{fffd}")),
        ] {
            assert_eq!(none.kinds(), None, "{:?}", none.reasons);
        }
        let many: Vec<String> = (0..300).map(|i| i.to_string()).collect();
        let many: Vec<&str> = std::iter::once("touch").chain(many.iter().map(String::as_str)).collect();
        assert_eq!(said(&many).kinds(), None, "more places than are looked at");
        let long = |end: &str| exact(&format!("{}{end}", "x".repeat(TEXT_MAX)));
        assert!(long("a") != long("b") && long("a").len() < 2 * TEXT_MAX);
        assert_ne!(one("a b"), ["a", "b"].map(one).join(" "));
    }
}
