//! Recorded execs, from the collector or from a log folder, chosen by session, agent, program and time.
//!
//! It must not cut the answer short: more records than can be held is an error. Fails: as `client` and `log` do.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use clap::Args;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, Exec, ExecFacts, Identity, QueryRequest, Verdict};

use crate::client;
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::record::Entry;
use crate::{log, stream, time};

/// Most records held at a time.
const RECORDS_MAX: usize = 500_000;

/// Which recorded execs.
#[derive(Clone, Debug, Default, Args)]
pub struct RecordedArgs {
    /// Ask the collector; this is also what is done without --dir
    #[arg(long, conflicts_with = "dir")]
    pub log: bool,
    /// An exported or copied log instead of the collector; it is verified first
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// With --dir: verifier key [default: as `log verify`]
    #[arg(long, value_name = "KEY", requires = "dir")]
    pub vkey: Option<String>,
    /// Session id
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub session: String,
    /// Agent name
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub agent: String,
    /// Not before this time, or so long ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Not after this time, or so long ago
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Home of the sessions' user, which records do not hold [default: told from user id and paths]
    #[arg(long, value_name = "DIR")]
    pub home: Option<String>,
}

/// The records that were asked for, and where their sessions started.
#[derive(Debug, Default)]
pub struct Recorded {
    /// In log order.
    pub entries: Vec<Entry>,
    workspaces: HashMap<String, Vec<u8>>,
    /// By request: what came of it, and who decided.
    decisions: HashMap<String, (Disposition, String)>,
}

/// What came of an exec that a person was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// Approved by this person, for itself.
    Approved(&'a str),
    /// Denied by this person.
    Denied(&'a str),
    /// Ran because of an approval that is told of elsewhere: of another exec, or of the request for this one.
    Covered,
    /// Nobody decided: policy did, or the deadline.
    Other,
}

/// One exec as it was recorded.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// Leaf index in the log.
    pub leaf: u64,
    /// Host's wall time, ns.
    pub wall_ns: i64,
    /// What came of it.
    pub outcome: Outcome<'a>,
    /// What was measured.
    pub facts: &'a ExecFacts,
    /// What was said of it.
    pub verdict: &'a Verdict,
    /// Working directory of the session's start, where the log has it.
    pub workspace: Option<&'a [u8]>,
    /// Its session.
    pub session: &'a str,
    /// Whose session it is.
    pub agent: &'a str,
    /// Serial number of the bundle by whose stage `observe` it was judged; 0: there was none.
    pub observed_by: u64,
    /// It ran although its verdict would have held or denied it.
    pub not_enforced: bool,
}

impl Recorded {
    /// Reads them.
    pub async fn read(args: &RecordedArgs, config: &Config) -> Result<Recorded> {
        let now = time::now_ns();
        let at = |name: &str, text: &Option<String>| match text {
            None => Ok(0),
            Some(text) => {
                time::parse(text, now).map_err(|e| CliError::new(Exit::Usage, format_args!("--{name} {text:?}: {e}")))
            }
        };
        let (since, until) = (at("since", &args.since)?, at("until", &args.until)?);
        let mut recorded = Recorded::default();
        if let Some(dir) = &args.dir {
            let mut each = |entry: Entry| recorded.take(entry, &|e| wanted(e, args, since, until));
            log::of_folder(dir, args.vkey.as_deref(), config, &mut each)?;
            return Ok(recorded);
        }
        let mut client = client::connect(config).await?;
        let filter = QueryRequest {
            session_id: args.session.clone(),
            agent: args.agent.clone(),
            since_unix_ns: since,
            until_unix_ns: until,
            ..QueryRequest::default()
        };
        stream::each(&mut client, filter, u32::MAX, &mut |e| recorded.take(Entry::parse(e)?, &|_| true)).await?;
        // Sessions that started before the time asked for: their first record says where.
        for session in recorded.unplaced() {
            let first = QueryRequest { session_id: session, ..QueryRequest::default() };
            stream::each(&mut client, first, 1, &mut |e| recorded.take(Entry::parse(e)?, &|_| false)).await?;
        }
        Ok(recorded)
    }

