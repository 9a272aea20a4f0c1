//! The senders of events: which tenants there are, and how the sources of each authenticate.

use std::collections::HashMap;

use crate::domain::TenantId;
use crate::invalid::InvalidSetting;

use super::authenticate::{self, Authenticator};

/// The configured tenants, and how the sources of each authenticate.
#[derive(Debug)]
pub struct WebhookSources(pub(super) HashMap<TenantId, Vec<Authenticator>>);

impl WebhookSources {
    /// Creates the sources from their configuration.
    ///
    /// # Errors
    ///
    /// The configuration of a webhook is invalid.
    pub fn new<'a>(
        tenants: impl IntoIterator<Item = (TenantId, &'a [authenticate::Config])>,
    ) -> Result<Self, InvalidSetting> {
        let source = |(tenant, webhooks): (TenantId, &[authenticate::Config])| {
            let authenticators = webhooks.iter().map(Authenticator::new).collect::<Result<_, _>>();
            let authenticators = authenticators.map_err(|error: InvalidSetting| error.within("tenant.webhook"))?;
            Ok((tenant, authenticators))
        };
        Ok(Self(tenants.into_iter().map(source).collect::<Result<_, _>>()?))
    }
}
