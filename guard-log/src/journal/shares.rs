//! What each session has in the journal, so that none can fill it alone.
//!
//! Pure. Kept for runs of records, not for each: an acknowledgement gives back whole runs.

use std::collections::{HashMap, VecDeque};

use crate::record::SessionId;

/// Records of one entry of the account of what sessions have in the journal.
const ACCOUNT_RECORDS: u32 = 256;

/// Bytes of each session that the collector has not acknowledged.
#[derive(Default)]
pub(super) struct Shares {
    sessions: HashMap<SessionId, u64>,
    /// In order of sequence numbers.
    accounts: VecDeque<Account>,
}

/// What some consecutive records take, by session.
struct Account {
    last_seq: u64,
    records: u32,
    sessions: HashMap<SessionId, u64>,
}

impl Shares {
    /// Bytes of one.
    pub(super) fn of(&self, session: SessionId) -> u64 {
        self.sessions.get(&session).copied().unwrap_or(0)
    }

    /// Notes a record.
    pub(super) fn charge(&mut self, session: SessionId, seq: u64, bytes: u64) {
        if session == SessionId::NONE {
            return;
        }
        *self.sessions.entry(session).or_default() += bytes;
        match self.accounts.back_mut().filter(|a| a.records < ACCOUNT_RECORDS) {
            Some(account) => {
                account.last_seq = seq;
                account.records += 1;
                *account.sessions.entry(session).or_default() += bytes;
            }
            None => {
                let sessions = HashMap::from([(session, bytes)]);
                self.accounts.push_back(Account { last_seq: seq, records: 1, sessions });
            }
        }
    }

    /// Everything below `next_seq` is acknowledged.
    pub(super) fn release(&mut self, next_seq: u64) {
        while self.accounts.front().is_some_and(|a| a.last_seq < next_seq) {
            for (session, bytes) in self.accounts.pop_front().into_iter().flat_map(|a| a.sessions) {
                if let Some(known) = self.sessions.get_mut(&session) {
                    *known = known.saturating_sub(bytes);
                    if *known == 0 {
                        self.sessions.remove(&session);
                    }
                }
            }
        }
    }
}
