//! Secrets as the provider's JSON holds them: texts that are overwritten when they are dropped.
//!
//! It must show them to nobody: `Debug` says nothing of the text. Fails: what is no text is left out.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

/// Fields of one credential.
const FIELDS_MAX: usize = 64;

/// A secret text.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(Zeroizing<String>);

impl Text {
    /// Takes it.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any)?.ok_or_else(|| serde::de::Error::custom("a text is expected"))
    }
}

/// The text of a value, if it is one.
struct Maybe(Option<Text>);

impl<'de> Deserialize<'de> for Maybe {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any).map(Self)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Option<Text>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Text::new(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
        Ok(Some(Text::new(text)))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(Text::new(value.to_string())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(Text::new(value.to_string())))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(Text::new(value.to_string())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(Text::new(value.to_string())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// Named texts, in the provider's order. Lists and objects are left out.
#[derive(Debug, Default)]
pub struct Fields(pub Vec<(String, Text)>);

impl Fields {
    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Text> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, text)| text)
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Named;
        impl<'de> Visitor<'de> for Named {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<String>()? {
                    let Maybe(value) = map.next_value()?;
                    fields.0.extend(value.map(|text| (name, text)));
                    if fields.0.len() > FIELDS_MAX {
                        return Err(serde::de::Error::custom("too many fields"));
                    }
                }
                Ok(fields)
            }
        }
        from.deserialize_map(Named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shows_a_secret() {
        let fields: Fields = serde_json::from_str(r#"{"password": "hunter2"}"#).unwrap();
        assert_eq!(fields.get("password").map(Text::as_str), Some("hunter2"));
        assert!(!format!("{fields:?}").contains("hunter2"));
    }

    #[test]
    fn fields_are_bounded() {
        let many: Vec<String> = (0..100).map(|n| format!("\"f{n}\": \"x\"")).collect();
        assert!(serde_json::from_str::<Fields>(&format!("{{{}}}", many.join(","))).is_err());
    }
}
