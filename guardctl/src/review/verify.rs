//! `guardctl review verify`: whether the decisions of a session, or of a whole log that was copied, were signed, checked here with a
//! role file at hand.
//!
//! It must not believe what collector or host say of a signature: only records and keys. Fails: see `client`; an approval
//! whose signatures do not hold is exit code 1.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use guard_policy::Source;
use guard_policy::decision::Statement;
use guard_policy::roles::{self, Known, Roles};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, ExecDecision, QueryRequest, ReviewDecision};
use serde_json::{Value, json};

use super::delegate;
use crate::args::VerifyDecisionsArgs;
use crate::client::{self, Client};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::log;
use crate::output::Out;
use crate::record::Entry;
use crate::table::{Cell, Table, Tone, grow, left, right};
use crate::text::escape_str;

const FILE_MAX: u64 = 1 << 20;
const PAGE: u32 = 5_000;

/// Runs the command.
pub async fn run(args: &VerifyDecisionsArgs, config: &Config, out: &Out) -> Result<()> {
    let roles = read(&args.roles)?;
    let mut checker = Checker { session: args.session.clone(), ..Checker::of(&roles) };
    match (&args.dir, &args.session) {
        (Some(dir), _) => log::of_folder(dir, args.vkey.as_deref(), config, &mut |entry| {
            checker.add(entry);
            Ok(())
        })?,
        (None, session) => {
            let mut client = client::connect(config).await?;
            ask(&mut client, session.as_deref().unwrap_or_default(), &mut checker).await?;
        }
    }
    let checks = checker.checks;
    let wrong = checks.iter().filter(|c| c.why.is_some()).count();
    if out.is_json() {
        let decisions: Vec<Value> = checks.iter().map(Check::json).collect();
        out.json(
            &json!({"session": args.session, "roles_digest": roles.digest(), "ok": wrong == 0, "decisions": decisions}),
        )?;
    } else if checks.is_empty() {
        out.print("nobody approved anything in these records\n")?;
    } else {
        out.table(&table(&checks))?;
    }
    match wrong {
        0 => Ok(()),
        n => Err(CliError::new(Exit::No, format_args!("{n} of {} do not hold by this role file", checks.len()))
            .hint("a key may have been added or taken away since; compare with the file that was in force")),
    }
}

fn read(path: &Path) -> Result<Roles> {
    let bad = |why: String| CliError::new(Exit::Config, why);
    let name = path.display().to_string();
    let size = fs::metadata(path).map_err(|e| bad(format!("{name}: {e}")))?.len();
    if size > FILE_MAX {
        return Err(bad(format!("{name}: more than 1 MiB")));
    }
    let text = fs::read_to_string(path).map_err(|e| bad(format!("{name}: {e}")))?;
    Roles::load(&Source { name: &name, text: &text }, Known::Any).map_err(|e| bad(e.to_string()))
}

/// Every record of a session, from the collector.
async fn ask(client: &mut Client, session: &str, checker: &mut Checker<'_>) -> Result<()> {
    let mut last = None;
    loop {
        let (after_leaf, has_after_leaf) = (last.unwrap_or_default(), last.is_some());
        let request = QueryRequest {
            session_id: session.to_owned(),
            limit: PAGE,
            after_leaf,
            has_after_leaf,
            ..QueryRequest::default()
        };
        let mut stream = client.query(request).await.map_err(client::refused)?.into_inner();
        let before = last;
        while let Some(entry) = stream.message().await.map_err(client::refused)? {
            last = Some(entry.leaf);
            checker.add(Entry::parse(entry)?);
        }
        if last == before {
            return Ok(());
        }
    }
}

/// One decision, or what a host made of several.
#[derive(Debug)]
struct Check {
    leaf: u64,
    request: String,
    by: String,
    what: &'static str,
    key: Option<[u8; 32]>,
    why: Option<String>,
}

/// Checks what approvals the records hold, in order: each decision of a reviewer, and that a host approved by such alone.
struct Checker<'a> {
    roles: &'a Roles,
    /// Only this one.
    session: Option<String>,
    /// Request → digest of its record.
    shown: HashMap<String, [u8; 32]>,
    /// Leaf of a decision that holds → its request.
    held: BTreeMap<u64, String>,
    checks: Vec<Check>,
}

// === impl Checker ===