    /// Keeps what is wanted, and of every session where it started.
    pub fn take(&mut self, entry: Entry, wanted: &dyn Fn(&Entry) -> bool) -> Result<()> {
        if let Some(Body::SessionStart(start)) = &entry.body {
            self.workspaces.insert(entry.session.clone(), start.cwd.clone());
        }
        if let Some(Body::ExecDecision(decision)) = &entry.body
            && decision.retry_of == 0
        {
            bounded(self.decisions.len())?;
            let told = (decision.disposition(), decision.reviewer.clone());
            self.decisions.insert(decision.request_id.clone(), told);
        }
        if matches!(entry.body, Some(Body::Exec(_) | Body::ExecRequest(_))) && wanted(&entry) {
            bounded(self.entries.len())?;
            self.entries.push(entry);
        }
        Ok(())
    }

    fn unplaced(&self) -> Vec<String> {
        let sessions = self.entries.iter().map(|e| &e.session);
        let mut all: Vec<String> = sessions.filter(|s| !self.workspaces.contains_key(*s)).cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    /// Every exec; `Err` is the leaf of one that has no facts or no verdict.
    pub fn execs(&self) -> impl Iterator<Item = Result<Judged<'_>, u64>> {
        let requests: HashSet<&str> = self.entries.iter().filter_map(request_of).collect();
        self.entries.iter().map(move |entry| {
            let (facts, verdict, outcome) = match &entry.body {
                Some(Body::Exec(exec)) => (&exec.facts, &exec.verdict, self.outcome(exec, &requests)),
                Some(Body::ExecRequest(request)) => {
                    (&request.facts, &request.verdict, self.decided(&request.request_id))
                }
                _ => return Err(entry.leaf),
            };
            let (Some(facts), Some(verdict)) = (facts, verdict) else { return Err(entry.leaf) };
            let workspace = self.workspaces.get(&entry.session).map(Vec::as_slice);
            let (observed_by, not_enforced) = match &entry.body {
                Some(Body::Exec(exec)) => (exec.observed_by, exec.not_enforced),
                _ => (0, false),
            };
            let agent = identity(entry).map(|i| i.agent.as_str()).unwrap_or_default();
            let (leaf, wall_ns, session) = (entry.leaf, entry.wall_ns, entry.session.as_str());
            Ok(Judged { leaf, wall_ns, outcome, facts, verdict, workspace, session, agent, observed_by, not_enforced })
        })
    }

    fn decided(&self, request: &str) -> Outcome<'_> {
        match self.decisions.get(request) {
            Some((_, reviewer)) if reviewer.is_empty() => Outcome::Other,
            Some((Disposition::Approved, reviewer)) => Outcome::Approved(reviewer),
            Some((Disposition::Denied, reviewer)) => Outcome::Denied(reviewer),
            _ => Outcome::Other,
        }
    }

    /// An approval is told of once: by the request, where that is among the records.
    fn outcome<'a>(&'a self, exec: &'a Exec, requests: &HashSet<&str>) -> Outcome<'a> {
        match exec.disposition() {
            Disposition::Inherited => Outcome::Covered,
            Disposition::Approved if requests.contains(exec.request_id.as_str()) => Outcome::Covered,
            Disposition::Approved if !exec.reviewer.is_empty() => Outcome::Approved(&exec.reviewer),
            _ => Outcome::Other,
        }
    }
}

fn request_of(entry: &Entry) -> Option<&str> {
    match &entry.body {
        Some(Body::ExecRequest(request)) => Some(&request.request_id),
        _ => None,
    }
}

fn bounded(held: usize) -> Result<()> {
    if held < RECORDS_MAX {
        return Ok(());
    }
    Err(CliError::new(Exit::Usage, format_args!("more than {RECORDS_MAX} recorded execs"))
        .hint("ask for less: --since, --until, --agent or --session"))
}

fn wanted(entry: &Entry, args: &RecordedArgs, since: i64, until: i64) -> bool {
    let agent = identity(entry).map(|i| i.agent.as_str()).unwrap_or_default();
    (args.session.is_empty() || args.session == entry.session)
        && (args.agent.is_empty() || args.agent == agent)
        && (since == 0 || entry.wall_ns >= since)
        && (until == 0 || entry.wall_ns <= until)
}

fn identity(entry: &Entry) -> Option<&Identity> {
    match &entry.body {
        Some(Body::Exec(exec)) => exec.identity.as_ref(),
        Some(Body::ExecRequest(request)) => request.identity.as_ref(),
        _ => None,
    }
}
