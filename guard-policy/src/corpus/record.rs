//! Records as they stand in the files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::world::Place;

/// Longest line that is read.
const LINE_MAX: usize = 1 << 20;
/// Most lines of a folder that are read.
const RECORDS_MAX: usize = 1_000_000;

/// One command with the right answer.
#[derive(Debug, Clone, Deserialize)]
pub struct Record {
    /// Unique in its collection.
    #[serde(default)]
    pub id: String,
    /// Where it was found.
    #[serde(default)]
    pub source: String,
    /// What it is: `benign_readonly`, `benign_mutating`, `dangerous`, `bypass`, `boundary`, `agent_trace`.
    #[serde(default)]
    pub label: String,
    /// The whole line.
    #[serde(default)]
    pub shell: String,
    /// Its words, where it is one simple command.
    pub argv: Option<Vec<String>>,
    /// Words of every program that the shell would start.
    #[serde(default)]
    pub execs: Vec<Vec<String>>,
    /// `deny`, `not_allow`, `any`.
    #[serde(default)]
    pub expected: String,
    /// `false`: the shell itself does the harm.
    #[serde(default = "seen")]
    pub exec_visible: bool,
    /// Session of a trace.
    #[serde(default)]
    pub session: String,
    /// Folder in which it ran.
    #[serde(default)]
    pub cwd: String,
    /// Whoever recorded it left out its end.
    #[serde(default)]
    pub truncated: bool,
    /// Where it is judged.
    #[serde(skip)]
    pub place: Place,
    /// File that it stood in.
    #[serde(skip)]
    pub file: String,
}

/// A line that is no record.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Odd {
    /// File and line number.
    pub place: String,
    /// Why it is none.
    pub why: String,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Corpus {
    /// In order of files and lines.
    pub records: Vec<Record>,
    /// Lines left out.
    pub odd: Vec<Odd>,
    /// Lines that describe sessions and hold no command.
    pub sessions: usize,
    /// Folder in which a session began, where that is known.
    begun: BTreeMap<String, String>,
}

/// What a session's description has, and a command has not.
#[derive(Deserialize)]
struct Session {
    session: String,
    #[serde(default)]
    start_cwd: String,
    #[serde(default)]
    shell: Option<serde_json::Value>,
    #[serde(default)]
    label: Option<serde_json::Value>,
}

fn seen() -> bool {
    true
}

// === impl Corpus ===

impl Corpus {
    /// Reads `place` through `read`: those of its `entries` that end in `.jsonl` in order of name, or itself if it is a file
    /// (`None`).
    ///
    /// # Errors
    /// Names the file that cannot be read, or says that there is no command in any.
    pub fn gather<E: std::fmt::Display>(
        place: &Path,
        entries: Option<Vec<PathBuf>>,
        read: impl Fn(&Path) -> Result<Vec<u8>, E>,
    ) -> Result<Self, String> {
        let mut files = match entries {
            Some(all) => all.into_iter().filter(|path| path.extension().is_some_and(|e| e == "jsonl")).collect(),
            None => vec![place.to_path_buf()],
        };
        files.sort();
        let mut corpus = Self::default();
        for path in &files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            corpus.add(&name, &read(path).map_err(|e| format!("{}: {e}", path.display()))?);
        }
        corpus.settle();
        if corpus.records.is_empty() {
            return Err(format!("{}: no commands in {} files", place.display(), files.len()));
        }
        Ok(corpus)
    }

    /// Adds the lines of one file.
    pub fn add(&mut self, file: &str, bytes: &[u8]) {
        for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let number = index + 1;
            match read(line, self.records.len()) {
                Ok(Some(mut record)) => {
                    file.clone_into(&mut record.file);
                    self.records.push(record);
                }
                Ok(None) => {
                    self.sessions += 1;
                    self.begins(line);
                }
                Err(why) => self.odd.push(Odd { place: format!("{file}:{number}"), why }),
            }
        }
    }
}

