//! What is told, made to fit: texts up to a length, JSON without a character that could hide or act.
//!
//! It must not cut in silence: a message that is not whole says so, and the record has the rest. Fails: never.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Value, json};

/// Longest message: what receivers of the specification have to take.
pub const BODY_MAX: usize = 20_000;
/// Bytes of arguments together and of one text, tried one after the other until the message fits.
pub const BUDGETS: [usize; 4] = [4096, 1024, 256, 48];
/// Longest single text, within the budget.
const TEXT_MAX: usize = 1024;
/// Most of a list that is told.
const LIST_MAX: usize = 8;
/// Most arguments.
const ARGV_MAX: usize = 256;

/// Cuts texts and remembers whether it did.
#[derive(Debug)]
pub struct Cut {
    budget: usize,
    /// Something was left out.
    pub cut: bool,
}

impl Cut {
    /// With so many bytes for arguments, and for one text.
    pub fn to(budget: usize) -> Self {
        Self { budget, cut: false }
    }

    fn fit<'a>(&mut self, bytes: &'a [u8], max: usize) -> &'a [u8] {
        match bytes.get(..max) {
            Some(head) if bytes.len() > max => {
                self.cut = true;
                head
            }
            _ => bytes,
        }
    }

    /// A text.
    pub fn text(&mut self, text: &str) -> String {
        let kept = self.fit(text.as_bytes(), self.budget.min(TEXT_MAX));
        // The last character may have been cut in two.
        kept.utf8_chunks().next().map(|chunk| chunk.valid().to_owned()).unwrap_or_default()
    }

    /// A text, unless it is empty.
    pub fn some(&mut self, text: &str) -> Option<String> {
        (!text.is_empty()).then(|| self.text(text))
    }

    /// A text that may be no text.
    pub fn bytes(&mut self, bytes: &[u8]) -> Value {
        match std::str::from_utf8(bytes) {
            Ok(text) => Value::String(self.text(text)),
            Err(_) => {
                use base64::Engine as _;
                let kept = self.fit(bytes, self.budget.min(TEXT_MAX));
                json!({"base64": base64::engine::general_purpose::STANDARD.encode(kept)})
            }
        }
    }

    /// The first of a list.
    pub fn first<'a, T>(&mut self, list: &'a [T]) -> &'a [T] {
        self.cut |= list.len() > LIST_MAX;
        list.get(..LIST_MAX).unwrap_or(list)
    }

    /// Arguments, and how many were left out.
    pub fn argv(&mut self, argv: &[Vec<u8>]) -> (Vec<Value>, u64) {
        let (mut shown, mut bytes) = (Vec::new(), 0);
        for arg in argv.iter().take(ARGV_MAX) {
            bytes += arg.len().min(TEXT_MAX) + 1;
            if bytes > self.budget && !shown.is_empty() {
                break;
            }
            shown.push(self.bytes(arg));
        }
        let left = (argv.len() - shown.len()) as u64;
        self.cut |= left > 0;
        (shown, left)
    }
}

/// JSON of ASCII alone: what is not is `\uXXXX`.
pub fn ascii_json(value: &impl Serialize) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Ascii);
    value.serialize(&mut serializer).map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for c in fragment.chars() {
            // Below, JSON itself escapes what is no visible character, but for the last.
            if c.is_ascii() && c != '\u{7f}' {
                writer.write_all(&[c as u8])?;
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_cut_in_silence() {
        let mut cut = Cut::to(8);
        assert_eq!((cut.text("12345678"), cut.cut), ("12345678".to_owned(), false));
        assert_eq!((cut.text("1234567\u{e9}"), cut.cut), ("1234567".to_owned(), true));
        let argv: Vec<Vec<u8>> = ["abc", "def", "ghi"].map(|a| a.as_bytes().to_vec()).into();
        let (shown, left) = Cut::to(8).argv(&argv);
        assert_eq!((shown.len(), left), (2, 1));
        assert_eq!(Cut::to(2).argv(&argv).0, ["ab"], "the first in any case");
    }

    #[test]
    fn a_message_holds_nothing_that_hides_or_acts() {
        let value = json!({"argv": ["a\u{202e}b\u{1b}[2J\u{7f}\u{9b}\u{1f600}"], "path": Cut::to(99).bytes(b"\xff/x")});
        let text = ascii_json(&value).expect("JSON");
        assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).expect("parses"), value);
    }
}
