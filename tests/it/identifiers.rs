//! Lookups by phone number, e-mail address and external id, through the HTTP interface of the real application.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::pairing::on_every_pairing;
use crate::support::edge::{DEMO_KEY_SHA256, DEMO_KEYS, Edge, LookupAnswer, Pairing, looked};
use crate::support::servers::redis::{Deployment, Setup};
use crate::support::{customer, eventually};

/// Only events end what is cached.
const LASTING: &str =
    "[sandbox]\nlatency = \"0ms\"\n[lookup]\nidentifier_ttl = \"1h\"\nnegative_ttl = \"1h\"\nttl = \"1h\"\n";

/// A number that nobody has in the sandbox.
const NUMBER: &str = "+12025550171";

/// The external source of the sandbox's contacts.
const CRM: &str = "5a4d0000-0000-4000-8000-0000000000e1";

on_every_pairing!(
    a_customer_is_found_by_each_of_its_identifiers,
    an_unknown_number_is_found_once_a_contact_has_it,
    a_number_that_moves_is_never_answered_with_its_former_owner,
    a_former_owner_that_genesys_still_shows_is_labelled_and_short_lived,
    a_deleted_customer_is_not_found_and_its_number_may_have_another,
    a_number_of_a_merged_customer_leads_to_the_canonical_one,
    an_event_without_a_body_makes_a_pointer_a_hint,
);

async fn by(edge: &Edge, query: &[(&str, &str)]) -> LookupAnswer {
    let request = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
    looked(request.query(&[("tenantId", "10001")]).query(query).send().await.unwrap()).await
}

async fn by_phone(edge: &Edge, phone: &str) -> LookupAnswer {
    by(edge, &[("phone", phone)]).await
}

/// Asks until the answer comes from the store, which may be filled in the background.
async fn cached(edge: &Edge, phone: &str) -> LookupAnswer {
    eventually("a hit", || async { Some(by_phone(edge, phone).await).filter(LookupAnswer::is_hit) }).await
}

fn has_number(number: &str) -> Value {
    json!({ "workPhone": { "e164": number } })
}

/// Changes a contact at Genesys and returns the event of the change, as the contact topic has it.
async fn changed(edge: &Edge, id: &str, patch: &Value) -> Value {
    let path = format!("/api/v2/externalcontacts/contacts/{id}");
    let response = edge.sandbox(Method::PATCH, &path).json(patch).send().await.unwrap();
    let body: Value = response.json().await.unwrap();
    json!({ "topicName": format!("v2.externalcontacts.contacts.{id}"), "eventBody": body })
}

/// Posts an event and waits until it was applied.
async fn apply(edge: &Edge, event: &Value) {
    let before = effects(edge, "updated").await;
    assert_eq!(edge.post_event(event).await.status(), 202);
    eventually("applied", || async { (effects(edge, "updated").await > before).then_some(()) }).await;
}

/// Returns how many events of a kind had an effect, in any order.
async fn effects(edge: &Edge, kind: &str) -> f64 {
    let series = |outcome| format!("profile_edge_consumer_events_total{{kind=\"{kind}\",outcome=\"{outcome}\"}}");
    edge.metric(&series("applied")).await + edge.metric(&series("outrun")).await
}

async fn quiet(pairing: Pairing, settings: &str) -> Edge {
    let edge = Edge::start_on(pairing, &format!("{LASTING}{settings}")).await;
    edge.behave(json!({ "events": false })).await;
    edge
}

