//! Measures a policy over real commands: files of JSON lines whose labels say what the right answer is.
//!
//! Text in, figures out: it opens no file and reads no clock. A line that is not a record is named and left out; what
//! is not labelled in a way known here is counted, never scored.

mod prompts;
mod record;
mod report;
mod world;

pub use prompts::{Cause, Prompts};
pub use record::{Corpus, Odd, Record};
pub use report::{Report, Row, Wrong};
pub use world::{Command, Place};

use crate::Policy;
use crate::verdict::Verdict;

impl Record {
    /// What policy says of the line: of the shell that an agent's runtime starts for it (`bash -c LINE`), and of its
    /// one program where the record has an `argv`. The stricter counts.
    #[must_use]
    pub fn judge(&self, policy: &Policy) -> Verdict {
        let said = Command::shell(&self.shell).at(&self.place).judge(policy);
        match &self.argv {
            Some(argv) => {
                let own = Command::exec(policy, argv).at(&self.place).judge(policy);
                if own.tier > said.tier { own } else { said }
            }
            None => said,
        }
    }
}
