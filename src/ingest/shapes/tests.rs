//! Each shape as the documentation of Genesys shows it, and malformed variants.

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::{EventTime, Modified};

mod identity;
mod lenient;

const ONE: &str = "5f0d9c1e-0000-4000-8000-000000000001";

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    pairs.iter().map(pair).collect()
}

fn read(body: &Value) -> PostedRequest {
    read_any(None, body.to_string().as_bytes()).unwrap()
}

fn announced(posted: &PostedRequest) -> &Announcement {
    assert_eq!(posted.items.len(), 1);
    match &posted.items[0] {
        PostedEvent::Announced(announcement) => announcement,
        other @ (PostedEvent::Ignored { .. } | PostedEvent::Conversation { .. } | PostedEvent::Rejected(_)) => {
            panic!("{other:?}")
        }
    }
}

fn ignored(body: &Value) -> &'static str {
    match &read(body).items[..] {
        [PostedEvent::Ignored { reason, .. }] => reason,
        other => panic!("not ignored: {other:?}"),
    }
}

fn wrong(body: &Value) -> String {
    wrong_text(body.to_string().as_bytes())
}

fn wrong_text(body: &[u8]) -> String {
    read_any(None, body).unwrap_err().to_string()
}

fn customers(announcement: &Announcement) -> Vec<&str> {
    announcement.customers.iter().map(CustomerId::expose).collect()
}

fn event(posted: &PostedRequest) -> Event {
    let tenant: TenantId = "10001".parse().unwrap();
    announced(posted).clone().into_event(&tenant, &[KeyHasher::Sha256], Timestamp::from_millis(1))
}

fn notification() -> Value {
    json!({
        "topicName": format!("v2.externalcontacts.contacts.{ONE}"), "version": "2",
        "eventBody": {
            "id": ONE, "type": "Curated", "firstName": "Ada", "modifyDate": "2025-03-04T05:06:07.089Z",
            "canonicalContactId": ONE, "mergeSet": [ONE, "0a-ancestor"],
        },
        "metadata": { "CorrelationId": "b61df0b3-9e33-444b-a455-1c92a33ef4e2" },
    })
}

fn eventbridge() -> Value {
    json!({
        "version": "0", "id": "4cbedb0f-4dfd-4c8e-9e57-0acded092527",
        "detail-type": "v2.externalcontacts.contacts.{id}",
        "source": "aws.partner/genesys.com/cloud/org/suffix",
        "account": "123456789012", "time": "2025-03-04T05:06:08Z", "region": "us-east-1", "resources": [],
        "detail": {
            "topicName": format!("v2.externalcontacts.contacts.{ONE}"), "version": "2",
            "eventBody": { "id": ONE, "modifyDate": "2025-03-04T05:06:07.089Z" },
            "metadata": { "CorrelationId": "b61df0b3-9e33-444b-a455-1c92a33ef4e2" },
            "timestamp": "2025-03-04T05:06:08.435Z",
        },
    })
}

fn audit(action: &str) -> Value {
    json!({
        "version": "0", "id": "e9938ff0-50e2-45f8-950f-ad02d95fee85",
        "detail-type": "v2.audits.entitytype.{id}.entityid.{id}", "source": "aws.partner/genesys.com/cloud/org/suffix",
        "account": "123456789012", "time": "2025-03-04T05:06:26Z", "region": "us-east-1", "resources": [],
        "detail": {
            "topicName": format!("v2.audits.entitytype.Contact.entityid.{ONE}"), "version": "2",
            "eventBody": {
                "id": "128b506d-0a67-4e8c-a27c-fd3ed9566094", "userId": "u1", "userHomeOrgId": "org",
                "username": { "id": "" }, "clientId": { "id": "cl1" }, "serviceName": "ExternalContacts",
                "eventTime": "2025-03-04T05:06:25.000Z", "action": action, "entityType": "Contact",
                "entity": { "id": ONE, "name": "Ada Lovelace" },
                "propertyChanges": [{ "property": "p", "oldValues": ["a"], "newValues": ["b"] }],
            },
            "metadata": { "CorrelationId": "8f725aa1-d831-4fb3-a8ea-9ccf7d44db68-archival" },
            "timestamp": "2025-03-04T05:06:26.031Z",
        },
    })
}

