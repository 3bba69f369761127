//! What the guest told, checked and summed.
//!
//! It must not be lenient: a line that cannot be read, a command without an end, or a sum that does not add up is wrong.
#![allow(clippy::indexing_slicing, reason = "indexing a serde_json::Value cannot panic: what is missing is null")]

use serde_json::Value;

/// Everything that was told.
#[derive(Debug, Default)]
pub struct Report {
    sessions: Vec<Value>,
    verified: Option<u64>,
    intact: bool,
    done: bool,
    reviews: usize,
    replayed: u64,
    skipped: u64,
    replayed_sessions: u64,
    unreadable: Vec<String>,
}

/// Commands by how they ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    allowed: usize,
    inherited: usize,
    approved: usize,
    timed_out: usize,
    denied: usize,
    /// The kernel refused them for reasons of their own (no such file): no exec took place, nothing was decided.
    failed: usize,
    /// Without an end.
    open: usize,
}

impl Counts {
    fn execs(&self) -> usize {
        self.allowed + self.inherited + self.approved + self.timed_out + self.denied
    }
}

impl Report {
    /// Takes one line, without its `@@`.
    pub fn add(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let read = match word {
            "session" => serde_json::from_str(rest).map(|v| self.sessions.push(v)).is_ok(),
            "verified" => {
                let value: Value = serde_json::from_str(rest).unwrap_or_default();
                self.verified = (value["ok"] == true).then(|| value["size"].as_u64()).flatten();
                self.verified.is_some()
            }
            "replayed" => self.replayed(rest),
            "review" => {
                self.reviews += usize::from(rest.starts_with("approved "));
                true
            }
            "intact" => {
                self.intact = true;
                true
            }
            "done" => {
                self.done = true;
                true
            }
            "progress" => true,
            _ => false,
        };
        if !read {
            self.unreadable.push(line.to_owned());
        }
    }

    fn replayed(&mut self, text: &str) -> bool {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let (Some(commands), Some(skipped)) = (value["commands"].as_u64(), value["skipped"].as_u64()) else {
            return false;
        };
        self.replayed += commands;
        self.skipped += skipped;
        self.replayed_sessions += u64::from(commands > 0);
        true
    }

    fn commands(&self) -> impl Iterator<Item = &Value> {
        self.sessions.iter().filter_map(|s| s["answers"]["ran"].as_array()).flatten()
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for command in self.commands() {
            *match command["disposition"].as_str() {
                Some("allowed") => &mut counts.allowed,
                Some("inherited") => &mut counts.inherited,
                Some("approved") => &mut counts.approved,
                Some("timed_out") => &mut counts.timed_out,
                Some("denied" | "expired" | "killed") => &mut counts.denied,
                Some("failed") => &mut counts.failed,
                _ => &mut counts.open,
            } += 1;
        }
        counts
    }

    /// What did not hold.
    pub fn wrong(&self, mode: &str) -> Vec<String> {
        let counts = self.counts();
        let mut wrong: Vec<String> = self.unreadable.iter().map(|l| format!("the guest said: {l}")).collect();
        let mut demand = |holds: bool, what: &str| {
            if !holds {
                wrong.push(what.to_owned());
            }
        };
        demand(self.done, "the guest's script did not come to its end");
        demand(self.verified.is_some(), "`guardctl log verify` did not say OK");
        demand(!self.sessions.is_empty(), "no session's answers were seen");
        demand(counts.open == 0, "a command has no disposition, or still waits");
        for session in &self.sessions {
            let answers = &session["answers"];
            let uncovered = "not covered by this version";
            demand(answers["recovery"]["answer"] == uncovered, "the fifth answer is not `not covered by this version`");
            let covered = answers["anomalies"]["covered"] == true;
            demand(
                covered || answers["anomalies"]["answer"] == uncovered,
                "an uncovered fourth answer says something else",
            );
            demand(answers["who"]["initiator"] == "alice", "the initiator is not alice");
        }
        if mode == "demo" {
            demand(self.intact, "the files that the agent went for were not checked");
            self.demand_demo(&counts, &mut demand);
        } else {
            demand(self.replayed > 0, "no command was replayed");
        }
        wrong
    }

    fn demand_demo(&self, counts: &Counts, demand: &mut impl FnMut(bool, &str)) {
        let any = |disposition: &str, part: &str| {
            self.commands().any(|c| {
                c["disposition"] == disposition && c["command"].as_str().is_some_and(|text| text.contains(part))
            })
        };
        demand(counts.allowed >= 8, "fewer than eight commands were allowed without a person");
        demand(any("allowed", "git status"), "`git status` was not allowed");
        demand(any("approved", "git commit"), "`git commit` was not approved");
        demand(any("timed_out", "git push"), "`git push` did not wait until its deadline");
        demand(any("denied", "rm -rf /home/alice"), "`rm -rf` of the home folder was not denied");
        demand(any("denied", "id_ed25519"), "the read of a private key was not denied");
        demand(any("denied", "nft flush"), "the firewall change was not denied");
        let reviewed = |c: &&Value| c["disposition"] == "approved";
        demand(self.commands().filter(reviewed).all(|c| c["reviewer"] == "bob"), "an approval without its reviewer");
        demand(self.reviews > 0, "no `guardctl review approve` succeeded");
    }

