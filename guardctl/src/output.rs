//! The one place that writes to stdout and stderr: tables or JSON, colour only on a terminal, `NO_COLOR` respected.
//!
//! It must not print text of others unescaped: the JSON writer escapes control, bidirectional and invisible characters as
//! `\uXXXX` itself, tables are built from escaped cells. Fails: a closed pipe ends the command quietly.

use std::io::{self, Write};

use rustix::termios;
use serde::Serialize;
use serde_json::ser::Formatter;

use crate::exit::{CliError, Exit, Result};
use crate::table::{Table, Tone};
use crate::text;

/// Columns assumed where there is no terminal to ask.
const DEFAULT_WIDTH: usize = 80;

/// What `--output` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables for people.
    Table,
    /// One JSON object, or JSON lines where the answer is a stream.
    Json,
}

/// Where a command writes its answer.
#[derive(Debug)]
pub struct Out {
    format: Format,
    color: bool,
    width: usize,
}

impl Out {
    /// Looks at stdout and the environment.
    pub fn new(format: Format) -> Out {
        let stdout = io::stdout();
        let terminal = termios::isatty(&stdout);
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        let width = if terminal { termios::tcgetwinsize(&stdout).map_or(0, |w| usize::from(w.ws_col)) } else { 0 };
        Out { format, color: terminal && wanted, width: if width < 40 { DEFAULT_WIDTH } else { width } }
    }

    /// True when the answer is wanted as JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Columns of the terminal.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether escape sequences for colour may be written.
    pub fn color(&self) -> bool {
        self.color
    }

    /// Colours `text`, which must be safe to print, where colour is wanted.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        if self.color { tone.paint(text) } else { text.to_owned() }
    }

    /// Writes one JSON value and a line feed.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        write_stdout(&json_line(value)?)
    }

    /// Writes text that is safe to print.
    pub fn print(&self, text: &str) -> Result<()> {
        write_stdout(text)
    }

    /// Renders and writes a table.
    pub fn table(&self, table: &Table) -> Result<()> {
        write_stdout(&table.render(self.width, self.color))
    }
}

/// One JSON value on one line, with everything hidden escaped.
pub fn json_line(value: &impl Serialize) -> Result<String> {
    let mut bytes = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, SafeJson))
        .map_err(|e| CliError::new(Exit::Internal, format_args!("cannot write JSON: {e}")))?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(|e| CliError::new(Exit::Internal, format_args!("cannot write JSON: {e}")))
}

/// Writes bytes to stdout at once.
fn write_stdout(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| match e.kind() {
        // Whoever reads has seen enough (`| head`): not an error of this command.
        io::ErrorKind::BrokenPipe => CliError::new(Exit::Ok, ""),
        _ => CliError::new(Exit::Internal, format_args!("cannot write to stdout: {e}")),
    })
}

/// Writes one line to stderr; there is nowhere to report a failure of that.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Says on stderr why the command failed, as text or as one JSON object.
pub fn report(error: &CliError, json: bool) {
    if error.kind == Exit::Ok {
        return;
    }
    if json {
        let value = serde_json::json!({
            "error": { "kind": error.kind.word(), "message": error.message, "hint": error.hint }
        });
        note(json_line(&value).unwrap_or_default().trim_end());
        return;
    }
    for (i, line) in error.message.lines().enumerate() {
        note(&format!("{}{}", if i == 0 { "guardctl: " } else { "  " }, text::escape_str(line)));
    }
    if let Some(hint) = &error.hint {
        note(&format!("  hint: {}", text::escape_str(hint)));
    }
}

/// Compact JSON whose strings hold nothing that a terminal would act on or hide.
struct SafeJson;

impl Formatter for SafeJson {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, c) in fragment.char_indices().filter(|(_, c)| text::is_hidden(*c)) {
            writer.write_all(fragment.get(plain..at).unwrap_or_default().as_bytes())?;
            let mut units = [0u16; 2];
            for unit in c.encode_utf16(&mut units) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + c.len_utf8();
        }
        writer.write_all(fragment.get(plain..).unwrap_or_default().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_escapes_what_a_terminal_would_hide() {
        let line = json_line(&serde_json::json!({"a": "x\u{202e}y\u{1b}[0m\u{e0041}\u{9b}"})).expect("writes");
        assert_eq!(line, "{\"a\":\"x\\u202ey\\u001b[0m\\udb40\\udc41\\u009b\"}\n");
        let back: serde_json::Value = serde_json::from_str(&line).expect("parses");
        assert_eq!(back["a"], "x\u{202e}y\u{1b}[0m\u{e0041}\u{9b}");
    }
}
