//! Witnesses: others who sign that they saw the log only grow (C2SP `tlog-witness`), as a `tlog-policy` file names them.
//!
//! Each published checkpoint is shown to them, with the proof that it continues what each has seen; those that a quorum
//! cosigned are kept beside the public one. A host's acknowledgement waits for them only where `witness.without_quorum` says
//! so. It must not judge by its own clock or take a line that is not a witness's. Fails: a witness that cannot be reached is
//! asked again, less and less often; a quorum that is lost and a witness that has seen another history are records.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use guard_log::frame;
use guard_log::note::open_lines;
use guard_log::policy::{POLICY_MAX, Policy, PolicyWitness};
use guard_log::record::SessionId;
use guard_log::store::Store;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{WitnessFinding, WitnessState, WitnessStatus};
use serde::Deserialize;
use tokio::sync::watch;

use crate::ledger::Ledger;
use crate::node::stopped;
use crate::own::now_ns;
use crate::ticks::Ticks;

mod ask;

use ask::{Asked, Asker};

/// Pause after a first failure of a witness; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A quorum that is late for so long is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens while no quorum cosigns.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum WithoutQuorum {
    /// Hosts' records are acknowledged as ever; the loss is a record and stands in `status`.
    #[default]
    GoOn,
    /// Hosts' records are acknowledged when a quorum has cosigned a checkpoint that holds them: until then hosts keep them,
    /// and deny execs when their journals are full.
    Hold,
}

impl WithoutQuorum {
    fn word(self) -> &'static str {
        match self {
            Self::GoOn => "go_on",
            Self::Hold => "hold",
        }
    }
}

/// The settings.
#[derive(Clone, Debug)]
pub struct WitnessConfig {
    /// A `tlog-policy` file.
    pub policy: std::path::PathBuf,
    /// How often a new checkpoint is shown to them.
    pub every: Duration,
    /// What happens without a quorum.
    pub without_quorum: WithoutQuorum,
}

/// What is known of one witness.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Size of the checkpoint that it saw last.
    size: u64,
    /// What it cosigned last, and when by its own clock, in seconds since the epoch.
    cosigned: Option<(u64, u64)>,
    error: String,
    failures: u32,
    again: Option<Instant>,
    /// A history that this log does not continue; recorded once.
    conflict: bool,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<String, Known>,
    /// Whether the checkpoint that was shown last has its quorum.
    quorum: bool,
    /// Size of the newest checkpoint with one, and when that was.
    cosigned: (u64, i64),
    /// Since when a newer one waits for it.
    late_since: Option<Instant>,
    lost: bool,
}

/// All witnesses of the log.
pub struct Witnesses {
    policy: Policy,
    without_quorum: WithoutQuorum,
    asker: Asker,
    state: Mutex<State>,
    covered: watch::Sender<u64>,
}