impl Corpus {
    fn begins(&mut self, line: &[u8]) {
        if let Ok(session) = serde_json::from_slice::<Session>(line)
            && session.start_cwd.starts_with('/')
        {
            self.begun.insert(session.session, session.start_cwd);
        }
    }

    /// Sessions work where they began: where their description says, else where their first command ran.
    fn settle(&mut self) {
        for record in self.records.iter().filter(|r| r.cwd.starts_with('/') && !r.session.is_empty()) {
            self.begun.entry(record.session.clone()).or_insert_with(|| record.cwd.clone());
        }
        for record in &mut self.records {
            if let Some(begun) = self.begun.get(&record.session) {
                let cwd = if record.cwd.starts_with('/') { &record.cwd } else { begun };
                record.place = Place { workspace: begun.clone().into_bytes(), cwd: cwd.clone().into_bytes() };
            }
        }
    }
}

/// `None`: the line describes a session.
fn read(line: &[u8], before: usize) -> Result<Option<Record>, String> {
    if line.len() > LINE_MAX {
        return Err(format!("{} bytes in one line, at most {LINE_MAX} are read", line.len()));
    }
    if before >= RECORDS_MAX {
        return Err(format!("more than {RECORDS_MAX} records"));
    }
    let session: Result<Session, _> = serde_json::from_slice(line);
    if session.is_ok_and(|s| s.shell.is_none() && s.label.is_none()) {
        return Ok(None);
    }
    let mut record: Record = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    match &record.argv {
        _ if !record.shell.is_empty() => {}
        Some(argv) if !argv.is_empty() => record.shell = argv.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "),
        Some(_) | None => return Err("neither `shell` nor `argv`".to_owned()),
    }
    record.argv = record.argv.filter(|argv| !argv.is_empty());
    Ok(Some(record))
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::Corpus;

    #[test]
    fn odd_lines_are_named_and_the_rest_is_read() {
        let mut corpus = Corpus::default();
        let text = "{\"shell\":\"ls\"}\n\nnot json\n{\"label\":\"x\"}\n{\"session\":\"s\",\"n\":1}\n{\"argv\":[\"echo\",\"a b\"]}\n\
                    {\"shell\":7}\n[]";
        corpus.add("f.jsonl", text.as_bytes());
        corpus.add("g.jsonl", b"{\"shell\":\"\xff\"}\n");
        let shells: Vec<&str> = corpus.records.iter().map(|r| r.shell.as_str()).collect();
        assert_eq!(shells, ["ls", "echo 'a b'"]);
        let places: Vec<&str> = corpus.odd.iter().map(|o| o.place.as_str()).collect();
        assert_eq!(places, ["f.jsonl:3", "f.jsonl:4", "f.jsonl:7", "f.jsonl:8", "g.jsonl:1"]);
        assert_eq!(corpus.sessions, 1);
    }

    #[test]
    fn commands_are_judged_where_their_session_works() {
        let text = "{\"session\":\"s\",\"start_cwd\":\"/app\"}\n{\"session\":\"s\",\"shell\":\"ls\"}\n\
                    {\"session\":\"t\",\"shell\":\"ls\",\"cwd\":\"/home/ann/a\"}\n\
                    {\"session\":\"t\",\"shell\":\"ls\",\"cwd\":\"/home/ann/a/b\"}\n{\"shell\":\"ls\"}\n";
        let read = |_: &std::path::Path| Ok::<_, String>(text.as_bytes().to_vec());
        let corpus = Corpus::gather(std::path::Path::new("f.jsonl"), None, read).unwrap();
        let places: Vec<(String, String)> = corpus
            .records
            .iter()
            .map(|r| [&r.place.workspace, &r.place.cwd].map(|p| String::from_utf8_lossy(p).into_owned()).into())
            .collect();
        let place = |workspace: &str, cwd: &str| (workspace.to_owned(), cwd.to_owned());
        let (ann, own) = ("/home/ann/a", "/home/dev/work");
        assert_eq!(places, [place("/app", "/app"), place(ann, ann), place(ann, "/home/ann/a/b"), place(own, own)]);
    }
}