fn modified_at(text: &str) -> Option<Modified> {
    Some(text.parse().unwrap())
}

fn happened_at(text: &str) -> Option<EventTime> {
    Some(text.parse().unwrap())
}

#[test]
fn a_notification_evicts_its_whole_merge_set() {
    let posted = read(&notification());
    let announcement = announced(&posted);
    assert!(!posted.batch);
    assert_eq!(announcement.shape, Shape::Notification);
    assert_eq!(announcement.kind, Kind::Updated);
    assert_eq!(customers(announcement), [ONE, "0a-ancestor"]);
    assert_eq!(announcement.stamps.modified, modified_at("2025-03-04T05:06:07.089Z"));
    assert_eq!(announcement.stamps.at, announcement.stamps.modified.map(EventTime::from_modified));
}

#[test]
fn an_eventbridge_event_keeps_its_id_and_time() {
    let posted = read(&eventbridge());
    let announcement = announced(&posted);
    assert_eq!(announcement.shape, Shape::EventBridge);
    assert_eq!(announcement.stamps.modified, modified_at("2025-03-04T05:06:07.089Z"));
    assert_eq!(announcement.stamps.at, happened_at("2025-03-04T05:06:08Z"));
    assert_eq!(event(&posted).id.as_str(), "4cbedb0f-4dfd-4c8e-9e57-0acded092527");
}

#[test]
fn audits_report_creation_update_and_deletion() {
    for (action, kind) in [("Create", Kind::Created), ("Update", Kind::Updated), ("Delete", Kind::Deleted)] {
        let posted = read(&audit(action));
        let announcement = announced(&posted);
        assert_eq!(announcement.kind, kind);
        assert_eq!(customers(announcement), [ONE]);
        assert_eq!(announcement.stamps.modified, None);
        // Audits write milliseconds although they know only seconds.
        assert_eq!(announcement.stamps.at, happened_at("2025-03-04T05:06:25Z"));
    }
    assert_eq!(ignored(&audit("Read")), "an audited action that changes no contact");
    let mut note = audit("Update");
    note["detail"]["eventBody"]["entityType"] = "Note".into();
    assert_eq!(ignored(&note), "an audit that is about no contact");
}

#[test]
fn merges_name_both_sides() {
    let mut merged = notification();
    merged["eventBody"]["mergedTo"] = "0b-winner".into();
    let posted = read(&merged);
    assert_eq!(announced(&posted).kind, Kind::Merged);
    assert_eq!(customers(announced(&posted)), [ONE, "0b-winner", "0a-ancestor"]);

    let mut winner = notification();
    winner["eventBody"]["mergedFrom"] = json!(["0c-loser", { "id": "0d-loser", "selfUri": "/x" }]);
    let posted = read(&winner);
    assert_eq!(announced(&posted).kind, Kind::Merged);
    assert_eq!(customers(announced(&posted)), [ONE, "0a-ancestor", "0c-loser", "0d-loser"]);

    let flat = json!({ "customerId": ONE, "eventType": "customer.merged", "mergedIds": ["x", "y", ONE] });
    assert_eq!(customers(announced(&read(&flat))), [ONE, "x", "y"]);
}

#[test]
fn an_unresolved_contact_is_an_update_of_it() {
    let mut unresolved = notification();
    unresolved["topicName"] = format!("v2.externalcontacts.contacts.{ONE}.unresolved").into();
    assert_eq!(announced(&read(&unresolved)).kind, Kind::Updated);
    unresolved["eventBody"]["mergedTo"] = "0b-winner".into();
    let posted = read(&unresolved);
    assert_eq!(announced(&posted).kind, Kind::Updated);
    assert_eq!(customers(announced(&posted)), [ONE, "0b-winner", "0a-ancestor"]);
}

