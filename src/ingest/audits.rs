//! Audits as events: what no webhook has reported, from the answers of Genesys' audit service.

use http::HeaderMap;

use crate::domain::{Event, KeyHasher, TenantId, Timestamp};

use super::authenticate::Proof;
use super::limits::TimeLimits;
use super::malformed::Malformed;
use super::shapes::PostedEvent;
use super::shapes::genesys::read_queried_audit;

/// Turns audits into events, as webhooks are.
#[derive(Clone, Debug)]
pub struct AuditEvents {
    hashers: Vec<KeyHasher>,
    times: TimeLimits,
}

impl AuditEvents {
    /// Creates it. `hashers` contains the present key scheme first, then those that it replaces.
    #[must_use]
    pub const fn new(hashers: Vec<KeyHasher>, times: TimeLimits) -> Self {
        Self { hashers, times }
    }

    /// Returns the event of an audit; `None` if it changed no profile.
    ///
    /// # Errors
    ///
    /// It names no customer in a readable way; the error names the field.
    pub fn event(&self, tenant: &TenantId, audit: &[u8], now: Timestamp) -> Result<Option<Event>, Malformed> {
        let PostedEvent::Announced(mut announcement) = read_queried_audit(audit)? else { return Ok(None) };
        // Genesys itself answered: nobody else can have sent it again.
        let proof = Proof { body: audit, headers: Some(&HeaderMap::new()), message_id: None };
        self.times.limit(&mut announcement, &proof, now).for_each(drop);
        Ok(Some(announcement.into_event(tenant, &self.hashers, now)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{Kind, Shape};
    use crate::ingest::Config;

    const NOW: Timestamp = Timestamp::from_millis(1_741_064_767_500);
    const CONTACT: &str = "00000000-0000-4000-8000-000000000001";

    fn read(edit: impl FnOnce(&mut Value)) -> Result<Option<Event>, Malformed> {
        let mut audit = json!({
            "id": "583cae9f-87d6-4bce-a5eb-6b133184405b", "serviceName": "ExternalContacts", "level": "USER",
            "eventDate": "2025-03-04T05:00:00.123Z", "action": "Update", "entityType": "Contact",
            "entity": { "id": CONTACT, "name": "Ada" }, "status": "SUCCESS", "propertyChanges": [],
        });
        edit(&mut audit);
        let config = Config { max_future: Duration::from_secs(60), max_age: None };
        let times = config.limits(Duration::from_secs(3600));
        AuditEvents::new(vec![KeyHasher::Sha256], times).event(
            &"10001".parse().unwrap(),
            audit.to_string().as_bytes(),
            NOW,
        )
    }

    #[test]
    fn an_audit_has_the_keys_the_time_and_the_id_of_its_change() {
        let event = read(|_| {}).unwrap().unwrap();
        let key = KeyHasher::Sha256.identify(&event.tenant, &CONTACT.parse().unwrap()).digest();
        assert_eq!((event.keys, event.kind, event.shape), (vec![key], Kind::Updated, Shape::Operator));
        assert_eq!(event.stamps.at.unwrap().as_millis(), 1_741_064_400_123);
        assert_eq!((event.id.as_str(), event.received_at), ("583cae9f-87d6-4bce-a5eb-6b133184405b", NOW));
    }

    #[test]
    fn every_action_that_may_change_a_contact_is_an_event() {
        let kind = |action: &str| read(|audit| audit["action"] = action.into()).unwrap().map(|event| event.kind);
        assert_eq!((kind("Create"), kind("Delete")), (Some(Kind::Created), Some(Kind::Deleted)));
        assert_eq!((kind("Merge"), kind("HardDelete")), (Some(Kind::Updated), Some(Kind::Updated)));
        assert_eq!((kind("View"), kind("Export")), (None, None));
        assert_eq!(read(|audit| audit["entityType"] = "Note".into()), Ok(None));
    }

    #[test]
    fn an_audit_without_a_readable_contact_names_the_field() {
        assert_eq!(read(|audit| audit["entity"] = json!({ "id": "a/b" })).unwrap_err().field, "entity.id");
        assert_eq!(read(|audit| audit["entity"] = Value::Null).unwrap_err().field, "entity.id");
    }

    #[test]
    fn a_time_in_the_future_is_not_believed() {
        let event = read(|audit| audit["eventDate"] = "2099-01-01T00:00:00Z".into()).unwrap().unwrap();
        assert_eq!(event.stamps.at, None);
    }
}