impl Witnesses {
    /// Reads the policy, which has to name this log and somebody to ask, and what was cosigned before.
    pub fn open(config: &WitnessConfig, store: &Store) -> Result<Self, String> {
        let policy = read(&config.policy, store).map_err(|e| format!("{}: {e}", config.policy.display()))?;
        let mut state = State::default();
        if let Some(note) = store.cosigned().map_err(|e| e.to_string())? {
            // Under another policy it may have none.
            let cosigned = policy.open(&note).map_err(|e| e.to_string())?;
            if cosigned.quorum {
                // When this collector saw it is not known any more; the witnesses' own clocks have to do.
                let newest = cosigned.by.iter().map(|(_, time)| *time).max().unwrap_or(0);
                state.cosigned = (cosigned.checkpoint.size, nanoseconds(newest));
            }
            for (name, time) in cosigned.by {
                let size = cosigned.checkpoint.size;
                state.known.insert(name, Known { size, cosigned: Some((size, time)), ..Known::default() });
            }
        }
        let covered = watch::Sender::new(state.cosigned.0);
        let asker = Asker::new()?;
        Ok(Self { policy, without_quorum: config.without_quorum, asker, state: Mutex::new(state), covered })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, where the setting says so, until a quorum has cosigned the leaves below `end`.
    pub async fn covers(&self, end: u64) {
        if self.without_quorum == WithoutQuorum::Hold {
            // The sender lives as long as this does.
            let _ = self.covered.subscribe().wait_for(|size| *size >= end).await;
        }
    }

    /// For `status`.
    pub fn status(&self) -> WitnessStatus {
        let state = self.state();
        let one = |witness: &PolicyWitness| {
            let known = state.known.get(&witness.name).cloned().unwrap_or_default();
            let (size, time) = known.cosigned.unwrap_or_default();
            WitnessState {
                name: witness.name.clone(),
                url: witness.url.clone().unwrap_or_default(),
                size,
                cosigned_unix_ns: nanoseconds(time),
                error: known.error,
            }
        };
        WitnessStatus {
            without_quorum: self.without_quorum.word().to_owned(),
            quorum: state.quorum,
            cosigned_size: state.cosigned.0,
            cosigned_unix_ns: state.cosigned.1,
            states: self.policy.witnesses().iter().map(one).collect(),
        }
    }

    /// Shows them the published checkpoint, keeps it if a quorum cosigns. What has to be recorded, if anything.
    async fn round(&self, store: &Store) -> Vec<WitnessFinding> {
        let (size, note) = store.published();
        if size == 0 || self.is_cosigned(size) {
            return Vec::new();
        }
        let one = |(witness, known)| {
            let note = &note;
            async move { (witness, self.asker.show(store, witness, known, note).await) }
        };
        let answers = join_all(self.due().into_iter().map(one)).await;
        let (mut findings, mut signed) = (Vec::new(), note);
        for (witness, asked) in answers {
            signed.extend(self.note(witness, size, asked, &mut findings));
        }
        findings.extend(self.count(store, size, &signed));
        findings
    }

    fn is_cosigned(&self, size: u64) -> bool {
        let state = self.state();
        state.quorum && state.cosigned.0 == size
    }

    /// Those with an address whose pause is over, and the size that each has seen.
    fn due(&self) -> Vec<(&PolicyWitness, u64)> {
        let (state, now) = (self.state(), Instant::now());
        let of = |witness: &PolicyWitness| state.known.get(&witness.name).cloned().unwrap_or_default();
        let asked = self.policy.witnesses().iter().filter(|witness| witness.url.is_some());
        asked
            .map(|w| (w, of(w)))
            .filter(|(_, k)| k.again.is_none_or(|at| at <= now))
            .map(|(w, k)| (w, k.size))
            .collect()
    }

    /// Keeps what a witness answered; its line, if it cosigned.
    fn note(
        &self,
        witness: &PolicyWitness,
        size: u64,
        asked: Asked,
        findings: &mut Vec<WitnessFinding>,
    ) -> Option<String> {
        let mut state = self.state();
        let cosigned_size = state.cosigned.0;
        let known = state.known.entry(witness.name.clone()).or_default();
        let (error, conflict) = match asked {
            Asked::Cosigned { line, time } => {
                *known = Known { size, cosigned: Some((size, time)), ..Known::default() };
                return Some(line);
            }
            Asked::Failed(why) => (why, false),
            Asked::Conflict(why) => (why, true),
        };
        if error != known.error {
            tracing::warn!(witness = witness.name, %error, "a witness does not cosign");
        }
        if conflict && !known.conflict {
            let (what, witness, detail) = ("conflict".to_owned(), witness.name.clone(), error.clone());
            findings.push(WitnessFinding { what, witness, cosigned_size, detail });
        }
        known.conflict |= conflict;
        known.error = error;
        known.failures += 1;
        let pause = PAUSE_MIN.saturating_mul(1 << (known.failures - 1).min(6)).min(PAUSE_MAX);
        known.again = Some(Instant::now() + pause);
        None
    }

    /// Whether the lines are a quorum; then the note is kept and those who wait go on.
    fn count(&self, store: &Store, size: u64, signed: &str) -> Option<WitnessFinding> {
        let counted = self.policy.open(signed.as_bytes()).map_err(|e| e.to_string());
        let kept = match counted {
            Ok(cosigned) if cosigned.quorum => store.keep_cosigned(signed).map_err(|e| e.to_string()),
            Ok(cosigned) => Err(format!("missing are {}", cosigned.missing.join(", "))),
            Err(error) => Err(error),
        };
        let mut state = self.state();
        state.quorum = kept.is_ok();
        let finding = |what: &str, cosigned_size, detail| {
            Some(WitnessFinding { what: what.to_owned(), witness: String::new(), cosigned_size, detail })
        };
        match kept {
            Ok(()) => {
                state.cosigned = (size, now_ns());
                state.late_since = None;
                self.covered.send_replace(size);
                let back = std::mem::take(&mut state.lost);
                if back { finding("quorum_back", size, String::new()) } else { None }
            }
            Err(why) => {
                let since = *state.late_since.get_or_insert_with(Instant::now);
                if state.lost || since.elapsed() < PATIENCE {
                    return None;
                }
                state.lost = true;
                tracing::error!(why, "no quorum of witnesses cosigns the log");
                finding("quorum_lost", state.cosigned.0, why)
            }
        }
    }
}

fn nanoseconds(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000_000)
}