async fn a_customer_is_found_by_each_of_its_identifiers(pairing: Pairing) {
    let edge = quiet(pairing, "").await;
    let one = customer(1);
    changed(&edge, &one, &has_number(NUMBER)).await;
    let before = edge.calls().await.0;
    let first = by_phone(&edge, NUMBER).await;
    assert_eq!((first.status, &first.json()["id"]), (200, &json!(one)), "{}", first.text);
    assert!(first.cache_status.contains("fwd=miss; stored"), "{}", first.cache_status);
    for spelling in ["+12025550171", "tel:+1-202-555-0171", "(202) 555-0171", "2025550171"] {
        let again = cached(&edge, spelling).await;
        assert_eq!(again.text, first.text, "{spelling}");
    }
    // One request for the number, which is waited for, and one that fills the entry of its customer.
    assert_eq!(edge.calls().await.0, before + 2);
    assert_eq!(edge.look_up(&one).await.text, first.text);
    assert!(edge.look_up(&one).await.is_hit());

    let email = first.json()["workEmail"].as_str().unwrap().to_uppercase();
    let external = first.json()["externalIds"][0]["value"].as_str().unwrap().to_owned();
    for query in [vec![("email", email.as_str())], vec![("externalId", external.as_str()), ("externalSource", CRM)]] {
        // The entry of the customer is there, so one request is enough.
        let before = edge.calls().await.0;
        assert_eq!(by(&edge, &query).await.json()["id"], json!(one));
        let again = by(&edge, &query).await;
        assert!(again.is_hit(), "{}", again.cache_status);
        assert_eq!(edge.calls().await.0, before + 1);
    }
    assert!(edge.metric("profile_edge_identifier_pointers_total{outcome=\"believed\"}").await >= 4.0);
    edge.stop().await;
}

async fn an_unknown_number_is_found_once_a_contact_has_it(pairing: Pairing) {
    let edge = Edge::start_on(pairing, LASTING).await;
    assert_eq!(by_phone(&edge, NUMBER).await.status, 404);
    let again = by_phone(&edge, NUMBER).await;
    assert!(again.status == 404 && again.is_hit(), "{} {}", again.status, again.cache_status);
    assert!(again.cache_status.contains("detail=negative"), "{}", again.cache_status);
    edge.change(&customer(1), has_number(NUMBER)).await;
    edge.applied("updated", 1.0).await;
    let found = by_phone(&edge, NUMBER).await;
    assert_eq!((found.status, &found.json()["id"]), (200, &json!(customer(1))));
    edge.stop().await;
}

async fn a_number_that_moves_is_never_answered_with_its_former_owner(pairing: Pairing) {
    let edge = quiet(pairing, "").await;
    for (n, gained_first) in [(1, false), (3, true)] {
        let (from, to, number) = (customer(n), customer(n + 1), format!("+1202555016{n}"));
        changed(&edge, &from, &has_number(&number)).await;
        assert_eq!(by_phone(&edge, &number).await.json()["id"], json!(from));
        cached(&edge, &number).await;
        let lost = changed(&edge, &from, &json!({ "workPhone": null })).await;
        let gained = changed(&edge, &to, &has_number(&number)).await;
        let [first, second] = if gained_first { [&gained, &lost] } else { [&lost, &gained] };
        let never_the_former = async || {
            let answers = join_all((0..20).map(|_| by_phone(&edge, &number))).await;
            assert!(answers.iter().all(|answer| answer.json()["id"] == json!(to)), "{gained_first}");
        };
        for event in [first, second] {
            apply(&edge, event).await;
            never_the_former().await;
        }
        // Delivered once more.
        assert_eq!(edge.post_event(first).await.status(), 202);
        never_the_former().await;
        cached(&edge, &number).await;
        assert_eq!(edge.look_up(&from).await.json()["id"], json!(from));
    }
    edge.stop().await;
}

async fn a_former_owner_that_genesys_still_shows_is_labelled_and_short_lived(pairing: Pairing) {
    let edge = quiet(pairing, "unsettled_ttl = \"200ms\"\n").await;
    let (from, to) = (customer(1), customer(2));
    changed(&edge, &from, &has_number(NUMBER)).await;
    assert_eq!(by_phone(&edge, NUMBER).await.json()["id"], json!(from));
    cached(&edge, NUMBER).await;
    edge.behave(json!({ "search_lag": "1h" })).await;
    let lost = changed(&edge, &from, &json!({ "workPhone": null })).await;
    let gained = changed(&edge, &to, &has_number(NUMBER)).await;
    for event in [&gained, &lost] {
        apply(&edge, event).await;
        for _ in 0..5 {
            let answer = by_phone(&edge, NUMBER).await;
            assert_eq!(answer.json()["id"], json!(from));
            assert!(answer.cache_status.contains("detail=unsettled"), "{}", answer.cache_status);
        }
    }
    edge.behave(json!({ "search_lag": "0ms" })).await;
    eventually("the new owner, settled", || async {
        let answer = by_phone(&edge, NUMBER).await;
        // A fetch during which the short-lived entry ends is not stored, and labelled.
        (answer.json()["id"] == json!(to) && !answer.cache_status.contains("unsettled")).then_some(())
    })
    .await;
    edge.stop().await;
}

