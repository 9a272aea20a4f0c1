//! The flat form of this program.

use serde::Deserialize;

use crate::domain::{EventTime, Kind, Shape};

use super::fields::{CustomerList, Doubt, OptionalPart, OptionalText, stamps};
use super::{Announcement, Malformed, PostedEvent, join, parse};

/// `{"customerId","tenantId","eventId"?,"eventType"?,"modifyDate"?,"occurredAt"?,"mergedIds"?}`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FlatForm {
    customer_id: String,
    #[serde(default)]
    tenant_id: Option<String>,
    #[serde(default)]
    event_id: OptionalText,
    #[serde(default)]
    event_type: OptionalText,
    #[serde(default)]
    modify_date: OptionalText,
    #[serde(default)]
    occurred_at: OptionalText,
    #[serde(default)]
    merged_ids: OptionalPart<Vec<OptionalText>>,
}

/// Parses the flat form. `kind` and `at` are those of its envelope; they count where the form has none.
pub(super) fn read(
    body: &[u8],
    path: &str,
    (kind, at): (Option<Kind>, Option<EventTime>),
    shape: Shape,
) -> Result<PostedEvent, Malformed> {
    let flat: FlatForm = parse(body, path)?;
    let mut doubt = Doubt::default();
    let named = doubt.text(&flat.event_type).map(kind_of);
    doubt.0 |= named == Some(None);
    let mut customers = CustomerList::default();
    customers.add(path, "customerId", &flat.customer_id)?;
    for merged in doubt.part(&flat.merged_ids).into_iter().flatten() {
        customers.add_optional(path, "mergedIds", merged, &mut doubt)?;
    }
    let tenant = flat.tenant_id.filter(|tenant| !tenant.is_empty()).map(|tenant| tenant.parse()).transpose();
    Ok(PostedEvent::Announced(Announcement {
        shape,
        sender_id: doubt.sender_id(&flat.event_id),
        // An unknown kind evicts, as an update does.
        kind: named.flatten().or(kind).unwrap_or(Kind::Updated),
        stamps: stamps(doubt.time(&flat.modify_date), doubt.time(&flat.occurred_at).or(at)),
        customers: customers.ids,
        identifiers: Vec::new(),
        tenant: tenant.map_err(|error| Malformed::new(join(path, "tenantId"), error))?,
        is_partial: doubt.0,
    }))
}

/// Returns the kind that an event type names.
pub(super) fn kind_of(name: &str) -> Option<Kind> {
    name.strip_prefix("customer.")?.parse().ok()
}
