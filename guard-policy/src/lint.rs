//! What is odd about the rules of a loaded policy: rules that never decide, that contradict each other, that match nothing.
//!
//! Conservative: it says only what follows from the conditions themselves, whatever the commands.

use std::collections::HashSet;

use crate::glob::Glob;
use crate::model::{Node, Policy, Rule, When};

/// One finding about a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lint {
    /// The rule.
    pub rule: String,
    /// `shadowed`, `conflict`, `duplicate`, `dead` or `no-example`.
    pub kind: &'static str,
    /// What is odd, and about which other rule.
    pub text: String,
}

impl Policy {
    /// Everything that is odd about the rules, in their order.
    #[must_use]
    pub fn lint(&self) -> Vec<Lint> {
        let mut found = Vec::new();
        for (index, rule) in self.rules.iter().enumerate() {
            self.against_others(index, rule, &mut found);
            if let Some(text) = self.dead(rule) {
                found.push(Lint { rule: rule.id.clone(), kind: "dead", text });
            }
            if rule.examples == 0 {
                let text = "no example of what it matches (`match`)".to_owned();
                found.push(Lint { rule: rule.id.clone(), kind: "no-example", text });
            }
        }
        found
    }

    fn against_others(&self, index: usize, rule: &Rule, found: &mut Vec<Lint>) {
        for (other_index, other) in self.rules.iter().enumerate().filter(|(i, _)| *i != index) {
            if !self.covers(&other.when, &rule.when) {
                continue;
            }
            let same = self.covers(&rule.when, &other.when);
            let (kind, text) = match (other.tier.cmp(&rule.tier), same) {
                (std::cmp::Ordering::Greater, true) => (
                    "conflict",
                    format!("`{}` has the same conditions and says {}: the strictest wins", other.id, other.tier),
                ),
                (std::cmp::Ordering::Greater, false) => {
                    ("shadowed", format!("whatever it matches, `{}` matches too and says {}", other.id, other.tier))
                }
                (std::cmp::Ordering::Equal, true) if other_index > index => continue,
                (std::cmp::Ordering::Equal, _) => {
                    ("duplicate", format!("whatever it matches, `{}` matches too with the same tier", other.id))
                }
                (std::cmp::Ordering::Less, _) => continue,
            };
            found.push(Lint { rule: rule.id.clone(), kind, text });
        }
    }

    /// Why a rule can match nothing.
    fn dead(&self, rule: &Rule) -> Option<String> {
        let when = &rule.when;
        if when.program.is_empty() || when.act.is_empty() {
            return None;
        }
        let mut acts = HashSet::new();
        for node in self.nodes.iter().filter(|n| when.program.contains(&n.name)) {
            performs(node, &mut acts);
        }
        let any = acts.iter().any(|act| when.act.iter().any(|g| g.matches(act.as_bytes())));
        (!any).then(|| format!("none of its programs ({}) performs any of its acts", when.program.join(", ")))
    }

    /// Whether everything that fits `inner` fits `outer` too.
    fn covers(&self, outer: &When, inner: &When) -> bool {
        let acts = |when: &When| -> HashSet<&str> {
            let fits = |c: &&String| when.act.is_empty() || when.act.iter().any(|g| g.matches(c.as_bytes()));
            self.categories.keys().filter(fits).map(String::as_str).collect()
        };
        let flag = |outer: bool, inner: bool| !outer || inner;
        acts(inner).is_subset(&acts(outer))
            && narrower(&outer.program, &inner.program)
            && narrower(&outer.subcommand, &inner.subcommand)
            && narrower(&outer.named, &inner.named)
            && narrower(&outer.called, &inner.called)
            && narrower(&outer.any_flag, &inner.any_flag)
            && outer.no_flag.iter().all(|f| inner.no_flag.contains(f))
            && within(outer.only_flags.as_deref(), inner.only_flags.as_deref())
            && within::<Glob>(outer.only_args.as_deref(), inner.only_args.as_deref())
            && narrower::<Glob>(&outer.any_arg, &inner.any_arg)
            && narrower(&outer.any_path_in, &inner.any_path_in)
            && (outer.any_path_outside.is_empty() || outer.any_path_outside == inner.any_path_outside)
            && narrower(&outer.all_paths_in, &inner.all_paths_in)
            && narrower::<Glob>(&outer.any_target, &inner.any_target)
            && flag(outer.late, inner.late)
            && flag(outer.dynamic, inner.dynamic)
            && flag(outer.wildcard, inner.wildcard)
    }
}

