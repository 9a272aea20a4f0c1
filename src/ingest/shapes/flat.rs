//! The flat form of this program.

use serde::Deserialize;

use crate::domain::{Kind, Shape};

use super::fields::{CustomerList, non_empty, sender_id, stamps, time};
use super::{Announcement, Malformed, PostedEvent, join, parse};

/// `{"customerId","tenantId","eventId"?,"eventType"?,"modifyDate"?,"occurredAt"?,"mergedIds"?}`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FlatForm {
    customer_id: String,
    #[serde(default, deserialize_with = "non_empty")]
    tenant_id: Option<String>,
    #[serde(default)]
    event_id: Option<String>,
    #[serde(default, deserialize_with = "non_empty")]
    event_type: Option<String>,
    #[serde(default)]
    modify_date: Option<String>,
    #[serde(default)]
    occurred_at: Option<String>,
    #[serde(default)]
    merged_ids: Option<Vec<String>>,
}

/// Parses the flat form; `kind` is the kind in its envelope, if there is one.
pub(super) fn read(body: &[u8], path: &str, kind: Option<Kind>, shape: Shape) -> Result<PostedEvent, Malformed> {
    let flat: FlatForm = parse(body, path)?;
    let kind = match &flat.event_type {
        Some(name) => kind_of(name).ok_or_else(|| {
            let expected = "expected customer.created, customer.updated, customer.deleted or customer.merged";
            Malformed::new(join(path, "eventType"), expected)
        })?,
        None => kind.unwrap_or(Kind::Updated),
    };
    let mut customers = CustomerList::default();
    customers.add(path, "customerId", &flat.customer_id)?;
    for (index, merged) in flat.merged_ids.iter().flatten().enumerate() {
        customers.add(path, &format!("mergedIds[{index}]"), merged)?;
    }
    let tenant = flat.tenant_id.map(|tenant| tenant.parse()).transpose();
    Ok(PostedEvent::Announced(Announcement {
        shape,
        sender_id: sender_id(path, "eventId", flat.event_id)?,
        kind,
        stamps: stamps(
            time(path, "modifyDate", flat.modify_date.as_deref())?,
            time(path, "occurredAt", flat.occurred_at.as_deref())?,
        ),
        customers: customers.0,
        tenant: tenant.map_err(|error| Malformed::new(join(path, "tenantId"), error))?,
    }))
}

/// Returns the kind that an event type names.
pub(super) fn kind_of(name: &str) -> Option<Kind> {
    name.strip_prefix("customer.")?.parse().ok()
}
