//! Shell text, judged by its parts.

use crate::invocation::Word;
use crate::judge::Judge;

/// Judges shell text.
pub(crate) fn judge(judge: &mut Judge<'_>, text: &Word, _depth: usize) {
    judge.review("shell", "builtin.shell-text", "a shell runs this text", &text.lossy());
}
