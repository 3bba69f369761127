//! How grave a match is, and what that adds to the risk.

/// Levels of Sigma; a rule without one counts as low.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For information.
    Informational,
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
    /// Critical.
    Critical,
}

impl Level {
    /// Of a rule.
    pub(crate) fn of(level: Option<rsigma_parser::Level>) -> Self {
        match level {
            Some(rsigma_parser::Level::Informational) => Self::Informational,
            None | Some(rsigma_parser::Level::Low) => Self::Low,
            Some(rsigma_parser::Level::Medium) => Self::Medium,
            Some(rsigma_parser::Level::High) => Self::High,
            Some(rsigma_parser::Level::Critical) => Self::Critical,
        }
    }

    /// Its word in rules and records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Informational => "informational",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// Points that it adds to the risk of 0 to 100.
    #[must_use]
    pub const fn points(self) -> u8 {
        match self {
            Self::Informational => 0,
            Self::Low => 5,
            Self::Medium => 10,
            Self::High => 20,
            Self::Critical => 30,
        }
    }
}
