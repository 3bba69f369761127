//! The form of a policy file as serde reads it. Unknown keys are refused here; meaning is checked in `load`.

use std::collections::BTreeMap;

use crate::placed::Placed;
use serde::Deserialize;

use crate::verdict::Tier;

#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPolicy {
    pub(crate) version: Placed<u32>,
    pub(crate) extends: Option<Placed<Extends>>,
    #[serde(default)]
    pub(crate) without: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) trusted_dirs: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) categories: BTreeMap<String, RawCategory>,
    #[serde(default)]
    pub(crate) path_sets: BTreeMap<String, RawPathSet>,
    #[serde(default)]
    pub(crate) environment: Vec<RawEnvironment>,
    /// Variables whose values records keep, by name or pattern. Of all others nothing but a digest is kept.
    #[serde(default)]
    pub(crate) record_environment: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) programs: Vec<RawNode>,
    #[serde(default)]
    pub(crate) rules: Vec<RawRule>,
    /// Targets that raise the risk of what reaches them.
    #[serde(default)]
    pub(crate) targets: Vec<RawTarget>,
    /// Commands with the tier that they shall get; checked by `Policy::test`, not when the file is loaded.
    #[serde(default)]
    pub(crate) examples: RawExamples,
}

/// Commands by the tier that they shall get.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawExamples {
    #[serde(default)]
    pub(crate) allow: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) review: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) deny: Vec<Placed<String>>,
}

/// Names of built-in policies: one, or a list.
#[derive(Debug)]
pub(crate) struct Extends(pub(crate) Vec<String>);

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Extends {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Extends".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let one = serde_json::json!({"type": "string", "enum": crate::builtin::NAMES});
        schemars::json_schema!({"anyOf": [one, {"type": "array", "items": one}]})
    }
}

impl<'de> Deserialize<'de> for Extends {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> serde::de::Visitor<'de> for Names {
            type Value = Extends;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a built-in policy, or a list of names")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Extends, E> {
                Ok(Extends(vec![name.to_owned()]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Extends, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element()? {
                    names.push(name);
                }
                Ok(Extends(names))
            }
        }
        deserializer.deserialize_any(Names)
    }
}

#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCategory {
    pub(crate) risk: Placed<u8>,
    pub(crate) about: String,
    /// It cannot be taken back.
    #[serde(default)]
    pub(crate) lasting: bool,
    /// What a grant of a kind names of an act of this category.
    #[serde(default)]
    pub(crate) grant: Grant,
}

/// What a grant of a kind names, besides rule and category.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Grant {
    /// The whole command: what it reaches is told by all of its words.
    #[default]
    Exact,
    /// Program, subcommand and flag, and the places, hosts and other targets that it names.
    Places,
    /// The same without the subcommand: whatever the program does of the category.
    Program,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTarget {
    /// Patterns of paths, hosts, and `cluster:`, `namespace:`, `account:`, `database:` names.
    pub(crate) names: Vec<Placed<String>>,
    /// Points that are added.
    pub(crate) risk: Placed<u8>,
    pub(crate) about: String,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPathSet {
    pub(crate) patterns: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) except: Vec<Placed<String>>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawEnvironment {
    pub(crate) names: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) programs: Vec<String>,
    #[serde(default)]
    pub(crate) harmless: Vec<Placed<String>>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNode {
    pub(crate) names: Vec<Placed<String>>,
    pub(crate) act: Option<Placed<String>>,
    pub(crate) args: Option<Vec<ArgKind>>,
    pub(crate) last: Option<ArgKind>,
    pub(crate) first_unless: Option<Placed<String>>,
    #[serde(default)]
    pub(crate) style: Style,
    /// Options end at the first operand. Not given: where there are subcommands or a command follows.
    pub(crate) stops: Option<bool>,
    #[serde(default)]
    pub(crate) appends: bool,
    #[serde(default)]
    pub(crate) globals_anywhere: bool,
    #[serde(default)]
    pub(crate) dynamic: bool,
    /// It changes nothing but what its arguments name: a grant of a kind names the places, not the program.
    #[serde(default)]
    pub(crate) names_all: bool,
    /// A grant of a kind names this subcommand, also where its category says `program`: it changes what the program does later.
    #[serde(default)]
    pub(crate) apart: bool,
    pub(crate) runs: Option<Runs>,
    /// Flags that make the program print its help or version and do nothing else, here and below.
    pub(crate) help: Option<Placed<String>>,
    /// Words that may stand before a subcommand (names of groups and resources).
    #[serde(default)]
    pub(crate) nouns: Vec<Placed<String>>,
    /// Long flags that are not described are parameters of a request, with any number of values.
    pub(crate) open_flags: Option<Open>,
    pub(crate) flags: Option<Placed<String>>,
    #[serde(default)]
    pub(crate) more: Vec<RawGroup>,
    #[serde(default)]
    pub(crate) cases: Vec<RawCase>,
    #[serde(default)]
    pub(crate) subcommands: Vec<RawNode>,
}

/// Flags that make the program perform one more act.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawGroup {
    pub(crate) act: Placed<String>,
    pub(crate) flags: Placed<String>,
    /// The operands are targets of this act too.
    #[serde(default)]
    pub(crate) on_args: bool,
}

