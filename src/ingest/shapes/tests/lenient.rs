//! Fields that cannot be read, and texts that are deep or long.

use super::super::super::malformed::tests::PARSED;
use super::*;

#[test]
fn unreadable_optional_fields_are_treated_as_absent_and_reported() {
    for (field, value) in [
        ("modifyDate", json!("yesterday")),
        ("occurredAt", json!("2025-13-01T00:00:00Z")),
        ("eventType", json!("customer.exploded")),
        ("eventId", json!([{ "a": 1 }])),
        ("mergedIds", json!(["b?", 7])),
        ("mergedIds", json!("b")),
        ("mergedIds", json!({ "0": "b" })),
        ("mergedIds", json!(7)),
    ] {
        let mut body = json!({ "customerId": ONE });
        body[field] = value;
        let posted = read(&body);
        assert_eq!((customers(announced(&posted)), announced(&posted).is_partial), (vec![ONE], true), "{field}");
    }
    let mut contact = notification();
    contact["eventBody"]["id"] = 7.into();
    contact["eventBody"]["mergedTo"] = true.into();
    assert_eq!(customers(announced(&read(&contact))), [ONE, "0a-ancestor"]);
    for field in ["mergeSet", "mergedFrom", "mergeOperation"] {
        for value in [json!("b"), json!(7), json!(true), json!([[{}]])] {
            let mut contact = notification();
            contact["eventBody"]["mergeSet"] = json!([ONE]);
            contact["eventBody"][field] = value.clone();
            let posted = read(&contact);
            let announced = announced(&posted);
            assert_eq!((customers(announced), announced.is_partial), (vec![ONE], true), "{field} {value}");
        }
    }
    let marked = format!("\u{feff}{}", json!({ "customerId": ONE }));
    assert!(read_any(None, marked.as_bytes()).is_ok() && read_flat(marked.as_bytes()).is_ok());
}

#[test]
fn the_id_in_a_topic_is_used_where_the_body_has_none() {
    let in_topic = |body: Option<Value>| {
        let mut event = notification();
        match body {
            Some(body) => event["eventBody"] = body,
            None => drop(event.as_object_mut().unwrap().remove("eventBody")),
        }
        event
    };
    for (body, is_partial) in [
        (None, true),
        (Some(Value::Null), true),
        (Some(json!("x")), true),
        (Some(json!([7])), true),
        (Some(json!({})), false),
    ] {
        let posted = read(&in_topic(body));
        let announced = announced(&posted);
        assert_eq!((customers(announced), announced.kind), (vec![ONE], Kind::Updated));
        assert_eq!(announced.is_partial, is_partial);
    }
    for entity in [Value::Null, json!({}), json!({ "id": 7 }), json!("a/b")] {
        let mut event = audit("Delete");
        event["detail"]["eventBody"]["entity"] = entity;
        let posted = read(&event);
        assert_eq!((customers(announced(&posted)), announced(&posted).kind), (vec![ONE], Kind::Deleted));
        event["detail"]["topicName"] = "v2.audits.entitytype.{id}.entityid.{id}".into();
        assert!(wrong(&event).starts_with("detail.eventBody.entity.id: "), "{event}");
    }
}

#[test]
fn an_unreadable_time_of_a_binary_event_is_treated_as_absent() {
    let fixed = [("ce-specversion", "1.0"), ("ce-id", "e1"), ("ce-source", "/crm"), ("ce-type", "customer.updated")];
    let body = json!({ "customerId": ONE }).to_string();
    for (times, is_partial) in
        [(&[("ce-time", "")][..], false), (&[("ce-time", "%ff")], true), (&[("ce-time", "soon")], true)]
    {
        let attributes: Vec<_> = fixed.iter().chain(times).copied().collect();
        let posted = read_any(Some(&headers(&attributes)), body.as_bytes()).unwrap();
        assert_eq!(
            (announced(&posted).stamps, announced(&posted).is_partial),
            (Stamps::default(), is_partial),
            "{times:?}"
        );
    }
}

#[test]
fn nesting_is_limited_for_each_event() {
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!(r#"{{"customerId":"a","x":{open}{close}}}"#)
    };
    assert!(read_any(None, nested(63).as_bytes()).is_ok());
    assert_eq!(wrong_text(nested(64).as_bytes()), "body: expected at most 64 levels of nesting");
    let batch = format!("[{},{}]", nested(100_000), nested(1));
    let posted = read_any(None, batch.as_bytes()).unwrap();
    assert!(matches!(&posted.items[..], [PostedEvent::Rejected(_), PostedEvent::Announced(_)]), "{posted:?}");
}

#[test]
fn each_byte_of_a_request_is_parsed_a_few_times_at_most() {
    let mut inner = notification();
    inner["eventBody"]["mergeSet"] = (0..500).map(|n| json!(format!("c-{n}"))).collect();
    let enclosed =
        json!({ "specversion": "1.0", "id": "e1", "source": "/s", "type": "t", "data": { "detail": inner } });
    let faulty = json!({ "customerId": ["x".repeat(10_000)], "x": "[{".repeat(10_000) });
    for one in [eventbridge(), audit("Delete"), enclosed, faulty] {
        let text = json!(vec![one; 50]).to_string();
        PARSED.set(0);
        let _ = read_any(None, text.as_bytes());
        assert!(PARSED.get() <= 8 * text.len(), "{} for {}", PARSED.get(), text.len());
    }
}

#[test]
fn empty_and_null_optional_fields_are_treated_as_absent() {
    let plain = json!({ "customerId": ONE, "eventId": "e1" });
    for value in [json!(""), Value::Null] {
        let flat = json!({
            "customerId": ONE, "eventId": "e1", "tenantId": value, "eventType": value,
            "modifyDate": value, "occurredAt": value, "mergedIds": null,
        });
        assert_eq!(event(&read(&flat)).identity, event(&read(&plain)).identity);
        let flat = read(&flat);
        assert_eq!((announced(&flat).kind, announced(&flat).stamps), (Kind::Updated, Stamps::default()));
        assert!(announced(&flat).tenant.is_none());

        let mut contact = eventbridge();
        contact["time"] = value.clone();
        let body = json!({
            "id": value, "modifyDate": value, "canonicalContactId": value, "canonicalContact": value, "mergedTo": value,
            "mergeOperation": { "sourceContactId": value, "targetContact": value, "resultingContactId": value },
        });
        contact["detail"]["eventBody"] = body;
        let contact = read(&contact);
        assert_eq!(customers(announced(&contact)), [ONE]);
        assert_eq!((announced(&contact).kind, announced(&contact).stamps), (Kind::Updated, Stamps::default()));

        let mut audit = audit("Delete");
        audit["detail"]["eventBody"]["eventTime"] = value;
        assert_eq!(announced(&read(&audit)).stamps.at, happened_at("2025-03-04T05:06:26Z"));
    }
    let anonymous = json!({ "customerId": ONE, "tenantId": "10001", "eventId": null });
    assert!(announced(&read(&anonymous)).sender_id.is_none());
}
