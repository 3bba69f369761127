//! What a session lets its tasks do beside exec, and what becomes of an act that it does not.
//!
//! Fails closed: a task of a session that nobody knows has no capability and no exception.

use guard_common::{Mark, SETTING_UP, session_flags};

use crate::maps::{SESSIONS, runtime};
use crate::report::{Act, observe, refuse};

/// The bounds of one session.
pub struct Bounds {
    /// [`session_flags`].
    pub flags: u32,
    /// Capabilities that may not be used.
    pub caps_denied: u64,
}

/// Nothing while enforcement is lifted, nor for Guard's own code between the fork of an entry process and its exec.
#[inline(always)]
pub fn bounds(mark: &Mark) -> Option<Bounds> {
    if runtime().lifted == 1 || mark.image == SETTING_UP {
        return None;
    }
    // SAFETY: sessions are replaced whole.
    Some(match unsafe { SESSIONS.get(mark.session) } {
        Some(session) => Bounds { flags: session.flags, caps_denied: session.caps_denied },
        None => Bounds { flags: 0, caps_denied: u64::MAX },
    })
}

impl Bounds {
    /// Whether the session has a flag.
    #[inline(always)]
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Refuses an act, or only records it in observe mode. Gives what the hook returns.
    #[inline(always)]
    pub fn refuse(&self, mark: &Mark, act: &Act) -> i32 {
        if self.has(session_flags::OBSERVE) {
            observe(mark, act);
            return 0;
        }
        refuse(mark, act)
    }
}
