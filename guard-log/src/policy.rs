//! C2SP `tlog-policy` files: which logs are known, which witnesses, and how many of them make a checkpoint valid.
//!
//! It must not ask anyone: what is in the note counts. Fails: a file that is not exactly the format names its line; a
//! checkpoint without a quorum is an error that says who cosigned and who did not.

use std::collections::HashMap;

use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::cosignature::Cosigner;
use crate::note::{Verifier, open_lines};

/// Longest file that is looked at.
pub const POLICY_MAX: usize = 64 << 10;
/// Most logs, and most witnesses and groups together.
const LINES_MAX: usize = 256;
/// The name that stands for no cosignature at all.
const NONE: &str = "none";

/// Why a file is no policy, or a checkpoint does not satisfy one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PolicyError {
    /// A line is not as it has to be.
    #[error("policy: line {line}: {why}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// The file as a whole.
    #[error("policy: {0}")]
    File(&'static str),
    /// The checkpoint is of a log that the policy does not name.
    #[error("policy: it names no log {0:?}")]
    Log(String),
    /// The checkpoint is not one, or not signed by the log.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// A witness of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyWitness {
    /// Its name in the policy.
    pub name: String,
    /// What checks its cosignatures.
    pub key: Cosigner,
    /// Where it is asked, if the policy says so: the submission prefix.
    pub url: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Witness(usize),
    /// At least so many of these rules.
    Group(usize, Vec<usize>),
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    logs: Vec<Verifier>,
    witnesses: Vec<PolicyWitness>,
    rules: Vec<Rule>,
    /// `None`: no cosignature is needed.
    quorum: Option<usize>,
}

/// What the signatures of a checkpoint come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cosigned {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Witnesses that cosigned, by their name in the policy, with the time that each gives, in seconds since the epoch.
    pub by: Vec<(String, u64)>,
    /// Witnesses of the policy that did not, or whose line is wrong.
    pub missing: Vec<String>,
    /// Whether the quorum is there.
    pub quorum: bool,
}

impl Policy {
    /// Reads a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        if bytes.len() > POLICY_MAX {
            return Err(PolicyError::File("it is longer than 64 KiB"));
        }
        if bytes.iter().any(|byte| byte.is_ascii_control() && !b"\t\n".contains(byte)) {
            return Err(PolicyError::File("it has control characters other than tab and line feed"));
        }
        if !bytes.is_empty() && !bytes.ends_with(b"\n") {
            return Err(PolicyError::File("its last line does not end with a line feed"));
        }
        let mut reading = Reading::default();
        for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            // The format lets comments be of any bytes; names that people shall read are text here.
            if line.trim_ascii_start().starts_with(b"#") {
                continue;
            }
            let wrong = |why| PolicyError::Line { line: number, why };
            let text = std::str::from_utf8(line).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
            let words: Vec<&str> = text.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
            if !words.is_empty() {
                reading.line(&words).map_err(wrong)?;
            }
        }
        let quorum = reading.quorum.ok_or(PolicyError::File("it has no `quorum` line"))?;
        Ok(Self { logs: reading.logs, witnesses: reading.witnesses, rules: reading.rules, quorum })
    }

    /// The key of a log of this name.
    pub fn log(&self, origin: &str) -> Option<&Verifier> {
        self.logs.iter().find(|log| log.name() == origin)
    }

    /// All witnesses.
    pub fn witnesses(&self) -> &[PolicyWitness] {
        &self.witnesses
    }

    /// Opens a checkpoint of one of the policy's logs, and counts its cosignatures. A wrong line of a witness counts as none:
    /// anybody may add lines.
    pub fn open(&self, note: &[u8]) -> Result<Cosigned, PolicyError> {
        let text = std::str::from_utf8(note).map_err(|_| CheckpointError::Utf8)?;
        let (text, lines) = open_lines(text).map_err(CheckpointError::from)?;
        let origin = text.lines().next().unwrap_or_default();
        let log = self.log(origin).ok_or_else(|| PolicyError::Log(origin.to_owned()))?;
        let checkpoint = Checkpoint::open(note, log)?;
        let (mut by, mut missing, mut signed) = (Vec::new(), Vec::new(), Vec::new());
        for witness in &self.witnesses {
            let time = lines.iter().find_map(|line| witness.key.check(text, line).ok().flatten());
            signed.push(time.is_some());
            match time {
                Some(time) => by.push((witness.name.clone(), time)),
                None => missing.push(witness.name.clone()),
            }
        }
        let quorum = self.is_quorum(&signed);
        Ok(Cosigned { checkpoint, by, missing, quorum })
    }

    /// Whether these witnesses, in the order of [`Self::witnesses`], are enough.
    fn is_quorum(&self, signed: &[bool]) -> bool {
        let Some(quorum) = self.quorum else { return true };
        // A group only has members of earlier lines, so one pass in order settles all.
        let mut held: Vec<bool> = Vec::with_capacity(self.rules.len());
        for rule in &self.rules {
            let is = |list: &[bool], at: &usize| list.get(*at).copied().unwrap_or(false);
            held.push(match rule {
                Rule::Witness(at) => is(signed, at),
                Rule::Group(least, members) => members.iter().filter(|at| is(&held, at)).count() >= *least,
            });
        }
        held.get(quorum).copied().unwrap_or(false)
    }
}

