//! One question to one witness: `POST ADDRESS/add-checkpoint`.
//!
//! It must not follow redirects, nor read more than a few lines. Fails: what came instead, in words.

use std::time::Duration;

use guard_log::checkpoint::Checkpoint;
use guard_log::note::Verifier;
use guard_log::policy::PolicyWitness;
use guard_log::proof::Growth;
use guard_log::store::Store;
use reqwest::redirect::Policy as Redirects;
use reqwest::{Client, Response, StatusCode};

use super::line_of;
use crate::exit::in_words;
use crate::proofs::Public;

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(15);
/// Longest answer that is read.
const ANSWER_MAX: usize = 16 << 10;
/// Bytes of an answer that an error shows.
const SHOWN: usize = 200;

/// What came of it.
pub(super) enum Asked {
    /// It signed: its line, and when.
    Cosigned { line: String, time: u64 },
    /// Not now.
    Failed(String),
    /// It has seen a history that this log does not continue.
    Conflict(String),
}

/// What a witness says that does not fail.
enum Answer {
    Cosigned {
        line: String,
        time: u64,
    },
    /// It has seen this size, not the one that was assumed.
    Seen(u64),
}

/// Asks.
pub(super) struct Asker(Client);

impl Asker {
    pub(super) fn new() -> Result<Self, String> {
        let client = Client::builder()
            .redirect(Redirects::none())
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .user_agent(concat!("guard-collector/", env!("CARGO_PKG_VERSION")));
        client.build().map(Self).map_err(|e| in_words(&e))
    }

    /// Shows a checkpoint to a witness that has seen `known` leaves, as far as is known: it says if it is not so.
    pub(super) async fn show(&self, store: &Store, witness: &PolicyWitness, known: u64, note: &str) -> Asked {
        let mut seen = known;
        for _ in 0..2 {
            match self.once(store, witness, seen, note).await {
                Ok(Answer::Cosigned { line, time }) => return Asked::Cosigned { line, time },
                Ok(Answer::Seen(size)) => seen = size,
                Err(asked) => return asked,
            }
        }
        Asked::Failed(format!("it says that it has seen {seen} leaves, and does not take the proof from there"))
    }

    async fn once(&self, store: &Store, witness: &PolicyWitness, old: u64, note: &str) -> Result<Answer, Asked> {
        let (store, vkey) = (store.clone(), store.vkey());
        let text = note.to_owned();
        let made = tokio::task::spawn_blocking(move || body(&store, &vkey, old, &text)).await;
        let (head, body) = made.map_err(|e| Asked::Failed(e.to_string()))??;
        let url = format!("{}/add-checkpoint", witness.url.as_deref().unwrap_or_default().trim_end_matches('/'));
        let answer = self.0.post(&url).body(body).send().await.map_err(|e| Asked::Failed(in_words(&e)))?;
        let status = answer.status();
        let text = read(answer).await?;
        let shown = || format!("it answers {status}: {}", text.chars().take(SHOWN).collect::<String>().trim());
        match status {
            StatusCode::OK => match line_of(witness, note, &text) {
                Some((line, time)) => Ok(Answer::Cosigned { line, time }),
                None => Err(Asked::Failed(format!("no line of its answer is its cosignature: {}", shown()))),
            },
            StatusCode::CONFLICT => {
                let size = text.trim_end_matches('\n').parse().map_err(|_| Asked::Failed(shown()))?;
                if size <= head.size {
                    return Ok(Answer::Seen(size));
                }
                let has = head.size;
                Err(Asked::Conflict(format!(
                    "it has cosigned {size} leaves of this log, which has {has}: an older copy?"
                )))
            }
            StatusCode::UNPROCESSABLE_ENTITY => Err(Asked::Conflict(format!(
                "it does not accept that {} leaves continue the {old} that it cosigned: {}",
                head.size,
                shown()
            ))),
            _ => Err(Asked::Failed(shown())),
        }
    }
}

/// The request: the size that the witness has seen, the proof from there, the checkpoint.
fn body(store: &Store, vkey: &str, old: u64, note: &str) -> Result<(Checkpoint, String), Asked> {
    let failed = |e: &dyn std::fmt::Display| Asked::Failed(format!("no proof for it: {e}"));
    let verifier = Verifier::parse(vkey).map_err(|e| failed(&e))?;
    let head = Checkpoint::open(note.as_bytes(), &verifier).map_err(|e| failed(&e))?;
    // More may be public by now, and then older partial tiles are gone.
    let have = store.published().0.max(head.size);
    let growth = Growth::make(&Public(store), have, old, note, &head).map_err(|e| failed(&e))?;
    Ok((head, growth.to_string()))
}

async fn read(mut answer: Response) -> Result<String, Asked> {
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|e| Asked::Failed(in_words(&e)))? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > ANSWER_MAX {
            return Err(Asked::Failed(format!("its answer is longer than {ANSWER_MAX} bytes")));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
