//! Programs that run others: shells and multi-call files.

use crate::invocation::{Inner, Invocation, Word};
use crate::judge::{Identity, Judge, base_name};
use crate::model::Node;

/// A shell: `-c TEXT` is judged by its parts, a script by its name, nothing at all takes commands.
pub(crate) fn shell(judge: &mut Judge<'_>, node: &Node, name: &[u8], words: &[Word], depth: usize) {
    let invocation = Invocation::read(node, name, words);
    if invocation.uses("-c") && !invocation.uses("-s") {
        for word in &invocation.unknown {
            judge.review("shell", "builtin.unknown-flag", "no rule knows this flag of the shell", word);
        }
        for used in invocation.used.iter().filter(|u| u.flag.group.is_some()) {
            let text = "the flag makes the shell read other files or take commands";
            judge.review("shell", "builtin.shell-flag", text, &used.flag.name);
        }
        return match invocation.operands.first() {
            Some(text) => judge.inner(&Inner::Shell(text.clone()), depth + 1),
            None => judge.review("shell", "builtin.unknown-flag", "`-c` without a command", "-c"),
        };
    }
    if invocation.operands.is_empty() || invocation.uses("-s") {
        judge.takes_commands();
    }
    judge.command(node, name, words, depth);
}

/// A file that chooses what to be by `argv[0]`: judged as what it would be, and never better than review.
pub(crate) fn multicall(judge: &mut Judge<'_>, name: &[u8], identity: Identity, words: &[Word], depth: usize) {
    let text = "the program chooses what to be by its name or first argument";
    judge.review("code.run", "builtin.multicall", text, &String::from_utf8_lossy(name));
    let called = words.first().map(|w| base_name(&w.text)).unwrap_or_default();
    let inner = if called == name || called.is_empty() { words.get(1..).unwrap_or_default() } else { words };
    let Some(first) = inner.first() else { return };
    let applet = base_name(&first.text).to_vec();
    if first.is_fixed() && applet != name {
        judge.program(&applet, identity, &applet, inner, depth + 1);
    }
}