/// A policy while it is read.
#[derive(Default)]
struct Reading {
    logs: Vec<Verifier>,
    witnesses: Vec<PolicyWitness>,
    rules: Vec<Rule>,
    names: HashMap<String, usize>,
    /// Rules that are a group's member already.
    used: Vec<usize>,
    quorum: Option<Option<usize>>,
}

impl Reading {
    fn line(&mut self, words: &[&str]) -> Result<(), String> {
        match *words {
            ["log", vkey] | ["log", vkey, _] => self.log(vkey),
            ["witness", name, vkey] => self.witness(name, vkey, None),
            ["witness", name, vkey, url] => self.witness(name, vkey, Some(url)),
            ["group", name, least, ref members @ ..] if !members.is_empty() => self.group(name, least, members),
            ["quorum", name] => self.set_quorum(name),
            _ => Err("accepted are `log VKEY [URL]`, `witness NAME VKEY [URL]`, `group NAME all|any|K NAME...` and \
                      `quorum NAME|none`"
                .to_owned()),
        }
    }

    fn log(&mut self, vkey: &str) -> Result<(), String> {
        let log = Verifier::parse(vkey).map_err(|e| e.to_string())?;
        if self.logs.iter().any(|known| known.key_bytes() == log.key_bytes() || known.name() == log.name()) {
            return Err(format!("log {:?} comes twice", log.name()));
        }
        if self.logs.len() >= LINES_MAX {
            return Err(format!("more than {LINES_MAX} logs"));
        }
        self.logs.push(log);
        Ok(())
    }

    fn witness(&mut self, name: &str, vkey: &str, url: Option<&str>) -> Result<(), String> {
        let key = Cosigner::parse(vkey).map_err(|e| format!("witness {name}: {e}"))?;
        if let Some(known) = self.witnesses.iter().find(|known| known.key.key_bytes() == key.key_bytes()) {
            return Err(format!("witness {name} has the key of witness {}", known.name));
        }
        self.define(name, Rule::Witness(self.witnesses.len()))?;
        self.witnesses.push(PolicyWitness { name: name.to_owned(), key, url: url.map(str::to_owned) });
        Ok(())
    }

    fn group(&mut self, name: &str, least: &str, members: &[&str]) -> Result<(), String> {
        let mut rules = Vec::with_capacity(members.len());
        for member in members {
            let rule = *self.names.get(*member).ok_or_else(|| format!("{member} is not defined above"))?;
            if self.used.contains(&rule) {
                return Err(format!("{member} is a member already; each name counts once"));
            }
            self.used.push(rule);
            rules.push(rule);
        }
        let least = match least {
            "all" => rules.len(),
            "any" => 1,
            number => number
                .parse()
                .ok()
                .filter(|k: &usize| (1..=rules.len()).contains(k) && k.to_string() == number)
                .ok_or_else(|| format!("{number} of {} members: accepted are all, any or 1 to {0}", rules.len()))?,
        };
        self.define(name, Rule::Group(least, rules))
    }

    fn define(&mut self, name: &str, rule: Rule) -> Result<(), String> {
        if name == NONE || self.names.contains_key(name) {
            return Err(format!("the name {name} is taken"));
        }
        if self.rules.len() >= LINES_MAX {
            return Err(format!("more than {LINES_MAX} witnesses and groups"));
        }
        self.names.insert(name.to_owned(), self.rules.len());
        self.rules.push(rule);
        Ok(())
    }