async fn a_deleted_customer_is_not_found_and_its_number_may_have_another(pairing: Pairing) {
    let edge = Edge::start_on(pairing, LASTING).await;
    let (one, two) = (customer(1), customer(2));
    edge.change(&one, has_number(NUMBER)).await;
    edge.applied("updated", 1.0).await;
    assert_eq!(by_phone(&edge, NUMBER).await.json()["id"], json!(one));
    cached(&edge, NUMBER).await;
    edge.behave(json!({ "search_lag": "1h" })).await;
    edge.delete(&one).await;
    edge.applied("deleted", 1.0).await;
    // The search still shows the deleted contact, and by its id it is gone.
    let answers = join_all((0..20).map(|_| by_phone(&edge, NUMBER))).await;
    assert!(answers.iter().all(|answer| answer.status == 404), "{}", answers[0].text);
    assert_eq!(edge.look_up(&one).await.status, 410);
    edge.behave(json!({ "search_lag": "0ms" })).await;
    edge.change(&two, has_number(NUMBER)).await;
    edge.applied("updated", 2.0).await;
    assert_eq!(by_phone(&edge, NUMBER).await.json()["id"], json!(two));
    edge.stop().await;
}

async fn a_number_of_a_merged_customer_leads_to_the_canonical_one(pairing: Pairing) {
    let edge = Edge::start_on(pairing, LASTING).await;
    let (one, two) = (customer(1), customer(2));
    edge.change(&one, has_number(NUMBER)).await;
    edge.applied("updated", 1.0).await;
    assert_eq!(by_phone(&edge, NUMBER).await.json()["id"], json!(one));
    cached(&edge, NUMBER).await;
    let merge = edge.sandbox(Method::POST, "/api/v2/externalcontacts/contacts/merge");
    let merged: Value = merge.json(&json!({ "contactIds": [one, two] })).send().await.unwrap().json().await.unwrap();
    eventually("the merge", || async { (effects(&edge, "merged").await >= 3.0).then_some(()) }).await;
    assert_eq!(by_phone(&edge, NUMBER).await.json()["id"], merged["id"]);
    assert_eq!(cached(&edge, NUMBER).await.json()["id"], merged["id"]);
    edge.stop().await;
}

async fn an_event_without_a_body_makes_a_pointer_a_hint(pairing: Pairing) {
    let edge = quiet(pairing, "").await;
    let one = customer(1);
    changed(&edge, &one, &has_number(NUMBER)).await;
    by_phone(&edge, NUMBER).await;
    cached(&edge, NUMBER).await;
    changed(&edge, &one, &json!({ "firstName": "Changed" })).await;
    apply(&edge, &json!({ "tenantId": "10001", "customerId": one })).await;
    let before = edge.calls().await.0;
    let answers = join_all((0..100).map(|_| by_phone(&edge, NUMBER))).await;
    assert!(answers.iter().all(|answer| answer.json()["firstName"] == "Changed"), "{}", answers[0].text);
    // The hint names the customer, so one request fills both entries.
    assert_eq!(edge.calls().await.0, before + 1);
    assert!(edge.metric("profile_edge_identifier_pointers_total{outcome=\"hint\"}").await >= 1.0);
    edge.stop().await;
}

