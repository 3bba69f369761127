//! Records to a client, as fast as it takes them.
//!
//! Nothing is kept for a slow client: the next records are read from the log when there is room in its connection. Fails: a
//! log that cannot be read ends the stream with `UNAVAILABLE`, as does the collector's stop; a caller whose certificate no longer
//! counts is told so.

use std::ops::Range;
use std::time::Duration;

use guard_log::record::SessionId;
use guard_log::store::{Store, StoreError};
use guard_proto::v1::LogEntry;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Entries, blocking};

/// Entries between reader and connection.
const QUEUE: usize = 64;
const READ_RECORDS: usize = 256;
const READ_BYTES: usize = 1 << 20;
/// How long one wait for new records occupies a thread.
const WAIT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(20);

fn unreadable(error: StoreError) -> Status {
    match error {
        StoreError::Pruned { .. } => Status::out_of_range(error.to_string()),
        error => Status::unavailable(format!("the log cannot be read: {error}")),
    }
}

/// Consecutive leaves together.
pub fn runs(leaves: &[u64]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = vec![];
    for &leaf in leaves {
        match runs.last_mut() {
            Some(run) if run.end == leaf => run.end = leaf + 1,
            _ => runs.push(leaf..leaf + 1),
        }
    }
    runs
}

/// Reads consecutive leaves whole.
pub fn read_run(store: &Store, mut run: Range<u64>) -> Result<Vec<LogEntry>, Status> {
    let mut entries = vec![];
    while run.start < run.end {
        let wanted = usize::try_from(run.end - run.start).unwrap_or(READ_RECORDS).min(READ_RECORDS);
        let records = store.read(run.start, wanted, READ_BYTES).map_err(unreadable)?;
        if records.is_empty() {
            return Err(Status::unavailable(format!("the log cannot be read: no record at leaf {}", run.start)));
        }
        run.start += records.len() as u64;
        entries.extend(records.into_iter().map(|(leaf, r)| LogEntry { leaf, record: r.bytes().to_vec() }));
    }
    Ok(entries)
}

/// Sends until all is sent, the client has gone or it is over, with the status that says why.
fn stream<F>(
    over: impl Future<Output = Status> + Send + 'static,
    feed: impl FnOnce(mpsc::Sender<Result<LogEntry, Status>>) -> F,
) -> Entries
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (out, entries) = mpsc::channel(QUEUE);
    let feed = feed(out.clone());
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = feed => ended,
            status = over => Err(status),
            () = out.closed() => return,
        };
        if let Err(status) = ended {
            let _ = out.send(Err(status)).await;
        }
    });
    Box::pin(ReceiverStream::new(entries))
}

/// The records of these leaves, and at the end why they are not all.
pub fn of_leaves(
    store: Store,
    leaves: Vec<u64>,
    gone: Option<Status>,
    over: impl Future<Output = Status> + Send + 'static,
) -> Entries {
    stream(over, |out| async move {
        for run in runs(&leaves) {
            let mut start = run.start;
            while start < run.end {
                let part = start..run.end.min(start + READ_RECORDS as u64);
                start = part.end;
                let store = store.clone();
                for entry in blocking(move || read_run(&store, part)).await? {
                    if out.send(Ok(entry)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        gone.map_or(Ok(()), Err)
    })
}

/// Every record from a leaf on, for ever.
pub fn tail(
    store: Store,
    mut from: u64,
    session: Option<SessionId>,
    over: impl Future<Output = Status> + Send + 'static,
) -> Entries {
    stream(over, move |out| async move {
        loop {
            let reader = store.clone();
            let records = blocking(move || {
                if reader.size() <= from && !reader.wait_past(from, WAIT) {
                    return Ok(vec![]);
                }
                reader.read(from, READ_RECORDS, READ_BYTES).map_err(unreadable)
            })
            .await?;
            if records.is_empty() {
                // A log that is closed does not wait.
                tokio::time::sleep(PAUSE).await;
            }
            for (leaf, record) in records {
                from = leaf + 1;
                if session.is_some_and(|id| record.header().session != id) {
                    continue;
                }
                if out.send(Ok(LogEntry { leaf, record: record.bytes().to_vec() })).await.is_err() {
                    return Ok(());
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_together() {
        assert_eq!(runs(&[1, 2, 3, 7, 9, 10]), [1..4, 7..8, 9..11]);
        assert!(runs(&[]).is_empty());
    }
}
