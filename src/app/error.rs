//! Why the application could not start.

use std::time::Duration;

use crate::http::auth::callers::InvalidCaller;
use crate::http::auth::jwt::InvalidTokenSecret;
use crate::http::server::config::BindError;
use crate::invalid::InvalidSetting;
use crate::{audit, queue, store};

/// The application could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The queue could not be opened.
    #[error("the queue could not be opened: {0}")]
    Queue(#[from] queue::Error),
    /// The store could not be opened.
    #[error("the store could not be opened: {0}")]
    Store(#[from] store::Error),
    /// A dependency did not answer within `startup_timeout`.
    #[error("{dependency} did not answer within startup_timeout ({}): {cause}", humantime::format_duration(*.limit))]
    NoAnswer {
        /// What was waited for.
        dependency: &'static str,
        /// How long.
        limit: Duration,
        /// What each of its addresses answers now.
        cause: String,
    },
    /// The audit could not start.
    #[error(transparent)]
    Audit(#[from] audit::open::Error),
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// A caller cannot be used.
    #[error(transparent)]
    Caller(#[from] InvalidCaller),
    /// The key that signs tokens cannot be used.
    #[error("http.token_secret: {0}")]
    TokenSecret(#[from] InvalidTokenSecret),
}