/// A list of alternatives holds whenever a shorter one does; an empty list is no condition.
fn narrower<T: PartialEq>(outer: &[T], inner: &[T]) -> bool {
    outer.is_empty() || (!inner.is_empty() && inner.iter().all(|one| outer.contains(one)))
}

/// A list of all there may be holds whenever a shorter one does; none is no condition.
fn within<T: PartialEq>(outer: Option<&[T]>, inner: Option<&[T]>) -> bool {
    outer.is_none_or(|outer| inner.is_some_and(|inner| inner.iter().all(|one| outer.contains(one))))
}

/// Categories that a program can perform, by itself or through its operands.
fn performs<'a>(node: &'a Node, acts: &mut HashSet<&'a str>) {
    acts.extend(["unknown", "info", "fs.read", "fs.write", "net.fetch", "code.remote"]);
    acts.extend(node.act.as_deref());
    acts.extend(node.groups.iter().map(|g| g.act.as_str()));
    acts.extend(node.cases.iter().map(|c| c.act.as_str()));
    node.children.iter().for_each(|child| performs(child, acts));
}

#[cfg(test)]
mod tests {
    use crate::Source;
    use crate::model::Policy;

    fn kinds(rules: &str) -> Vec<(String, &'static str)> {
        let text = format!("version: 1\nextends: default\nrules:\n{rules}");
        let policy = Policy::load(&[Source { name: "t", text: &text }]).unwrap();
        policy.lint().into_iter().filter(|l| l.rule.starts_with("own.")).map(|l| (l.rule, l.kind)).collect()
    }

    #[test]
    fn rules_that_never_decide_are_found() {
        let of = |id: &str, kind| vec![(id.to_owned(), kind)];
        let shadowed = "  - {id: own.a, tier: allow, reason: r, when: {act: [sys.power], program: [shutdown]}, match: ['shutdown x']}\n";
        assert_eq!(kinds(shadowed), of("own.a", "shadowed"));
        let conflict = "  - {id: own.a, tier: allow, reason: r, when: {act: [sys.power]}, match: ['shutdown x']}\n";
        assert_eq!(kinds(conflict), of("own.a", "conflict"));
        let duplicate = "  - {id: own.a, tier: deny, reason: r, when: {act: [sys.power], program: [shutdown]}, match: ['shutdown x']}\n";
        assert_eq!(kinds(duplicate), of("own.a", "duplicate"));
        let dead =
            "  - {id: own.a, tier: review, reason: r, when: {act: [sys.power], program: [ls]}, not_match: ['ls']}\n";
        let found = kinds(dead);
        assert!(
            found.contains(&("own.a".to_owned(), "dead")) && found.contains(&("own.a".to_owned(), "no-example")),
            "{found:?}"
        );
        let fine = "  - {id: own.a, tier: deny, reason: r, when: {act: [build.run], program: [cargo]}, match: ['cargo build']}\n";
        assert_eq!(kinds(fine), []);
    }

    #[test]
    fn built_in_policies_have_nothing_odd() {
        for name in crate::builtin::NAMES {
            let text = format!("version: 1\nextends: {name}\n");
            let policy = Policy::load(&[Source { name: "t", text: &text }]).unwrap();
            assert_eq!(policy.lint(), [], "{name}");
        }
    }
}