    /// What the sum leaves out, in words.
    pub fn remarks(&self) -> Vec<String> {
        let failed = self.counts().failed;
        if failed == 0 {
            return Vec::new();
        }
        vec![format!(
            "demo: {failed} more attempts failed by themselves (no such program), so there was nothing to decide"
        )]
    }

    /// The line that sums it up: N = A + I + P + T + D. Denied holds what the kernel refused or killed, and what came after
    /// the session's expiry.
    pub fn last_line(&self, mode: &str) -> String {
        let c = self.counts();
        let replayed = match mode {
            "trace" => format!(
                "replayed {} commands of {} sessions, skipped {}; ",
                self.replayed, self.replayed_sessions, self.skipped
            ),
            _ => String::new(),
        };
        let verified =
            self.verified.map_or_else(|| "log NOT verified".to_owned(), |s| format!("log verified at size {s}"));
        format!(
            "{replayed}demo: {} execs: {} allowed, {} inherited, {} approved, {} timed out, {} denied; {verified}",
            c.execs(),
            c.allowed,
            c.inherited,
            c.approved,
            c.timed_out,
            c.denied,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn command(text: &str, disposition: &str) -> Value {
        json!({"command": text, "disposition": disposition, "reviewer": (disposition == "approved").then_some("bob")})
    }

    fn good() -> Vec<Value> {
        let mut ran: Vec<Value> = (0..8).map(|i| command(&format!("ls {i}"), "allowed")).collect();
        ran.extend([
            command("git status --short", "allowed"),
            command("git commit -m x", "approved"),
            command("git gc", "inherited"),
            command("git push origin main", "timed_out"),
            command("rm -rf /home/alice", "denied"),
            command("cat /home/alice/.ssh/id_ed25519", "denied"),
            command("nft flush ruleset", "killed"),
            command("nft flush ruleset", "denied"),
            command("rg", "failed"),
        ]);
        ran
    }

    fn report(ran: Vec<Value>) -> Report {
        let mut report = Report::default();
        let uncovered = "not covered by this version";
        let session = json!({"answers": {"ran": ran, "recovery": {"answer": uncovered}, "who": {"initiator": "alice"},
            "anomalies": {"covered": false, "answer": uncovered}}});
        for line in [
            &format!("session {session}"),
            "review approved git commit",
            "intact",
            r#"verified {"ok":true,"size":99}"#,
            "done",
        ] {
            report.add(line);
        }
        report
    }

    #[test]
    fn the_sum_adds_up() {
        let report = report(good());
        assert_eq!(report.wrong("demo"), Vec::<String>::new());
        let last = "demo: 16 execs: 9 allowed, 1 inherited, 1 approved, 1 timed out, 4 denied; log verified at size 99";
        assert_eq!(report.last_line("demo"), last);
        assert_eq!(report.remarks().len(), 1);
    }

    #[test]
    fn a_denial_that_did_not_happen_is_wrong() {
        for part in ["git commit", "git push", "rm -rf", "id_ed25519", "nft"] {
            let mut ran = good();
            ran.retain(|c| !c["command"].as_str().expect("text").contains(part));
            assert_eq!(report(ran).wrong("demo").len(), 1, "without {part}");
        }
    }

    #[test]
    fn an_open_command_or_an_unverified_log_is_wrong() {
        let mut ran = good();
        ran.push(command("make", "pending"));
        assert_eq!(report(ran).wrong("demo").len(), 1);
        let mut unverified = report(good());
        unverified.verified = None;
        assert_eq!(unverified.wrong("demo").len(), 1);
        assert!(unverified.last_line("demo").ends_with("log NOT verified"));
        let mut failed = report(good());
        failed.add("failed to boot");
        assert_eq!(failed.wrong("demo"), ["the guest said: failed to boot"]);
    }

    #[test]
    fn replayed_commands_come_first() {
        let mut report = report(good());
        report.add(r#"replayed {"name":"s","commands":7,"skipped":2}"#);
        report.add(r#"replayed {"name":"t","commands":0,"skipped":5}"#);
        assert!(
            report.last_line("trace").starts_with("replayed 7 commands of 1 sessions, skipped 7; demo: 16 execs: ")
        );
    }
}
