//! The form of records.

use http::HeaderValue;

use crate::domain::{Digest, DisclosedFields, LookupBy, Redelivery, ReplayId};
use crate::metrics::LookupResult;

use super::*;

/// The members of a record and their order are covered by its hash, and log collectors search them.
#[test]
fn records_keep_the_order_and_the_form_of_their_members() {
    let (mut chain, time) = (Chain::start(Hasher::Sha256), Timestamp::from_millis(1_741_064_767_089));
    let mut line = |record: &dyn Fn(&mut Chain, &mut Vec<u8>)| {
        let mut text = Vec::new();
        record(&mut chain, &mut text);
        let text = String::from_utf8(text).unwrap();
        let (start, end) = (text.find(",\"time\":").unwrap(), text.find(",\"prev\":").unwrap());
        assert!(text.starts_with("{\"v\":1,\"chain\":\""), "{text}");
        assert_eq!(text[end..].len(), ",\"prev\":\"\",\"hash\":\"\"}\n".len() + 128);
        text[start..end].strip_prefix(",\"time\":\"2025-03-04T05:06:07.089Z\",").unwrap().to_owned()
    };
    let key = Digest::from_bytes([0xab; 16]);
    let (request, tenant) = (Some(HeaderValue::from_static("a\"b")), "10001".parse().ok());
    let denied = LookupRecord {
        request: None,
        caller: None,
        scope: None,
        agent: None,
        tenant: None,
        key: None,
        by: None,
        decision: Decision::Denied(DenialReason::UnknownTenant),
        duration_ms: 0.25,
    };
    let replay = ReplayId::fresh();
    let replayed = Event { again: Some(Redelivery::Replayed(replay)), ..Event::clone(&event(1)) };
    let (mark, of, keys) = (replayed.mark(), replayed.tenant.clone(), replayed.keys.clone());
    let keys: Vec<String> = keys.iter().map(|key| format!("\"{key}\"")).collect();
    let public = [
        (
            AuditRecord::Lookup(LookupRecord {
                request: request.clone(),
                caller: Some("a\\b".into()),
                scope: Some("tenant:10001".into()),
                agent: Some("handle".into()),
                tenant,
                key: Some(key),
                by: Some(LookupBy::Phone),
                decision: Decision::Allowed { result: LookupResult::Hit, shown: DisclosedFields::All },
                duration_ms: 1.5,
            }),
            format!(
                r#""type":"lookup","request":"a\"b","caller":"a\\b","scope":"tenant:10001","agent":"handle","tenant":"10001","key":"{key}","by":"phone","decision":"allowed","result":"hit","fields":["*"],"duration_ms":1.5"#
            ),
        ),
        (
            AuditRecord::Lookup(denied),
            r#""type":"lookup","decision":"denied","reason":"unknown_tenant","duration_ms":0.25"#.to_owned(),
        ),
        (
            AuditRecord::Event(EventRecord { event: Arc::new(replayed), verdict: EventEffect::Duplicate }),
            format!(
                r#""type":"event","event":"event-1","digest":"{mark}","tenant":"{of}","keys":[{}],"kind":"updated","shape":"flat","verdict":"recovered","replayed":true,"replay":"{replay}""#,
                keys.join(",")
            ),
        ),
        (
            AuditRecord::Webhook(DeniedWebhook { request, tenant: None, reason: DenialReason::ForeignTenant }),
            r#""type":"webhook","request":"a\"b","decision":"denied","reason":"foreign_tenant""#.to_owned(),
        ),
        (
            AuditRecord::Operator(OperatorRecord { count: Some(3), ..OperatorRecord::new(None, "purge", "ok") }),
            r#""type":"operator","action":"purge","outcome":"ok","count":3"#.to_owned(),
        ),
    ];
    for (record, expected) in public {
        assert_eq!(line(&|chain, text| chain.append(text, time, &record)), expected);
    }
    let system = [
        (SystemRecord::began("sha256", None), r#""type":"chain","action":"began","algorithm":"sha256""#),
        (
            SystemRecord::continued("sha256", "a.jsonl.000001".to_owned()),
            r#""type":"chain","action":"continued","algorithm":"sha256","after":"a.jsonl.000001""#,
        ),
        (SystemRecord::Cut { bytes: 7, sha256: "ab".to_owned() }, r#""type":"cut","bytes":7,"sha256":"ab""#),
        (
            SystemRecord::Dropped { records: 6, lookups: 3, events: 2 },
            r#""type":"dropped","records":6,"lookups":3,"events":2"#,
        ),
        (SystemRecord::Process(ProcessEvent::Stopped), r#""type":"process","action":"stopped""#),
    ];
    for (record, expected) in system {
        assert_eq!(line(&|chain, text| chain.append(text, time, &record)), expected);
    }
}
