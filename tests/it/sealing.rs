//! Sealed records: values in Redis show no personal data, and values that others wrote are not served.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use profile_edge::domain::{IdentifierMarks, Identity, KeyHasher, ProfileBody};
use profile_edge::store::redis::fuzz::{decode, encode};
use profile_edge::store::{Content, Entry, Found, Record};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use reqwest::Method;
use serde_json::json;

use crate::support::customer;
use crate::support::edge::{DEMO_KEY_SHA256, Edge, LookupAnswer, flat, looked};
use crate::support::servers::redis::{Deployment, Setup};

const FAILURES: &str = "profile_edge_seal_failures_total";

/// A name that only one customer has.
const PLANTED: &str = "Zephyrina-Canaryname";

/// Returns the setting `store.sealing` with these keys, of which the first seals.
fn sealing(keys: &[(&str, u8)]) -> String {
    let line = |(name, byte): &(&str, u8)| format!("{name} = \"{}\"\n", STANDARD.encode([*byte; 32]));
    let lines: String = keys.iter().map(line).collect();
    format!("[store.sealing]\nactive = \"{}\"\n[store.sealing.keys]\n{lines}", keys[0].0)
}

/// A Redis and a sandbox that edges share.
struct SharedRedis {
    deployment: Deployment,
    genesys: Edge,
    redis: MultiplexedConnection,
}

impl SharedRedis {
    async fn start() -> Self {
        let deployment = Deployment::start(Setup::Single).await;
        let redis = deployment.servers[0].connect().await.unwrap();
        Self { genesys: Edge::start().await, redis, deployment }
    }

    /// Starts an edge with two tenants and these settings.
    async fn edge(&self, settings: &str) -> Edge {
        self.edge_for(settings, "fields = [\"*\"]\n").await
    }

    /// As [`edge`](Self::edge), for a caller with these fields.
    async fn edge_for(&self, settings: &str, fields: &str) -> Edge {
        let tenants = ["10001", "10002"].map(|tenant| tenant_on(tenant, &self.genesys)).concat();
        Edge::start_with(&format!(
            "[store]\nkind = \"redis\"\n[store.redis]\n{}{settings}{tenants}[[caller]]\nname = \"desktop\"\n\
             key_sha256 = \"{DEMO_KEY_SHA256}\"\ntenants = [\"10001\", \"10002\"]\n{fields}",
            self.deployment.settings
        ))
        .await
    }

    /// Returns the value at a customer's key.
    async fn value(&self, identity: &Identity) -> Bytes {
        let value: Vec<u8> = self.redis.clone().get(identity.key().as_str()).await.unwrap();
        value.into()
    }

    /// Returns the record at a customer's key.
    async fn record(&self, identity: &Identity) -> Record {
        let Entry::Record(record) = decode(self.value(identity).await) else { panic!("no record") };
        record
    }

    /// Writes a value at a customer's key.
    async fn put(&self, identity: &Identity, value: &[u8]) {
        let () = self.redis.clone().pset_ex(identity.key().as_str(), value, 600_000).await.unwrap();
    }

    async fn end(self, edges: impl IntoIterator<Item = Edge>) {
        for edge in edges {
            edge.stop().await;
        }
        self.genesys.stop().await;
    }
}

fn tenant_on(tenant: &str, genesys: &Edge) -> String {
    let url = format!("http://{}", genesys.sandbox_address());
    format!(
        "[[tenant]]\nid = \"{tenant}\"\nupstream = {{ api_url = \"{url}\", login_url = \"{url}\", \
         client_id = \"sandbox\", client_secret = \"sandbox\", requests_per_minute = 100000 }}\n\
         webhook = [{{ scheme = \"api-key\", secrets = [\"webhook-secret-{tenant}\"] }}]\n"
    )
}

fn identity(tenant: &str, customer: &str) -> Identity {
    KeyHasher::Sha256.identify(&tenant.parse().unwrap(), &customer.parse().unwrap())
}

async fn look_up_of(edge: &Edge, tenant: &str, customer: &str) -> LookupAnswer {
    let request = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
    looked(request.query(&[("tenantId", tenant), ("customerId", customer)]).send().await.unwrap()).await
}

