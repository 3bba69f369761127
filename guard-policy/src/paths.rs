//! Paths as a command names them, made absolute, and the named sets of paths that rules use.
//!
//! Normalisation is by text only: nothing here looks at the file system, so a symbolic link in an argument is seen by
//! the hooks that open files, not here.

use crate::facts::Facts;
use crate::glob::Glob;

/// Paths that rules refer to by name. Patterns start with `/`, `~/`, `{workspace}/` or `**/`.
#[derive(Debug, Clone)]
pub(crate) struct PathSet {
    pub(crate) patterns: Vec<PathPattern>,
    pub(crate) except: Vec<PathPattern>,
}

/// Where a pattern is rooted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    Absolute,
    Home,
    Workspace,
}

#[derive(Debug, Clone)]
pub(crate) struct PathPattern {
    root: Root,
    globs: Vec<Glob>,
}

/// The places that patterns and relative paths refer to.
#[derive(Debug, Clone)]
pub(crate) struct Places<'a> {
    /// Changes while shell text with `cd` is judged.
    pub(crate) cwd: Vec<u8>,
    pub(crate) home: &'a [u8],
    pub(crate) workspace: &'a [u8],
}

/// Whether a path lies below a folder that is named without a slash at its end.
pub(crate) fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
}

// === impl PathPattern ===

impl PathPattern {
    pub(crate) fn compile(text: &str) -> Result<Self, String> {
        let (root, rest) = if let Some(rest) = text.strip_prefix("~/") {
            (Root::Home, rest)
        } else if let Some(rest) = text.strip_prefix("{workspace}/") {
            (Root::Workspace, rest)
        } else if text.starts_with('/') || text.starts_with("**/") {
            (Root::Absolute, text)
        } else {
            return Err(format!("path pattern `{text}` must start with `/`, `~/`, `{{workspace}}/` or `**/`"));
        };
        Ok(Self { root, globs: Glob::compile(rest)? })
    }

    fn matches(&self, path: &[u8], places: &Places<'_>) -> bool {
        let base = match self.root {
            Root::Absolute => return self.globs.iter().any(|g| g.matches(path)),
            Root::Home => places.home,
            Root::Workspace => places.workspace,
        };
        // Without a base nothing lies below it.
        let base = base.strip_suffix(b"/").unwrap_or(base);
        let below = path.strip_prefix(base).and_then(|rest| rest.strip_prefix(b"/"));
        !base.is_empty() && below.is_some_and(|rest| self.globs.iter().any(|g| g.matches(rest)))
    }
}

// === impl PathSet ===

impl PathSet {
    /// `path` must be absolute and normal, as [`Places::absolute`] makes it.
    pub(crate) fn contains(&self, path: &[u8], places: &Places<'_>) -> bool {
        self.patterns.iter().any(|p| p.matches(path, places)) && !self.except.iter().any(|p| p.matches(path, places))
    }
}

// === impl Places ===

impl<'a> Places<'a> {
    pub(crate) fn of(facts: &Facts<'a>) -> Self {
        Self { cwd: facts.cwd.to_vec(), home: facts.home, workspace: facts.workspace }
    }

    /// The folder in which the session began, without a slash at its end.
    pub(crate) fn work(&self) -> &[u8] {
        self.workspace.strip_suffix(b"/").unwrap_or(self.workspace)
    }

    /// Makes `path` absolute and removes `.`, `..` and doubled slashes.
    pub(crate) fn absolute(&self, path: &[u8]) -> Vec<u8> {
        let path = path.strip_prefix(b"file://").unwrap_or(path);
        let mut segments: Vec<&[u8]> = Vec::new();
        let base: &[u8] = if path.starts_with(b"/") { b"" } else { &self.cwd };
        for segment in base.split(|b| *b == b'/').chain(path.split(|b| *b == b'/')) {
            match segment {
                b"" | b"." => {}
                b".." => {
                    segments.pop();
                }
                other => segments.push(other),
            }
        }
        // A process's own view of the root is the root.
        if let [b"proc", b"self" | b"thread-self", b"root", rest @ ..] = segments.as_slice() {
            segments = rest.to_vec();
        } else if let [b"proc", b"self" | b"thread-self", b"cwd", rest @ ..] = segments.as_slice() {
            let cwd = self.cwd.split(|b| *b == b'/').filter(|s| !s.is_empty());
            segments = cwd.chain(rest.iter().copied()).collect();
        }
        if segments.is_empty() {
            return b"/".to_vec();
        }
        segments.iter().flat_map(|s| [b"/".as_slice(), s]).flatten().copied().collect()
    }
}
