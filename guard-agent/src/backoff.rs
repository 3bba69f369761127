//! A pause after repeated denials: a person who has said no is not asked the same again and again.
//!
//! Only people's denials count, of the identical command or below the same root, in one session. It must not allow anything: while
//! it pauses, what would be asked about is denied. Fails: what finds no room is asked about as before.

use std::collections::HashMap;
use std::time::Duration;

/// Commands and roots that are remembered, of all sessions; a person had to deny each.
const ENTRIES_MAX: usize = 4096;

/// When to pause, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// Denials before the first pause; 0: none pauses.
    pub denials: u32,
    /// Length of the first pause.
    pub first: Duration,
    /// Longest pause: each is twice as long as the one before.
    pub longest: Duration,
}

/// What is alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Like {
    /// The identical command.
    Command([u8; 32]),
    /// What runs below a root.
    Root(u64),
}

/// Denials by session and likeness.
#[derive(Debug, Default)]
pub struct Backoff(HashMap<(u64, Like), Denials>);

#[derive(Debug, Default)]
struct Denials {
    count: u32,
    pause_ns: u64,
    until_boot_ns: u64,
}

/// Why nobody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paused {
    /// Denials so far.
    pub denials: u32,
    /// How long it still lasts.
    pub left_ns: u64,
}

/// What a request is like: its command, and the root below which it runs, if that is another exec.
pub fn likes(digest: [u8; 32], root: u64, exec: u64) -> impl Iterator<Item = Like> + Clone {
    let below = (root != 0 && root != exec).then_some(Like::Root(root));
    std::iter::once(Like::Command(digest)).chain(below)
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Backoff {
    /// A person denied.
    pub fn denied(&mut self, session: u64, likes: impl Iterator<Item = Like>, pauses: Pauses, now_boot_ns: u64) {
        for like in likes {
            if self.0.len() >= ENTRIES_MAX && !self.0.contains_key(&(session, like)) {
                continue;
            }
            let known = self.0.entry((session, like)).or_default();
            known.count = known.count.saturating_add(1);
            if pauses.denials == 0 || known.count < pauses.denials {
                continue;
            }
            let next = if known.pause_ns == 0 { ns(pauses.first) } else { known.pause_ns.saturating_mul(2) };
            known.pause_ns = next.min(ns(pauses.longest));
            known.until_boot_ns = now_boot_ns.saturating_add(known.pause_ns);
        }
    }

    /// A person approved: what came before counts no more.
    pub fn approved(&mut self, session: u64, likes: impl Iterator<Item = Like>) {
        likes.for_each(|like| {
            self.0.remove(&(session, like));
        });
    }

    /// Whether nobody is asked now.
    pub fn paused(&self, session: u64, likes: impl Iterator<Item = Like>, now_boot_ns: u64) -> Option<Paused> {
        let paused = likes.filter_map(|like| self.0.get(&(session, like))).filter(|d| d.until_boot_ns > now_boot_ns);
        let longest = paused.max_by_key(|d| d.until_boot_ns)?;
        Some(Paused { denials: longest.count, left_ns: longest.until_boot_ns - now_boot_ns })
    }

    /// The session is over.
    pub fn session_ended(&mut self, session: u64) {
        self.0.retain(|(of, _), _| *of != session);
    }
}

impl Paused {
    /// For the record and for the agent.
    pub fn text(&self) -> String {
        format!(
            "nobody is asked: {} requests like it were denied; a person is asked again in {} s",
            self.denials,
            self.left_ns.div_ceil(1_000_000_000)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const PAUSES: Pauses = Pauses { denials: 3, first: Duration::from_secs(60), longest: Duration::from_secs(200) };

    fn command(n: u8) -> impl Iterator<Item = Like> + Clone {
        likes([n; 32], 0, 5)
    }

    fn paused(backoff: &Backoff, of: impl Iterator<Item = Like>, now: u64) -> Option<u64> {
        backoff.paused(1, of, now).map(|p| p.left_ns / SECOND)
    }

    #[test]
    fn the_third_denial_pauses_and_each_later_one_for_twice_as_long() {
        let mut backoff = Backoff::default();
        for _ in 0..2 {
            backoff.denied(1, command(1), PAUSES, 0);
            assert_eq!(paused(&backoff, command(1), 0), None);
        }
        backoff.denied(1, command(1), PAUSES, 0);
        assert_eq!(paused(&backoff, command(1), 0), Some(60));
        assert_eq!(paused(&backoff, command(1), 60 * SECOND), None, "asked again");
        for (left, at) in [(120, 60), (200, 300), (200, 900)] {
            backoff.denied(1, command(1), PAUSES, at * SECOND);
            assert_eq!(paused(&backoff, command(1), at * SECOND), Some(left));
        }
        assert_eq!(paused(&backoff, command(2), 900 * SECOND), None, "another command");
        assert_eq!(backoff.paused(2, command(1), 900 * SECOND), None, "another session");
        backoff.approved(1, command(1));
        assert_eq!(paused(&backoff, command(1), 900 * SECOND), None);
    }

    #[test]
    fn different_commands_below_one_root_count_together() {
        let mut backoff = Backoff::default();
        (0..3).for_each(|n| backoff.denied(1, likes([n; 32], 7, 100 + u64::from(n)), PAUSES, 0));
        assert_eq!(paused(&backoff, likes([9; 32], 7, 200), 0), Some(60));
        assert_eq!(paused(&backoff, likes([9; 32], 8, 200), 0), None);
        // A root is not below itself.
        assert_eq!(paused(&backoff, likes([9; 32], 7, 7), 0), None);
        backoff.session_ended(1);
        assert_eq!(paused(&backoff, likes([9; 32], 7, 200), 0), None);
    }

    #[test]
    fn no_pause_where_none_is_set_and_no_room_means_asking() {
        let mut backoff = Backoff::default();
        (0..9).for_each(|_| backoff.denied(1, command(1), Pauses { denials: 0, ..PAUSES }, 0));
        assert_eq!(paused(&backoff, command(1), 0), None);
        let one = Pauses { denials: 1, ..PAUSES };
        (0..=ENTRIES_MAX as u64).for_each(|root| backoff.denied(1, std::iter::once(Like::Root(root)), one, 0));
        assert_eq!(backoff.0.len(), ENTRIES_MAX);
        let text = Paused { denials: 3, left_ns: 1 }.text();
        assert!(text.contains("3 requests") && text.ends_with("in 1 s"), "{text}");
    }
}