/// Whether a policy names this key for the log.
pub fn check_key(path: &Path, origin: &str, vkey: &str) -> Result<(), String> {
    let text = frame::read_text(path, POLICY_MAX as u64).map_err(|e| e.to_string())?;
    let policy = Policy::parse(text.as_bytes()).map_err(|e| e.to_string())?;
    match policy.log(origin) {
        Some(log) if log.vkey() == vkey => Ok(()),
        _ => Err(format!("it does not name the key that follows; the line is `log {vkey}`")),
    }
}

fn read(path: &Path, store: &Store) -> Result<Policy, String> {
    let text = frame::read_text(path, POLICY_MAX as u64).map_err(|e| e.to_string())?;
    let policy = Policy::parse(text.as_bytes()).map_err(|e| e.to_string())?;
    let own = store.vkey();
    match policy.log(store.origin()) {
        Some(log) if store.signing_vkeys().contains(&log.vkey()) => {}
        Some(_) => return Err(format!("it has another key for this log; the line is `log {own}`")),
        None => return Err(format!("it does not name this log; add `log {own}`")),
    }
    if policy.witnesses().iter().all(|witness| witness.url.is_none()) {
        return Err("no witness has an address to ask it at: `witness NAME VKEY URL`".to_owned());
    }
    Ok(policy)
}

/// A witness's line in an answer, with the time that it gives.
fn line_of(witness: &PolicyWitness, note: &str, answer: &str) -> Option<(String, u64)> {
    answer.lines().find_map(|line| {
        let signed = format!("{note}{line}\n");
        let (text, lines) = open_lines(&signed).ok()?;
        let time = witness.key.check(text, lines.last()?).ok()??;
        Some((format!("{line}\n"), time))
    })
}

/// Shows each new checkpoint to the witnesses until the collector stops.
pub async fn run(witnesses: Arc<Witnesses>, ledger: Arc<Ledger>, every: Duration, stopping: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(every, stopping.clone());
    while ticks.next().await {
        // A witness may take its time; the collector's end does not wait for it.
        let findings = tokio::select! {
            findings = witnesses.round(ledger.store()) => findings,
            () = stopped(stopping.clone()) => return,
        };
        for finding in findings {
            if let Err(error) = ledger.say(SessionId::NONE, Body::WitnessFinding(finding)) {
                tracing::error!(%error, "what a witness does is not recorded");
            }
        }
    }
}