impl<'a> Checker<'a> {
    fn of(roles: &'a Roles) -> Self {
        Self { roles, session: None, shown: HashMap::new(), held: BTreeMap::new(), checks: Vec::new() }
    }

    /// Of a whole log: whether it is of the session. A decision is a record of the collector's, and names the request alone.
    fn is_meant(&self, entry: &Entry) -> bool {
        self.session.as_ref().is_none_or(|session| match &entry.body {
            Some(Body::ReviewDecision(b)) => self.shown.contains_key(&b.request_id) || entry.session == *session,
            _ => entry.session == *session,
        })
    }

    fn add(&mut self, entry: Entry) {
        if !self.is_meant(&entry) {
            return;
        }
        let leaf = entry.leaf;
        match entry.body {
            Some(Body::ExecRequest(b)) => {
                self.shown.extend(entry.shown.map(|digest| (b.request_id, digest)));
            }
            Some(Body::ReviewDecision(b)) if b.approve => {
                let found = signed(&b, self.shown.get(&b.request_id), entry.wall_ns, self.roles);
                if found.is_ok() {
                    self.held.insert(leaf, b.request_id.clone());
                }
                let (key, why) = (found.as_ref().ok().copied(), found.err());
                self.checks.push(Check { leaf, request: b.request_id, by: b.reviewer, what: "decision", key, why });
            }
            Some(Body::ExecDecision(b)) if b.disposition == i32::from(Disposition::Approved) => {
                let why = approved(&b, &self.held);
                self.checks.push(Check { leaf, request: b.request_id, by: b.reviewer, what: "host", key: None, why });
            }
            _ => {}
        }
    }
}

/// Id of the key that signed a decision, or why it does not hold.
fn signed(b: &ReviewDecision, shown: Option<&[u8; 32]>, at_ns: i64, roles: &Roles) -> Result<[u8; 32], String> {
    let statement = Statement {
        request_id: &b.request_id,
        digest: &b.digest,
        record_sha256: &b.record_sha256,
        approve: b.approve,
        scope: &b.scope,
        categories: &b.categories,
        max_execs: b.max_execs,
        expires_unix_ns: b.expires_unix_ns,
        reason: &b.reason,
        reviewer: &b.reviewer,
        decided_unix_ns: b.decided_unix_ns,
        delegation_id: b.delegation.as_ref().map_or("", |d| &d.id),
    };
    let key = roles.signed(&statement, &b.signature, at_ns).map_err(|e| e.to_string())?;
    if let Some(d) = &b.delegation {
        if d.to != b.reviewer {
            return Err(format!("the delegation by {} is to {}", escape_str(&d.from), escape_str(&d.to)));
        }
        roles.delegated(&delegate::statement(d), &d.signature, at_ns).map_err(|e| e.to_string())?;
    }
    match shown {
        Some(digest) if b.record_sha256 == digest => Ok(key),
        Some(_) => Err("it is for another record than the request's".to_owned()),
        None => Err("the request's record is not among the session's records before it".to_owned()),
    }
}

/// Why a host's approval does not rest on decisions that hold.
fn approved(b: &ExecDecision, held: &BTreeMap<u64, String>) -> Option<String> {
    if b.decision_leaves.is_empty() {
        return Some("the host names no decisions: its daemon is of an earlier version".to_owned());
    }
    let wrong = b.decision_leaves.iter().find(|leaf| held.get(leaf) != Some(&b.request_id))?;
    Some(format!("the host approved by the decision at leaf {wrong}, which does not hold"))
}

impl Check {
    fn json(&self) -> Value {
        json!({"leaf": self.leaf, "request": self.request, "by": self.by, "what": self.what, "holds": self.why.is_none(),
            "key_id": self.key.map(hex::encode), "why": self.why})
    }
}

