//! The error of every module that checks its own settings.

use std::borrow::Cow;
use std::time::Duration;

/// The longest time of a setting: ten years. A longer one could not be added to the current time.
pub const LONGEST_TIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidSetting {
    /// The path of the setting, relative to the section that the module owns, such as `tls.key`.
    pub field: Cow<'static, str>,
    /// What is wrong or what is expected; never the value, because it may be a secret.
    pub reason: Cow<'static, str>,
}

impl InvalidSetting {
    /// Creates the error for a setting of the module's own section.
    pub fn new(field: impl Into<Cow<'static, str>>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }

    /// Prefixes the path of the setting with the path of its section.
    #[must_use]
    pub fn within(self, section: &str) -> Self {
        Self { field: format!("{section}.{}", self.field).into(), reason: self.reason }
    }
}
