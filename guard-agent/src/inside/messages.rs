//! What a session is told, kept for its own processes: the newest messages, numbered, with a count of those that are gone.
//!
//! It must never make the speaker wait: whoever holds execs or writes the journal speaks. Bounded in number and length. Fails:
//! what finds no room pushes the oldest out, and whoever asks for that one is told how many are missing. Nothing is kept on
//! disk: the log has what was decided.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_proto::v1::{self, SessionMessage};

use crate::kernel::time;

/// Messages that are kept of one session.
const KEPT_MAX: usize = 256;
/// Bytes of one message's text; what is longer is cut.
const TEXT_MAX: usize = 2000;
/// Rules named in one message.
const RULES_MAX: usize = 8;

/// The messages of one session.
pub struct Messages {
    kept: Mutex<Kept>,
    more: Condvar,
    /// Since when they are numbered: a daemon's start of the session or its taking over.
    epoch: u64,
}

#[derive(Default)]
struct Kept {
    messages: VecDeque<SessionMessage>,
    /// Number of the last one.
    last: u64,
    closed: bool,
}

impl Default for Messages {
    fn default() -> Self {
        Self { kept: Mutex::default(), more: Condvar::default(), epoch: time::boot_ns() }
    }
}

impl Messages {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers and keeps one; gives it as it is kept.
    pub fn add(&self, mut message: SessionMessage) -> SessionMessage {
        cut(&mut message.text);
        message.rules.truncate(RULES_MAX);
        let mut kept = self.lock();
        kept.last += 1;
        message.number = kept.last;
        message.unix_ns = time::wall_unix_ns();
        if kept.messages.len() >= KEPT_MAX {
            kept.messages.pop_front();
        }
        kept.messages.push_back(message.clone());
        self.more.notify_all();
        message
    }

    /// Number that the next one will have.
    pub fn next(&self) -> u64 {
        self.lock().last + 1
    }

    /// No more come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.more.notify_all();
    }

    /// Those from a number on that are kept.
    pub fn from(&self, number: u64) -> v1::Messages {
        self.answer(&self.lock(), number)
    }

    /// As [`Self::from`], once there are any, or after a while without. Nothing when no more come.
    pub fn wait_from(&self, number: u64, patience: Duration) -> Option<v1::Messages> {
        let waiting = |kept: &mut Kept| kept.last < number.max(1) && !kept.closed;
        let waited = self.more.wait_timeout_while(self.lock(), patience, waiting);
        let kept = waited.unwrap_or_else(PoisonError::into_inner).0;
        let answer = self.answer(&kept, number);
        (!answer.messages.is_empty() || !kept.closed).then_some(answer)
    }

    fn answer(&self, kept: &Kept, number: u64) -> v1::Messages {
        let number = number.max(1);
        let oldest = kept.messages.front().map_or(kept.last + 1, |m| m.number);
        v1::Messages {
            messages: kept.messages.iter().filter(|m| m.number >= number).cloned().collect(),
            next: number.max(kept.last + 1),
            missed: oldest.saturating_sub(number),
            epoch: self.epoch,
        }
    }
}

fn cut(text: &mut String) {
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn said(text: &str) -> SessionMessage {
        SessionMessage { kind: "denied".into(), text: text.into(), ..SessionMessage::default() }
    }

    #[test]
    fn the_newest_are_kept_and_what_is_gone_is_counted() {
        let all = Messages::default();
        assert_eq!(all.from(0), v1::Messages { next: 1, epoch: all.epoch, ..v1::Messages::default() });
        (1..=KEPT_MAX as u64 + 10).for_each(|n| assert_eq!(all.add(said("no")).number, n));
        let first = all.from(0);
        assert_eq!((first.messages.len(), first.missed, first.next), (KEPT_MAX, 10, KEPT_MAX as u64 + 11));
        let later = all.from(200);
        assert_eq!((later.messages[0].number, later.missed, later.next), (200, 0, first.next));
        // Asked for what is not there yet: nothing is missing, and nothing of it is skipped.
        let ahead = all.from(first.next + 5);
        assert_eq!((ahead.messages.len(), ahead.missed, ahead.next), (0, 0, first.next + 5));
    }

    #[test]
    fn the_longest_messages_fit_into_one_frame() {
        let all = Messages::default();
        let long = SessionMessage { rules: vec!["r".repeat(100); 100], ..said(&"ü".repeat(5000)) };
        (0..KEPT_MAX).for_each(|_| drop(all.add(long.clone())));
        assert!(all.from(1).encoded_len() < guard_proto::LOCAL_MESSAGE_MAX, "{}", all.from(1).encoded_len());
        assert!(all.from(1).messages[0].text.ends_with('…'));
    }

    #[test]
    fn followers_are_woken_and_told_the_end() {
        let all = std::sync::Arc::new(Messages::default());
        let other = std::sync::Arc::clone(&all);
        let follower =
            std::thread::spawn(move || other.wait_from(1, Duration::from_secs(20)).map(|m| m.messages.len()));
        all.add(said("no"));
        assert_eq!(follower.join().unwrap(), Some(1));
        assert_eq!(all.wait_from(2, Duration::from_millis(1)).map(|m| m.next), Some(2));
        all.close();
        // What was said before the end is still given.
        assert_eq!(all.wait_from(1, Duration::from_secs(20)).map(|m| m.messages.len()), Some(1));
        assert_eq!(all.wait_from(2, Duration::from_secs(20)), None);
    }
}
