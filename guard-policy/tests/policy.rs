//! The built-in policy against whole commands.
use guard_policy::Policy;

#[test]
fn default_loads() {
    let policy = Policy::load(&[]).unwrap_or_else(|e| panic!("{e}"));
    assert!(policy.rule_count() > 0);
}