    fn set_quorum(&mut self, name: &str) -> Result<(), String> {
        if self.quorum.is_some() {
            return Err("a second quorum".to_owned());
        }
        self.quorum = Some(match name {
            NONE => None,
            name => Some(*self.names.get(name).ok_or_else(|| format!("{name} is not defined above"))?),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cosignature::tests::Witness;
    use crate::signer::KeyFile;

    fn witnesses() -> Vec<Witness> {
        (1..=6).map(|n| Witness::new(&format!("witness.test/{n}"), n)).collect()
    }

    /// The example of the format: two of three X, one of three Y.
    fn example(log: &KeyFile) -> String {
        let mut text = format!("# a comment\n\nlog {} https://log.test/\n", log.vkey());
        for (witness, name) in witnesses().iter().zip(["X1", "X2", "X3", "Y1", "Y2", "Y3"]) {
            text += &format!("\twitness  {name} {}\n", witness.vkey());
        }
        text + "group X 2 X1 X2 X3\ngroup Y any Y1 Y2 Y3\ngroup both all X Y\nquorum both\n"
    }

    fn note(log: &KeyFile, by: &[usize]) -> String {
        let head = Checkpoint::empty(log.name());
        let mut note = head.sign(log).unwrap();
        let witnesses = witnesses();
        by.iter().for_each(|at| note += &witnesses[*at].cosign(&head.text(), 1000 + *at as u64));
        note
    }

    #[test]
    fn quorums_are_counted_as_the_example_of_the_format_says() {
        let log = KeyFile::generate("log.test").unwrap();
        let policy = Policy::parse(example(&log).as_bytes()).unwrap();
        for (by, quorum) in [
            (vec![], false),
            (vec![0, 1], false),
            (vec![3, 4, 5], false),
            (vec![0, 3], false),
            (vec![0, 0, 3], false),
            (vec![0, 2, 5], true),
            (vec![0, 1, 2, 3, 4, 5], true),
        ] {
            let cosigned = policy.open(note(&log, &by).as_bytes()).unwrap();
            assert_eq!(cosigned.quorum, quorum, "{by:?}");
        }
        let cosigned = policy.open(note(&log, &[0, 2, 5]).as_bytes()).unwrap();
        assert_eq!(cosigned.by, [("X1".to_owned(), 1000), ("X3".to_owned(), 1002), ("Y3".to_owned(), 1005)]);
        assert_eq!(cosigned.missing, ["X2", "Y1", "Y2"]);
    }

    #[test]
    fn a_wrong_line_of_a_witness_counts_for_nothing_and_breaks_nothing() {
        let log = KeyFile::generate("log.test").unwrap();
        let policy = Policy::parse(example(&log).as_bytes()).unwrap();
        let forged = witnesses()[1].cosign("another text\n", 5);
        let cosigned = policy.open((note(&log, &[0, 5]) + &forged).as_bytes()).unwrap();
        assert!(!cosigned.quorum && cosigned.missing.contains(&"X2".to_owned()));
        // Nor does it hide the right one after it.
        let right = witnesses()[1].cosign(&Checkpoint::empty("log.test").text(), 5);
        assert!(policy.open((note(&log, &[0, 5]) + &forged + &right).as_bytes()).unwrap().quorum);
    }

    #[test]
    fn a_log_that_is_not_named_or_did_not_sign_is_refused() {
        let (log, other) = (KeyFile::generate("log.test").unwrap(), KeyFile::generate("other.test").unwrap());
        let policy = Policy::parse(example(&log).as_bytes()).unwrap();
        assert_eq!(policy.open(note(&other, &[0, 1, 3]).as_bytes()), Err(PolicyError::Log("other.test".into())));
        let stranger = KeyFile::generate("log.test").unwrap();
        assert!(matches!(policy.open(note(&stranger, &[0, 1, 3]).as_bytes()), Err(PolicyError::Checkpoint(_))));
        let none = Policy::parse(format!("log {}\nquorum none\n", log.vkey()).as_bytes()).unwrap();
        assert!(none.open(note(&log, &[]).as_bytes()).unwrap().quorum);
    }

    #[test]
    fn comments_may_be_of_any_bytes_and_names_are_text() {
        let log = crate::signer::KeyFile::generate("log.test").unwrap();
        let latin = [b"\t# J\xf6rg\n".as_slice(), example(&log).as_bytes()].concat();
        assert_eq!(Policy::parse(&latin).unwrap().witnesses().len(), 6);
        let named = [b"group J\xf6rg any X1\n".as_slice(), example(&log).as_bytes()].concat();
        assert!(Policy::parse(&named).unwrap_err().to_string().contains("line 1: it is not UTF-8"));
    }

    #[test]
    fn what_is_no_policy_names_its_line() {
        let log = KeyFile::generate("log.test").unwrap();
        let right = example(&log);
        let twice = format!("witness again {}\n", witnesses()[0].vkey());
        for (text, expected) in [
            (right.replace("quorum both\n", ""), "no `quorum` line"),
            (right.replace("quorum both", "quorum nobody"), "line 13: nobody is not defined above"),
            (format!("{right}quorum X\n"), "line 14: a second quorum"),
            (right.replace("group both all X Y", "group both all X X1"), "line 12: X1 is a member already"),
            (right.replace("group X 2", "group X 4"), "line 10: 4 of 3 members"),
            (right.replace("group X 2", "group X 0"), "line 10: 0 of 3 members"),
            (right.replace("group X 2", "group none 2"), "line 10: the name none is taken"),
            (right.replace("group Y", "group X"), "line 11: the name X is taken"),
            (right.replace("group X 2 X1 X2 X3", &twice), "line 10: witness again has the key of witness X1"),
            (right.replace("group X", "grup X"), "line 10: accepted are"),
            (right.replace('\t', "\r"), "control characters"),
            (right.trim_end().to_owned(), "last line"),
            (format!("log {}\n{right}", log.vkey()), "line 4: log \"log.test\" comes twice"),
            (format!("witness w {}\n{right}", log.vkey()), "line 1: witness w: not a verifier key: the algorithm"),
        ] {
            let error = Policy::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "((log|witness|group|quorum|none|all|a|b|1|#)[ \n]){0,30}") {
            let _ = Policy::parse(text.as_bytes()).is_ok();
        }
    }
}