#[test]
fn topics_that_change_no_profile_are_ignored() {
    for (topic, reason) in [
        (format!("v2.externalcontacts.contacts.{ONE}.notes.n1"), "a note of a contact"),
        (format!("v2.externalcontacts.contacts.{ONE}.journey.sessions"), "a journey of a contact"),
        ("v2.externalcontacts.organizations.o1".to_owned(), "a topic that is about no contact"),
        ("v2.system.socket_closing".to_owned(), "a system topic"),
        ("channel.metadata".to_owned(), "a heartbeat"),
    ] {
        assert_eq!(ignored(&json!({ "topicName": topic, "eventBody": { "message": "WebSocket Heartbeat" } })), reason);
    }
}

#[test]
fn an_array_keeps_its_order() {
    let posted = read(&json!([eventbridge(), audit("Delete"), eventbridge()]));
    assert!(posted.batch);
    let kinds = posted.items.iter().map(|item| match item {
        PostedEvent::Announced(announcement) => announcement.kind,
        PostedEvent::Ignored { .. } | PostedEvent::Conversation { .. } | PostedEvent::Rejected(_) => {
            panic!("not announced")
        }
    });
    assert_eq!(kinds.collect::<Vec<_>>(), [Kind::Updated, Kind::Deleted, Kind::Updated]);
}

#[test]
fn errors_in_an_array_name_the_index() {
    let mut bad = eventbridge();
    bad["detail"] = json!({ "topicName": "v2.externalcontacts.contacts.{id}", "eventBody": { "id": 7 } });
    let fault = "[0].detail.eventBody.id: is no customer id, and the topic names no contact either";
    assert_eq!(wrong(&json!([bad, bad])), fault);
    let some = read(&json!([eventbridge(), bad]));
    assert!(matches!(&some.items[..], [PostedEvent::Announced(_), PostedEvent::Rejected(_)]), "{some:?}");
    assert_eq!(wrong(&json!([])), "body: expected at least one event, got an empty array");
    assert_eq!(wrong(&json!(vec![eventbridge(); 1001])), "body: expected at most 1000 events, got 1001");
}

#[test]
fn cloudevents_are_parsed_in_both_modes() {
    let flat = json!({ "customerId": ONE, "modifyDate": "2025-03-04T05:06:07.089Z" });
    let structured = read(&json!({
        "specversion": "1.0", "id": "e 1", "source": "/crm", "type": "customer.deleted",
        "time": "2025-03-04T05:06:09Z", "data": flat,
    }));
    let attributes = [
        ("ce-specversion", "1.0"),
        ("ce-id", "e%201"),
        ("ce-source", "/crm"),
        ("ce-type", "customer.deleted"),
        ("ce-time", "2025-03-04T05:06:09Z"),
    ];
    let binary = read_any(Some(&headers(&attributes)), flat.to_string().as_bytes()).unwrap();
    for posted in [&structured, &binary] {
        let announcement = announced(posted);
        assert_eq!((announcement.shape, announcement.kind), (Shape::CloudEvents, Kind::Deleted));
        assert_eq!(announcement.stamps.modified, modified_at("2025-03-04T05:06:07.089Z"));
        assert_eq!(announcement.stamps.at, happened_at("2025-03-04T05:06:09Z"));
    }
    assert_eq!(event(&structured).identity, event(&binary).identity);
    let mut timed = flat.clone();
    timed["occurredAt"] = flat["modifyDate"].clone();
    let posted = read_any(Some(&headers(&attributes)), timed.to_string().as_bytes()).unwrap();
    assert_eq!(
        announced(&posted).stamps.at,
        happened_at("2025-03-04T05:06:07.089Z"),
        "its own time, not the envelope's"
    );

    for missing in 0..4 {
        let mut fewer = attributes.to_vec();
        let (name, _) = fewer.remove(missing);
        let answer = read_any(Some(&headers(&fewer)), flat.to_string().as_bytes());
        assert_eq!(answer.unwrap_err().to_string(), format!("{name}: is missing"));
    }
}