/// The settings of a process that only looks up, with the keys of the demo.
fn second_process(address: std::net::SocketAddr, store: &str) -> String {
    format!(
        "roles = [\"lookup\"]\n{DEMO_KEYS}{LASTING}deadline = \"30s\"\n{store}\
         [[tenant]]\nid = \"10001\"\nupstream = {{ api_url = \"http://{address}\", login_url = \"http://{address}\", \
         client_id = \"sandbox\", client_secret = \"sandbox\", requests_per_minute = 60000 }}\n\
         [[caller]]\nname = \"desktop\"\nkey_sha256 = \"{DEMO_KEY_SHA256}\"\ntenants = [\"10001\"]\nfields = [\"*\"]\n\
         lookup_by = [\"phone\"]\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_lookups_of_a_cold_number_in_two_processes_cost_two_calls() {
    let store = format!("[store]\nkind = \"redis\"\ntimeout = \"5s\"\n[store.redis]\n{}", Deployment::database().await);
    let edge = Edge::start_with(&format!("{LASTING}deadline = \"30s\"\n{store}")).await;
    let other = Edge::start_with(&second_process(edge.sandbox_address(), &store)).await;
    edge.change(&customer(1), has_number(NUMBER)).await;
    edge.applied("updated", 1.0).await;
    edge.behave(json!({ "latency": "300ms" })).await;
    let crowd = async || {
        let all = (0..1_000).map(|n| by_phone(if n % 2 == 0 { &edge } else { &other }, NUMBER));
        for answer in join_all(all).await {
            assert_eq!(answer.status, 200, "{} {}", answer.cache_status, answer.text);
            assert_eq!(answer.json()["id"], json!(customer(1)));
        }
    };
    let before = edge.calls().await.0;
    crowd().await;
    assert_eq!(edge.calls().await.0, before + 2);
    // An event about the customer: the pointers are hints, and one request confirms them.
    edge.change(&customer(1), json!({ "cellPhone": null })).await;
    edge.applied("updated", 2.0).await;
    crowd().await;
    assert_eq!(edge.calls().await.0, before + 3);
    // The number moves: neither process answers with the former owner, wherever its last pointer led.
    edge.change(&customer(1), json!({ "workPhone": null })).await;
    edge.change(&customer(2), has_number(NUMBER)).await;
    edge.applied("updated", 4.0).await;
    for process in [&edge, &other, &edge, &other] {
        assert_eq!(by_phone(process, NUMBER).await.json()["id"], json!(customer(2)));
    }
    edge.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_look_up_by_a_number_is_told_so() {
    let callers = format!(
        "{DEMO_KEYS}{LASTING}\
         [[tenant]]\nid = \"10001\"\nphone_region = \"US\"\nupstream = {{ api_url = \"http://127.0.0.1:1\", \
         login_url = \"http://127.0.0.1:1\", client_id = \"a\", client_secret = \"b\" }}\n\
         [[caller]]\nname = \"desktop\"\nkey_sha256 = \"{DEMO_KEY_SHA256}\"\ntenants = [\"10001\"]\nfields = [\"*\"]\n"
    );
    let edge = Edge::start_with(&callers).await;
    for query in [
        vec![("phone", NUMBER)],
        vec![("email", "ada@example.com")],
        vec![("externalId", "1"), ("externalSource", CRM)],
    ] {
        let answer = by(&edge, &query).await;
        assert_eq!((answer.status, &answer.json()["field"]), (403, &json!(query[0].0)), "{}", answer.text);
    }
    let genesys = identifierlookup(&edge, &json!({ "type": "Phone", "value": NUMBER })).send().await.unwrap();
    assert_eq!(genesys.status(), 403);
    edge.stop().await;
    let by_id = callers + "lookup_by = [\"phone\"]\n";
    let edge = Edge::start_with(&by_id).await;
    let answer = by(&edge, &[("customerId", "a")]).await;
    assert_eq!((answer.status, &answer.json()["field"]), (403, &json!("customerId")));
    edge.stop().await;
}

#[test]
fn lookups_by_identifiers_need_a_key_and_are_refused_without_one() {
    let settings = format!(
        "[[tenant]]\nid = \"10001\"\nupstream = {{ region = \"us_east_1\", client_id = \"a\", client_secret = \"b\" }}\n\
         [[caller]]\nname = \"desktop\"\nkey_sha256 = \"{DEMO_KEY_SHA256}\"\ntenants = [\"10001\"]\nfields = [\"*\"]\n\
         lookup_by = [\"customerId\", \"email\"]\n"
    );
    let refused = profile_edge::config::from_toml(&settings).unwrap_err().to_string();
    assert!(refused.contains("caller[0].lookup_by") && refused.contains("keys.secret"), "{refused}");
    let keyed = format!("{DEMO_KEYS}{settings}");
    assert!(profile_edge::config::from_toml(&keyed).is_ok());
    let region = keyed.replace("upstream =", "phone_region = \"Germany\"\nupstream =");
    let refused = profile_edge::config::from_toml(&region).unwrap_err().to_string();
    assert!(refused.contains("tenant[0].phone_region"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_well_formed_identifier_is_accepted() {
    let edge = Edge::start_with(LASTING).await;
    for (query, field) in [
        (vec![], "customerId"),
        (vec![("phone", NUMBER), ("email", "a@example.com")], "email"),
        (vec![("phone", "sip:ada@example.com")], "phone"),
        (vec![("phone", "anonymous")], "phone"),
        (vec![("email", "ada")], "email"),
        (vec![("externalId", "1")], "externalSource"),
        (vec![("email", "a@example.com"), ("externalSource", CRM)], "externalSource"),
    ] {
        let answer = by(&edge, &query).await;
        assert_eq!((answer.status, &answer.json()["field"]), (400, &json!(field)), "{}", answer.text);
        assert!(!answer.text.contains("ada@"), "{}", answer.text);
    }
    // A plus that was not percent-encoded is a blank, and the JSON body has the same parameters.
    edge.change(&customer(1), has_number(NUMBER)).await;
    let url = edge.url(&format!("/api/v1/profile?tenantId=10001&phone={NUMBER}"));
    let unescaped = edge.client.get(url).header("X-API-Key", "demo-key").send().await.unwrap();
    assert_eq!(looked(unescaped).await.status, 200);
    let body = json!({ "tenantId": "10001", "phone": "(202) 555-0171", "fields": "id" });
    let posted = edge.client.post(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key").json(&body);
    assert_eq!(looked(posted.send().await.unwrap()).await.json(), json!({ "id": customer(1) }));
    edge.stop().await;
}

fn identifierlookup(edge: &Edge, body: &Value) -> RequestBuilder {
    let url = edge.url("/api/v2/externalcontacts/identifierlookup/contacts");
    edge.client.post(url).header("X-API-Key", "demo-key").json(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_genesys_shaped_identifier_routes_answer_as_genesys_does() {
    let edge = Edge::start_with(LASTING).await;
    edge.change(&customer(1), has_number(NUMBER)).await;
    edge.applied("updated", 1.0).await;
    let number = json!({ "type": "Phone", "value": NUMBER });
    let found = looked(identifierlookup(&edge, &number).send().await.unwrap()).await;
    assert_eq!((found.status, &found.json()["id"]), (200, &json!(customer(1))));
    cached(&edge, NUMBER).await;
    let old = edge.client.post(edge.url("/api/v2/externalcontacts/identifierlookup")).header("X-API-Key", "demo-key");
    let old = looked(old.json(&number).send().await.unwrap()).await;
    assert!(old.is_hit() && old.text == found.text, "{}", old.cache_status);
    let nobody = json!({ "type": "Phone", "value": "+12025550199" });
    let nobody = looked(identifierlookup(&edge, &nobody).send().await.unwrap()).await;
    assert_eq!((nobody.status, &nobody.json()["code"]), (404, &json!("not.found")));
    let wrong = looked(identifierlookup(&edge, &json!({ "type": "Cookie", "value": "c" })).send().await.unwrap()).await;
    assert_eq!((wrong.status, &wrong.json()["code"]), (400, &json!("bad.request")));
    for (path, list) in [
        ("/api/v2/externalcontacts/reversewhitepageslookup?lookupVal=%2B12025550171", "contacts"),
        ("/api/v2/externalcontacts/contacts?q=%2B12025550171&pageSize=25", "entities"),
    ] {
        for _ in 0..2 {
            let request = edge.client.get(edge.url(path)).header("X-API-Key", "demo-key");
            let answer = looked(request.send().await.unwrap()).await;
            assert_eq!((answer.status, &answer.json()[list][0]["id"]), (200, &json!(customer(1))), "{}", answer.text);
            assert!(answer.cache_status.contains("fwd=bypass"), "{}", answer.cache_status);
        }
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_costs_no_lookup_by_a_number() {
    let mut deployment = Deployment::start(Setup::Single).await;
    let store = format!("[store]\nkind = \"redis\"\n[store.redis]\n{}", deployment.settings);
    let edge = Edge::start_with(&format!("{LASTING}{store}")).await;
    edge.change(&customer(1), has_number(NUMBER)).await;
    edge.applied("updated", 1.0).await;
    deployment.servers[0].kill().await;
    let answer = eventually("a bypass", || async {
        Some(by_phone(&edge, NUMBER).await).filter(|answer| answer.cache_status.contains("fwd=bypass"))
    })
    .await;
    assert_eq!((answer.status, &answer.json()["id"]), (200, &json!(customer(1))));
    tokio::time::timeout(Duration::from_secs(60), edge.stop()).await.unwrap();
}