fn table(checks: &[Check]) -> Table {
    let mut table = Table::new(&[right("LEAF", 8), left("WHAT", 8), left("HOLDS", 5), grow("REQUEST, BY")]);
    for c in checks {
        let (word, tone) = if c.why.is_none() { ("yes", Tone::Good) } else { ("NO", Tone::Bad) };
        let key = c.key.map(|id| format!(", key {}", roles::short(&id))).unwrap_or_default();
        let by = format!("{} by {}{key}", escape_str(&c.request), escape_str(&c.by));
        table.row([c.leaf.to_string().into(), c.what.into(), Cell::toned(word, tone), by.into()]);
        if let Some(why) = &c.why {
            table.below(Cell::toned(escape_str(why), Tone::Bad));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use guard_log::record::{Epoch, Header, HostId, Kind, Record, SessionId};
    use guard_policy::decision::ReviewSigner;
    use guard_proto::v1::{ExecRequest, LogEntry, RecordBody};
    use prost::Message;
    use sha2::{Digest, Sha256};

    use super::*;

    const ID: &str = "01KG9F6R00ABCDEFGHJKMNPQRS";

    fn entry(leaf: u64, body: Body) -> LogEntry {
        let (host, epoch, session) = (HostId([1; 16]), Epoch([2; 16]), SessionId::NONE);
        let kind = Kind(guard_proto::kind_number(&body));
        let header =
            Header { version: 1, kind, host, epoch, seq: leaf, prev: [0; 32], boot_ns: 0, wall_unix_ns: 9, session };
        let body = RecordBody { body: Some(body) }.encode_to_vec();
        LogEntry { leaf, record: Record::seal(&header, &body).expect("sealed").bytes().clone().into() }
    }

    fn roles(signer: &ReviewSigner) -> Roles {
        let text = format!(
            "version: 1\nroles: {{r: {{query: true}}}}\npeople: {{bob: [r]}}\nkeys: {{bob: [{{key: '{}'}}]}}\n",
            signer.public().text()
        );
        Roles::load(&Source { name: "r", text: &text }, Known::Any).expect("roles")
    }

    /// A request, bob's approval and the host's.
    fn session(signer: &ReviewSigner) -> Vec<LogEntry> {
        let request = ExecRequest { request_id: ID.into(), digest: vec![1; 32], ..ExecRequest::default() };
        let body = RecordBody { body: Some(Body::ExecRequest(request.clone())) }.encode_to_vec();
        let mut decision = ReviewDecision {
            request_id: ID.into(),
            digest: vec![1; 32],
            reviewer: "bob".into(),
            approve: true,
            scope: "once".into(),
            max_execs: 1,
            record_sha256: Sha256::digest(&body).to_vec(),
            ..ReviewDecision::default()
        };
        let statement = Statement {
            request_id: ID,
            digest: &decision.digest,
            record_sha256: &decision.record_sha256,
            approve: true,
            scope: "once",
            categories: &[],
            max_execs: 1,
            expires_unix_ns: 0,
            reason: "",
            reviewer: "bob",
            decided_unix_ns: 0,
            delegation_id: "",
        };
        decision.signature = signer.sign(&statement).to_vec();
        let host = ExecDecision {
            request_id: ID.into(),
            disposition: Disposition::Approved.into(),
            decision_leaves: vec![5],
            ..ExecDecision::default()
        };
        vec![
            entry(4, Body::ExecRequest(request)),
            entry(5, Body::ReviewDecision(decision)),
            entry(6, Body::ExecDecision(host)),
        ]
    }

    fn check(entries: &[LogEntry], roles: &Roles) -> Vec<Check> {
        let mut checker = Checker::of(roles);
        entries.iter().for_each(|entry| checker.add(Entry::parse(entry.clone()).expect("a record")));
        checker.checks
    }

    fn holds(entries: &[LogEntry], roles: &Roles) -> Vec<bool> {
        check(entries, roles).iter().map(|c| c.why.is_none()).collect()
    }

    #[test]
    fn records_and_keys_alone_say_whether_an_approval_holds() {
        let signer = ReviewSigner::from_seed(&[5; 32]);
        let (entries, good) = (session(&signer), roles(&signer));
        assert_eq!(holds(&entries, &good), [true, true]);
        let other = roles(&ReviewSigner::from_seed(&[6; 32]));
        assert_eq!(holds(&entries, &other), [false, false], "the key is not bob's");
        assert_eq!(holds(&entries[1..], &good), [false, false], "nothing says what was shown");
        // A host that approves by a decision that nobody made.
        assert_eq!(holds(&[entries[0].clone(), entries[2].clone()], &good), [false]);
        let text = table(&check(&entries, &other)).render(80, false);
        assert!(text.lines().all(|l| l.chars().count() <= 80) && text.contains("NO"), "{text}");
    }
}
