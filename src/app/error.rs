//! Why the application could not start.

use crate::http::auth::callers::InvalidCaller;
use crate::http::auth::jwt::InvalidTokenSecret;
use crate::http::server::config::BindError;
use crate::http::server::tls;
use crate::{audit, ingest, queue, store, upstream};

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
    /// The audit could not begin.
    #[error(transparent)]
    Audit(#[from] audit::open::Error),
    /// A tenant's upstream is misconfigured.
    #[error(transparent)]
    Upstream(#[from] upstream::open::ConfigError),
    /// A tenant's webhook is misconfigured.
    #[error(transparent)]
    Webhook(#[from] ingest::authenticate::ConfigError),
    /// A caller is misconfigured.
    #[error(transparent)]
    Caller(#[from] InvalidCaller),
    /// A listener's TLS is misconfigured.
    #[error(transparent)]
    Tls(#[from] tls::ConfigError),
    /// The sealing keys are misconfigured.
    #[error(transparent)]
    Sealing(#[from] store::sealed::keyring::ConfigError),
    /// What tokens are signed with is misconfigured.
    #[error("http.token_secret: {0}")]
    TokenSecret(#[from] InvalidTokenSecret),
}