#[test]
fn cloudevents_may_contain_genesys_events() {
    let around = |data: Value| json!({ "specversion": "1.0", "id": "e1", "source": "/bridge", "type": "anything", "data": data });
    for data in [notification(), eventbridge()] {
        let posted = read(&around(data));
        assert_eq!(announced(&posted).shape, Shape::CloudEvents);
        assert_eq!(announced(&posted).customers[0].expose(), ONE);
    }
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, notification().to_string());
    let mut event = around(Value::Null);
    event["data_base64"] = encoded.into();
    assert!(event.as_object_mut().unwrap().remove("data").is_some());
    assert_eq!(announced(&read(&event)).customers[0].expose(), ONE);
    event["specversion"] = "0.3".into();
    assert_eq!(wrong(&event), "specversion: expected \"1.0\"");
}

#[test]
fn errors_name_the_field_and_what_was_expected_of_it() {
    for (body, fault) in [
        (json!({}), "customerId: is missing"),
        (json!({ "customerId": 7 }), "customerId: expected a string"),
        (json!({ "topicName": "v2.externalcontacts.contacts.{id}" }), "eventBody: is missing"),
        (json!({ "topicName": format!("v2.audits.entitytype.Contact.entityid.{ONE}") }), "eventBody: is missing"),
        (
            json!({ "topicName": "v2.externalcontacts.contacts.{id}", "eventBody": {} }),
            "eventBody.id: is no customer id, and the topic names no contact either",
        ),
    ] {
        assert_eq!(wrong(&body), fault);
    }
    for (body, field) in [
        (json!({ "customerId": "a/b" }), "customerId"),
        (json!({ "customerId": ".." }), "customerId"),
        (json!({ "customerId": "a\nb" }), "customerId"),
        (json!({ "customerId": "" }), "customerId"),
        (json!({ "customerId": "x".repeat(10_000) }), "customerId"),
        (json!({ "customerId": "a", "tenantId": "a b" }), "tenantId"),
        (json!("text"), "body"),
        (json!({ "detail": [format!("v2.externalcontacts.contacts.{ONE}")] }), "detail"),
        (json!([["a"]]), "[0]"),
        (json!(7), "body"),
    ] {
        let wrong = wrong(&body);
        assert!(wrong.starts_with(&format!("{field}: ")), "{wrong}");
    }
    assert_eq!(wrong_text(b""), "body: is missing: expected JSON");
    assert_eq!(wrong_text(br#"{"customerId":"a","customerId":"b"}"#), "customerId: is given more than once");
}

#[test]
fn events_with_equal_ids_share_an_identity_and_anonymous_ones_do_not() {
    let flat = |fields: Value| {
        let mut event = json!({ "customerId": ONE });
        event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        read(&event)
    };
    let first = event(&flat(json!({ "eventId": "e1" })));
    assert_eq!(first.identity, event(&flat(json!({ "eventId": "e1" }))).identity);
    assert_ne!(first.identity, event(&flat(json!({ "eventId": "e2" }))).identity);
    let anonymous = flat(json!({}));
    assert_ne!(event(&anonymous).identity, event(&anonymous).identity);
    let stamped = flat(json!({ "modifyDate": "2025-03-04T05:06:07.089Z" }));
    assert_eq!(event(&stamped).identity, event(&stamped).identity);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused_without_a_panic(
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "[\\[\\]{}:,\"a-z0-9]{0,80}".prop_map(String::into_bytes),
        ],
        binary in any::<bool>(),
    ) {
        let attributes = headers(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "s"), ("ce-type", "t")]);
        let headers = if binary { attributes } else { HeaderMap::new() };
        let _ = read_any(Some(&headers), &body);
        let _ = read_flat(&body);
        let _ = read_tenant(&body);
    }

    #[test]
    fn errors_never_quote_a_corrupted_event(cut in 0usize..700, flip in any::<u8>()) {
        let mut planted = eventbridge();
        planted["detail"]["eventBody"]["firstName"] = "CANARY".into();
        planted["detail"]["eventBody"]["mergeSet"] = json!(["CANARY/1"]);
        let mut body = planted.to_string().into_bytes();
        let cut = cut % body.len();
        body[cut] ^= flip;
        if let Err(malformed) = read_any(None, &body) {
            prop_assert!(!malformed.to_string().contains("CANARY"));
        }
    }
}