/// Returns the name of the key that seals a record.
fn sealed_under(record: &Record) -> String {
    let Content::Sealed(ciphertext) = &record.content else { panic!("in clear: {record:?}") };
    let bytes = ciphertext.as_bytes();
    String::from_utf8(bytes[1..=usize::from(bytes[0])].to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_records_are_served_and_unreadable_in_redis() {
    let world = SharedRedis::start().await;
    world.genesys.change(&customer(1), json!({ "firstName": PLANTED })).await;
    let merge = world.genesys.sandbox(Method::POST, "/api/v2/externalcontacts/contacts/merge");
    let merged = merge.json(&json!({ "contactIds": [customer(2), customer(3)] })).send().await.unwrap();
    assert!(merged.status().is_success());
    let edge = world.edge(&sealing(&[("k1", 1)])).await;
    let ids = [customer(1), customer(2), customer(3), customer(999_999)];
    let mut first = Vec::new();
    for id in &ids {
        first.push(edge.look_up(id).await);
    }
    for (id, first) in ids.iter().zip(&first) {
        let again = edge.look_up(id).await;
        let repeated = (again.status, again.cache_status.contains("hit"), &again.text);
        assert_eq!(repeated.0, first.status);
        assert!(repeated.1 || again.status == 404, "{}", again.cache_status);
        assert!(again.status == 404 || *repeated.2 == first.text);
        assert_eq!(again.headers.get("etag"), first.headers.get("etag"));
    }
    assert_eq!(first.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 200, 404]);
    assert!(first[0].text.contains(PLANTED));
    assert_eq!(edge.metric(FAILURES).await, 0.0);

    let mut redis = world.redis.clone();
    let keys: Vec<String> = redis.keys("cust:profile:*").await.unwrap();
    assert!(keys.len() >= 4, "{keys:?}");
    for key in keys {
        let value: Vec<u8> = redis.get(&key).await.unwrap();
        let Entry::Record(record) = decode(value.clone().into()) else { panic!("{key}: no record") };
        assert_eq!(sealed_under(&record), "k1");
        let text = String::from_utf8_lossy(&value);
        for hidden in [PLANTED, "firstName", "modifyDate", "00000000-0000"] {
            assert!(!text.contains(hidden), "{key} shows {hidden}");
        }
    }
    world.end([edge]).await;
}

/// Writes at a customer's key what an attacker with access to Redis, but without a sealing key, could write.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_moved_to_another_customers_key_is_not_served() {
    let world = SharedRedis::start().await;
    world.genesys.change(&customer(1), json!({ "firstName": PLANTED })).await;
    let edge = world.edge(&sealing(&[("k1", 1)])).await;
    let (victim, target) = (identity("10001", &customer(1)), identity("10001", &customer(2)));
    let (abroad, own) = (identity("10002", &customer(1)), look_up_of(&edge, "10001", &customer(2)).await.text);
    assert!(look_up_of(&edge, "10001", &customer(1)).await.text.contains(PLANTED));
    look_up_of(&edge, "10002", &customer(1)).await;

    let copied = world.value(&victim).await;
    let relabelled = |to: &Identity, from: &Record| encode(&Record { identity: to.clone(), ..from.clone() });
    let taken = world.record(&victim).await;
    let body = ProfileBody::new(Bytes::from_static(b"{\"firstName\":\"Zephyrina-Canaryname\"}"));
    let clear = |content| encode(&Record { identity: target.clone(), content, ..taken.clone() });
    let forged = [
        ("copied", &target, copied.clone()),
        ("copied, with the identity changed", &target, relabelled(&target, &taken)),
        ("copied to another tenant", &abroad, copied.clone()),
        ("copied to another tenant, with the identity changed", &abroad, relabelled(&abroad, &taken)),
        (
            "copied from another tenant, with the identity changed",
            &target,
            relabelled(&target, &world.record(&abroad).await),
        ),
        (
            "a profile in clear",
            &target,
            clear(Content::Found(Found {
                validator: body.validator(),
                body,
                modified: None,
                identifiers: IdentifierMarks::default(),
            })),
        ),
        ("a pointer in clear", &target, clear(Content::Pointer(victim.clone()))),
        ("an absence in clear", &target, clear(Content::Negative)),
    ];
    for (number, (what, at, value)) in forged.iter().enumerate() {
        world.put(at, value).await;
        let (tenant, asked) = if *at == &target { ("10001", customer(2)) } else { ("10002", customer(1)) };
        let answer = look_up_of(&edge, tenant, &asked).await;
        // The other tenant has the same customer, which is fetched again.
        assert_eq!((answer.status, answer.cache_status.as_str()), (200, "profile-edge; fwd=miss; stored"), "{what}");
        assert!(*at == &abroad || answer.text == own, "{what}");
        assert!(look_up_of(&edge, tenant, &asked).await.is_hit(), "{what}: what was fetched took its place");
        assert_eq!(edge.metric(FAILURES).await, (number + 1) as f64, "{what}: counted");
    }
    // The source of the copy is unchanged.
    assert_eq!(world.value(&victim).await, copied);
    assert!(look_up_of(&edge, "10001", &customer(1)).await.is_hit());
    world.end([edge]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_altered_byte_makes_a_sealed_record_a_miss() {
    let world = SharedRedis::start().await;
    let edge = world.edge(&sealing(&[("k1", 1)])).await;
    let (one, at) = (customer(1), identity("10001", &customer(1)));
    let own = edge.look_up(&one).await.text;
    let value = world.value(&at).await;
    assert!(value.len() > 200);
    for byte in 0..value.len() {
        let mut altered = value.to_vec();
        altered[byte] ^= 1;
        world.put(&at, &altered).await;
        let answer = edge.look_up(&one).await;
        assert!(!answer.is_hit() && answer.text == own, "byte {byte}: {}", answer.cache_status);
    }
    // An earlier value of the same key can be restored, and is served until it expires.
    world.put(&at, &value).await;
    assert!(edge.look_up(&one).await.is_hit());
    world.end([edge]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_with_different_sealing_keys_share_no_entry_and_no_failure() {
    let world = SharedRedis::start().await;
    let old = world.edge(&sealing(&[("k1", 1)])).await;
    let new = world.edge(&sealing(&[("k2", 2)])).await;
    let without = world.edge("").await;
    let (one, at) = (customer(1), identity("10001", &customer(1)));
    let own = old.look_up(&one).await.text;
    assert!(old.look_up(&one).await.is_hit());
    for (edge, name) in [(&new, "k2"), (&old, "k1"), (&without, ""), (&new, "k2"), (&without, ""), (&old, "k1")] {
        let before = edge.metric(FAILURES).await;
        let answer = edge.look_up(&one).await;
        assert_eq!((answer.status, answer.is_hit(), &answer.text), (200, false, &own), "{name}");
        assert_eq!(edge.metric(FAILURES).await, before + 1.0, "{name}");
        let record = world.record(&at).await;
        match &record.content {
            Content::Sealed(_) => assert_eq!(sealed_under(&record), name),
            Content::Found(_) => assert_eq!("", name),
            Content::Negative | Content::Pointer(_) | Content::IdentifierPointer(_) => panic!("{record:?}"),
        }
        assert!(edge.look_up(&one).await.is_hit(), "{name}");
    }
    world.end([old, new, without]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deeply_nested_value_in_redis_is_a_miss() {
    let world = SharedRedis::start().await;
    let filtered = "fields = [\"id\", \"firstName.first\"]\n";
    let edge = world.edge_for("", filtered).await;
    let (one, at) = (customer(1), identity("10001", &customer(1)));
    let own = edge.look_up(&one).await.text;
    let record = world.record(&at).await;
    for levels in [64, 20_000, 200_000] {
        let json = format!("{{\"firstName\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        let body = ProfileBody::new(json.into());
        let content = Content::Found(Found {
            validator: body.validator(),
            body,
            modified: None,
            identifiers: IdentifierMarks::default(),
        });
        world.put(&at, &encode(&Record { content, ..record.clone() })).await;
        let answer = edge.look_up(&one).await;
        assert_eq!((answer.status, answer.is_hit(), &answer.text), (200, false, &own), "{levels} levels");
    }
    world.end([edge]).await;
}

/// Writes tombstones that never expire in Redis, as somebody with access to it could.
#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_outside_its_own_lifetime_buries_nobody() {
    let world = SharedRedis::start().await;
    let edge = world.edge("").await;
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let day = 24 * 3_600_000;
    let mut redis = world.redis.clone();
    for (number, written, buried) in
        [(1, now - 2 * day, false), (2, now + day, false), (3, i64::MAX, false), (4, now - 1_000, true)]
    {
        let (asked, at) = (customer(number), identity("10001", &customer(number)));
        let mut value = b"\x01T0123456789abcdef".to_vec();
        value.extend_from_slice(format!("4102444800000|m|{written}").as_bytes());
        let () = redis.set(at.key().as_str(), value.clone()).await.unwrap();
        let answer = edge.look_up(&asked).await;
        assert_eq!(answer.status, if buried { 410 } else { 200 }, "written {} ms ago", now - written);
    }
    // A fence that says "deleted" writes no tombstone once its own time is over, or before it has begun.
    for raised in [now - 2 * day, now + day] {
        let (asked, at) = (customer(9), identity("10001", &customer(9)));
        let () = redis.del(at.key().as_str()).await.unwrap();
        let fence = format!("1||4102444800000|m|D|0|0|{raised}");
        let () = redis.set(format!("fence:{{{}}}", at.key()), fence).await.unwrap();
        assert_eq!(edge.look_up(&asked).await.status, 200);
    }
    world.end([edge]).await;
}

/// Posts a flat event of the first tenant that happened then.
async fn post(edge: &Edge, customer: &str, kind: &str, millis: i64) {
    let mut event = flat(customer);
    event["eventType"] = kind.into();
    event["occurredAt"] = jiff::Timestamp::from_millisecond(millis).unwrap().to_string().into();
    let posted = edge.client.post(edge.url("/webhooks/10001")).header("X-API-Key", "webhook-secret-10001");
    assert_eq!(posted.json(&event).send().await.unwrap().status(), 202);
}

/// Writes at a customer's keys what an attacker with access to Redis, but without a sealing key, could write.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_or_moved_tombstone_deletes_nobody_where_sealing_is_on() {
    let world = SharedRedis::start().await;
    let edge = world.edge(&sealing(&[("k1", 1)])).await;
    let mut redis = world.redis.clone();
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let (deleted, target) = (identity("10001", &customer(1)), identity("10001", &customer(2)));
    post(&edge, &customer(1), "customer.deleted", now - 1_000).await;
    edge.applied("deleted", 1.0).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 410);
    let genuine = world.value(&deleted).await;
    let text = String::from_utf8(genuine[18..].to_vec()).unwrap();
    let seal = text.rsplit('|').next().unwrap();
    let with = |text: String| [&genuine[..18], text.as_bytes()].concat();
    let forged = [
        ("without a seal", with(format!("{now}|m|{now}"))),
        ("with another seal", with(format!("{now}|m|{now}|{}", "0".repeat(32)))),
        ("that was moved", genuine.to_vec()),
    ];
    let before = edge.metric(FAILURES).await;
    for (number, (what, value)) in forged.iter().enumerate() {
        world.put(&target, value).await;
        assert_eq!(edge.look_up(&customer(2)).await.status, 200, "a tombstone {what}");
        assert_eq!(edge.metric(FAILURES).await, before + (number + 1) as f64, "{what}: counted");
        assert!(edge.look_up(&customer(2)).await.is_hit(), "{what}: what was fetched took its place");
    }
    // Nor can a genuine one be changed to last longer, or to outlive a re-creation.
    for altered in [format!("4102444800000|m|{now}|{seal}"), text.replace(&format!("|{seal}"), "")] {
        world.put(&deleted, &with(altered)).await;
        assert!(!edge.look_up(&customer(1)).await.cache_status.contains("tombstone"));
    }
    // A fence that says "deleted" restores a tombstone, which needs a seal as well.
    for sealed in [String::new(), format!("|{text}"), format!("|{now}|m|{now}|{}", "0".repeat(32))] {
        let () = redis.del(target.key().as_str()).await.unwrap();
        let fence = format!("1||{now}|m|D|0|0|{now}{sealed}");
        let () = redis.set(format!("fence:{{{}}}", target.key()), fence).await.unwrap();
        assert_eq!(edge.look_up(&customer(2)).await.status, 200, "a fence with {sealed:?}");
    }
    // The genuine one is restored from its fence.
    let () = redis.del(deleted.key().as_str()).await.unwrap();
    assert_eq!(edge.look_up(&customer(1)).await.status, 410);
    assert_eq!(world.value(&deleted).await[18..], genuine[18..]);
    world.end([edge]).await;
}

/// Writes the mark of an event before the event arrives, as somebody could who knows its id and times.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_mark_stops_no_event_where_sealing_is_on() {
    let world = SharedRedis::start().await;
    let edge = world.edge(&sealing(&[("k1", 1)])).await;
    let one = customer(1);
    post(&edge, &one, "customer.updated", 1_750_000_000_000).await;
    edge.applied("updated", 1.0).await;
    let mut redis = world.redis.clone();
    let marks: Vec<String> = redis.keys("seen:*").await.unwrap();
    assert_eq!(marks.len(), 1);
    let genuine: Vec<u8> = redis.get(&marks[0]).await.unwrap();
    for (number, forged) in [b"1".to_vec(), b"0".repeat(32)].into_iter().enumerate() {
        edge.look_up(&one).await;
        assert!(edge.look_up(&one).await.is_hit());
        let () = redis.pset_ex(&marks[0], &forged, 600_000).await.unwrap();
        post(&edge, &one, "customer.updated", 1_750_000_000_000).await;
        edge.applied("updated", (number + 2) as f64).await;
        assert!(!edge.look_up(&one).await.is_hit(), "the event was applied");
        assert_eq!(redis.get::<_, Vec<u8>>(&marks[0]).await.unwrap(), genuine);
    }
    // Its own mark makes the same event a duplicate.
    post(&edge, &one, "customer.updated", 1_750_000_000_000).await;
    edge.wait_for_metric("profile_edge_consumer_events_total{kind=\"updated\",outcome=\"duplicate\"}", 1.0).await;
    world.end([edge]).await;
}
