//! The policies that are part of the program: the default with what programs do, and profiles on top of it.
//!
//! All of it is data. A test keeps the lists complete.

use crate::Source;

/// What `extends` may name.
pub(crate) const NAMES: &[&str] = &["default", "developer", "sre", "ci", "data"];

macro_rules! files {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(Source {
            name: concat!("built-in ", $folder, $name),
            text: include_str!(concat!("../", $folder, $name, ".yaml")),
        }),*]
    };
}

/// The rules, then program knowledge, one file for each program or family.
pub(crate) const DEFAULT: &[Source<'static>] = files!["": "src/default"];
pub(crate) const PROGRAMS: &[Source<'static>] = files![
    "programs/": "admin", "archives", "builds", "clouds", "containers", "content", "databases", "files", "gh", "host", "infrastructure", "interpreters", "kubernetes", "list", "network", "packages", "print", "transfer", "vcs", "versions", "viewers", "wrappers",
];
const DEVELOPER: &[Source<'static>] = files!["profiles/": "developer"];
const SRE: &[Source<'static>] = files!["profiles/": "sre"];
const CI: &[Source<'static>] = files!["profiles/": "ci"];
const DATA: &[Source<'static>] = files!["profiles/": "data"];

/// The files of a built-in policy, in order.
pub(crate) fn find(name: &str) -> Option<Vec<&'static Source<'static>>> {
    Some(match name {
        "default" => DEFAULT.iter().chain(PROGRAMS).collect(),
        "developer" => DEVELOPER.iter().collect(),
        "sre" => SRE.iter().collect(),
        "ci" => CI.iter().collect(),
        "data" => DATA.iter().collect(),
        _ => return None,
    })
}

/// Every built-in file.
pub(crate) fn all() -> impl Iterator<Item = &'static Source<'static>> {
    [DEFAULT, PROGRAMS, DEVELOPER, SRE, CI, DATA].into_iter().flatten()
}
