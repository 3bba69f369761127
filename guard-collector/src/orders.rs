//! What commands on the collector's machine ask of the running collector: revoke a certificate, put one on record.
//!
//! An order is a file in `DIR/orders`, taken within a second and carried out once it is durable in the log; the answer is a file
//! beside it. With no collector running it waits for the next start. Whoever can write there can read the CA's key too. It must
//! not lose an order: the file goes after its record is durable; a crash in between carries it out twice.
//! Fails: an order that cannot be read is set aside by name; a log that takes no records leaves orders where they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guard_log::frame;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tonic::Code;

use crate::exit::{CollectorError, Exit, Result};
use crate::issuing;
use crate::ledger::Ledger;
use crate::pki::{self, About};
use crate::ticks::Ticks;
use crate::tokens::{folder, write_new};

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Orders of one look.
const AT_ONCE: usize = 256;
/// A command waits so long for the running collector.
const PATIENCE: Duration = Duration::from_secs(10);
const ANSWERS_KEPT: Duration = Duration::from_secs(3600);
const FILE_MAX: u64 = 64 << 10;

/// One order.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Order {
    /// Ends certificates.
    Revoke {
        /// A name or a serial.
        target: String,
        /// Who says so.
        by: String,
        /// Why.
        reason: String,
    },
    /// A certificate that a command made.
    Made {
        /// Who it is for.
        name: String,
        /// Its role.
        role: String,
        /// Its serial.
        serial: String,
        /// From when it is valid.
        not_before: i64,
        /// Its end.
        not_after: i64,
        /// SHA-256 of its key, in hexadecimal digits.
        public_key: String,
        /// Who made it.
        by: String,
    },
}

impl Order {
    /// To put a certificate on record.
    pub fn made(about: &About, by: &str) -> Self {
        Self::Made {
            name: about.name.clone(),
            role: about.role.clone(),
            serial: about.serial.clone(),
            not_before: about.not_before_unix,
            not_after: about.not_after_unix,
            public_key: hex::encode(&about.public_key),
            by: by.to_owned(),
        }
    }
}

fn orders(dir: &Path) -> PathBuf {
    dir.join("orders")
}

/// Leaves an order for the collector: where its answer will be.
pub fn leave(dir: &Path, order: &Order) -> Result<PathBuf> {
    folder(dir)?;
    folder(&orders(dir))?;
    let mut id = [0; 8];
    pki::random(&mut id)?;
    // In the order in which they were left.
    let name = format!("{:020}-{}", crate::own::now_ns(), hex::encode(id));
    let text = toml::to_string(order).map_err(|e| CollectorError::new(Exit::Internal, e))?;
    forget_answers(dir);
    write_new(&orders(dir).join(format!("{name}.order")), &text)?;
    Ok(orders(dir).join(format!("{name}.answer")))
}

/// Answers that nobody waited for.
fn forget_answers(dir: &Path) {
    for path in std::fs::read_dir(orders(dir)).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let age = std::fs::metadata(&path).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
        if path.extension().is_some_and(|e| e == "answer") && age.is_some_and(|age| age > ANSWERS_KEPT) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Waits for the answer; `None` if no collector gave one.
pub fn answer(path: &Path) -> Result<Option<String>> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Ok(text) = frame::read_text(path, FILE_MAX) {
            let _ = std::fs::remove_file(path);
            return match text.split_once(' ') {
                Some(("done", text)) => Ok(Some(text.to_owned())),
                Some(("refused", text)) => Err(CollectorError::new(Exit::Usage, text)),
                _ => Err(CollectorError::new(Exit::Internal, format_args!("an odd answer: {text:?}"))),
            };
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(None)
}

/// Carries out what is there. An error is the log's: it stays for the next time.
fn carry_out(dir: &Path, ledger: &Ledger) -> std::result::Result<(), String> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(orders(dir))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "order"))
        .collect();
    found.sort();
    for path in found.into_iter().take(AT_ONCE) {
        let text = frame::read_text(&path, FILE_MAX).map_err(|e| e.to_string());
        match text.and_then(|text| toml::from_str::<Order>(&text).map_err(|e| e.to_string())) {
            Ok(order) => {
                let said = one(ledger, order)?;
                if let Err(error) = frame::replace(&path.with_extension("answer"), said.as_bytes()) {
                    tracing::warn!(%error, order = %path.display(), "the answer to an order cannot be written");
                }
                std::fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            }
            Err(why) => {
                tracing::error!(order = %path.display(), why, "an order cannot be read; it is set aside");
                std::fs::rename(&path, path.with_extension("unreadable"))
                    .map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
    }
    Ok(())
}

fn one(ledger: &Ledger, order: Order) -> std::result::Result<String, String> {
    match order {
        Order::Revoke { target, by, reason } => match issuing::revoke(ledger, &target, &by, &reason) {
            Ok((_, text)) => Ok(format!("done {text}")),
            Err(status) if status.code() == Code::InvalidArgument => Ok(format!("refused {}", status.message())),
            Err(status) => Err(status.message().to_owned()),
        },
        Order::Made { name, role, serial, not_before, not_after, public_key, by } => {
            let Ok(public_key) = hex::decode(public_key) else { return Ok("refused the key's digest".to_owned()) };
            let about = About {
                name,
                role,
                serial,
                not_before_unix: not_before,
                not_after_unix: not_after,
                public_key,
                how: "by_hand".to_owned(),
                by,
                ..About::default()
            };
            let leaf = issuing::issued(ledger, about).map_err(|e| e.to_string())?;
            Ok(format!("done the certificate is record {leaf}"))
        }
    }
}

/// Looks for orders until the collector stops; the first time before anything is served.
pub async fn run(dir: PathBuf, ledger: Arc<Ledger>, stopping: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(LOOK, stopping);
    while ticks.next().await {
        look(&dir, &ledger).await;
    }
}

/// Carries out what there is now.
pub async fn look(dir: &Path, ledger: &Arc<Ledger>) {
    let (dir, ledger) = (dir.to_owned(), Arc::clone(ledger));
    let done = tokio::task::spawn_blocking(move || carry_out(&dir, &ledger)).await;
    if let Ok(Err(error)) = done {
        tracing::error!(error, "orders of this machine's commands wait");
    }
}