/// The first case that fits replaces the node's act (and the meaning of its operands, if given).
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCase {
    pub(crate) any_flag: Option<Placed<String>>,
    pub(crate) max_args: Option<u8>,
    pub(crate) act: Placed<String>,
    pub(crate) args: Option<Vec<ArgKind>>,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRule {
    pub(crate) id: Placed<String>,
    pub(crate) tier: Tier,
    pub(crate) reason: String,
    pub(crate) category: Option<Placed<String>>,
    pub(crate) risk: Option<Placed<u8>>,
    /// Of a rule of the tier `deny`: it holds also where verdicts are only observed.
    #[serde(default)]
    pub(crate) always: bool,
    pub(crate) when: RawWhen,
    #[serde(rename = "match", default)]
    pub(crate) matching: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) not_match: Vec<Placed<String>>,
}

/// Every condition given must hold; a list holds if one of its entries does.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RawWhen {
    #[serde(default)]
    pub(crate) act: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) program: Vec<Placed<String>>,
    /// Names of the program's file, where a description holds for several names.
    #[serde(default)]
    pub(crate) named: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) subcommand: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) called: Vec<Placed<String>>,
    pub(crate) any_flag: Option<Placed<String>>,
    pub(crate) no_flag: Option<Placed<String>>,
    pub(crate) only_flags: Option<Placed<String>>,
    pub(crate) only_args: Option<Vec<Placed<String>>>,
    #[serde(default)]
    pub(crate) any_arg: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) any_path_in: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) any_path_outside: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) all_paths_in: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) any_target: Vec<Placed<String>>,
    #[serde(default)]
    pub(crate) late: bool,
    #[serde(default)]
    pub(crate) dynamic: bool,
    #[serde(default)]
    pub(crate) wildcard: bool,
}

/// What an operand or a flag's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ArgKind {
    /// A path that the act reaches.
    Path,
    /// Text without further meaning.
    Text,
    /// A path that is only read, whatever the act.
    Source,
    /// A path that is written, whatever the act.
    Dest,
    /// A host, URL or `user@host:path`.
    Host,
    /// A cluster or context.
    Cluster,
    /// A namespace or resource group.
    Namespace,
    /// An account, project or subscription.
    Account,
    /// A database.
    Database,
    /// From here on, the words are a command.
    Command,
    /// `NAME=value` words before a command.
    Assignments,
    /// Words up to `;` or `+` are a command.
    Until,
    /// Shell text.
    Shell,
    /// From here on, the words are joined into shell text.
    ShellWords,
    /// A sed script.
    Sed,
    /// An awk program.
    Awk,
    /// A parameter of a request: text, unless it names a file or a URL to be read.
    Param,
    /// Program text of an interpreter.
    Code,
    /// The program takes no operand here.
    None,
}

/// How many words after a parameter's flag are its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Open {
    /// At most one.
    One,
    /// All up to the next flag.
    Many,
}

/// How a program spells its flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Style {
    /// `-abc`, `-ovalue`, `--long`, `--long=value`, `--`.
    #[default]
    Gnu,
    /// `-word` is one flag (find, openssl, java).
    Word,
    /// No flags: whatever stands there is text (echo).
    Plain,
    /// As gnu, and the first operand may bundle flags without a dash (tar, ps).
    Bundle,
}

/// What a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Runs {
    /// A POSIX-like shell.
    Shell,
    /// An interpreter that takes commands from standard input where no script is named.
    Interpreter,
    /// Chooses what to be by `argv[0]` (busybox).
    Multicall,
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Tier {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Tier".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "enum": ["allow", "review", "deny"]})
    }
}

impl<'de> Deserialize<'de> for Tier {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "allow" => Ok(Self::Allow),
            "review" => Ok(Self::Review),
            "deny" => Ok(Self::Deny),
            other => Err(serde::de::Error::unknown_variant(other, &["allow", "review", "deny"])),
        }
    }
}
