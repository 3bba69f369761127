//! One exec as Sigma names its parts.
//!
//! Texts come from governed processes: they are bounded here, and what is no UTF-8 is shown with replacement characters, as the
//! rules' authors would see it in a log.

use std::borrow::Cow;

use rsigma_eval::{Event, EventValue};
use serde_json::{Value, json};

/// Fields that are known of an exec.
pub(crate) const FIELDS: &[&str] = &["Image", "CommandLine", "CurrentDirectory", "User", "ParentImage"];
/// Longest command line that rules see, in bytes: matching is linear in it, and an exec waits.
const LINE_MAX: usize = 32 << 10;

/// One exec.
#[derive(Clone, Debug)]
pub struct Command<'a> {
    image: Cow<'a, str>,
    line: String,
    folder: Cow<'a, str>,
    user: &'a str,
    parent: Option<Cow<'a, str>>,
}

impl<'a> Command<'a> {
    /// The file that runs, its arguments, where, and as whom.
    #[must_use]
    pub fn new(image: &'a [u8], argv: &[Vec<u8>], folder: &'a [u8], user: &'a str) -> Self {
        let mut bytes = Vec::new();
        for argument in argv {
            if !bytes.is_empty() {
                bytes.push(b' ');
            }
            bytes.extend_from_slice(argument.get(..LINE_MAX).unwrap_or(argument));
            if bytes.len() > LINE_MAX {
                bytes.truncate(LINE_MAX);
                break;
            }
        }
        let line = String::from_utf8_lossy(&bytes).into_owned();
        Self {
            image: String::from_utf8_lossy(image),
            line,
            folder: String::from_utf8_lossy(folder),
            user,
            parent: None,
        }
    }

    /// The file that the parent runs, where it is known.
    #[must_use]
    pub fn started_by(mut self, parent: &'a [u8]) -> Self {
        self.parent = (!parent.is_empty()).then(|| String::from_utf8_lossy(parent));
        self
    }

    fn field(&self, name: &str) -> Option<&str> {
        match name {
            "Image" => Some(&self.image),
            "CommandLine" => Some(&self.line),
            "CurrentDirectory" => Some(&self.folder),
            "User" => Some(self.user),
            "ParentImage" => self.parent.as_deref(),
            _ => None,
        }
    }

    fn values(&self) -> impl Iterator<Item = &str> {
        FIELDS.iter().filter_map(|name| self.field(name))
    }
}

impl Event for Command<'_> {
    fn get_field(&self, path: &str) -> Option<EventValue<'_>> {
        self.field(path).map(|text| EventValue::Str(Cow::Borrowed(text)))
    }

    fn any_string_value(&self, pred: &dyn Fn(&str) -> bool) -> bool {
        self.values().any(pred)
    }

    fn all_string_values(&self) -> Vec<Cow<'_, str>> {
        self.values().map(Cow::Borrowed).collect()
    }

    fn to_json(&self) -> Value {
        FIELDS
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), json!(self.field(name)?))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}
