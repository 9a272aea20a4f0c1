//! The ids of events.

use super::*;

#[test]
fn an_event_id_that_contains_the_customer_id_is_hidden() {
    let posted = read(&json!({ "customerId": "CUST-42", "eventId": "change-of-cust-42" }));
    assert!(!event(&posted).id.as_str().to_ascii_lowercase().contains("cust-42"));
    // Still, equal ids give equal event ids.
    assert_eq!(event(&posted).id, event(&posted).id);
}

#[test]
fn a_signed_message_id_replaces_all_event_ids_but_those_of_cloudevents() {
    let message = SenderId::of("msg_1");
    let ids = |body: &str| {
        let mut posted = read_any(None, body.as_bytes()).unwrap();
        posted.set_message_id(&message);
        let tenant = "10001".parse().unwrap();
        let event = |item| match item {
            PostedEvent::Announced(announcement) => {
                announcement.into_event(&tenant, &[KeyHasher::Sha256], Timestamp::from_millis(0))
            }
            PostedEvent::Ignored { .. } | PostedEvent::Conversation { .. } | PostedEvent::Rejected(_) => {
                panic!("not announced")
            }
        };
        let events: Vec<Event> = posted.items.into_iter().map(event).collect();
        events.into_iter().map(|event| (event.id.as_str().to_owned(), event.identity)).collect::<Vec<_>>()
    };
    let flat = |id: &str| format!(r#"{{"customerId":"someone","eventId":"{id}"}}"#);
    let (one, same) = (ids(&flat("e-1")), ids(&flat("e-2")));
    assert_eq!(one, same, "the same message, sent again");

    let event =
        r#"{"specversion":"1.0","id":"ce-1","source":"/s","type":"customer.updated","data":{"customerId":"someone"}}"#;
    assert_ne!(ids(event)[0].0, one[0].0);

    let batch = ids(&format!("[{},{}]", flat("e-1"), flat("e-1")));
    assert_ne!(batch[0].0, batch[1].0);
    assert_ne!(batch[0].1, batch[1].1);
}

#[test]
fn a_hidden_event_id_is_hashed_with_the_scheme_of_the_keys() {
    let body = json!({ "tenantId": "10001", "customerId": ONE, "eventId": ONE }).to_string();
    let shown = |hasher: KeyHasher| {
        let posted = read_any(None, body.as_bytes()).unwrap();
        let event =
            announced(&posted).clone().into_event(&"10001".parse().unwrap(), &[hasher], Timestamp::from_millis(1));
        (event.id.as_str().to_owned(), event.keys[0].to_string())
    };
    let plain = shown(KeyHasher::Sha256);
    let keyed = shown(KeyHasher::HmacSha256(vec![7; 32].into()));
    assert_eq!([&plain, &keyed].map(|shown| format!("digest-{}", shown.1)), [plain.0.clone(), keyed.0.clone()]);
    assert_ne!(plain.0, keyed.0);
}

#[test]
fn only_ids_that_a_machine_made_are_shown() {
    let shown = |id: &str| event(&read(&json!({ "customerId": "CUST-42", "eventId": id }))).id.as_str().to_owned();
    for id in ["4cbedb0f-4dfd-4c8e-9e57-0acded092527", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "0af7651916cd43dd8448eb211c80319c"]
    {
        assert_eq!(shown(id), id);
    }
    let iban = "DE89370400440532013000";
    for id in [
        "ada.lovelace",
        "4915112345678",
        "4111111111111111",
        iban,
        "+49-151-1234",
        "deadbeef",
        "81ARZ3NDEKTSV4RRFFQ69G5FAV",
    ] {
        let hidden = shown(id);
        assert!(hidden.starts_with("digest-") && hidden.len() == 39, "{id}: {hidden}");
        assert_eq!(hidden, shown(id));
    }
}
