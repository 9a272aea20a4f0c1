//! The places that are searched after a run: queues, Redis and files.

use std::path::Path;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redis::AsyncCommands;
use serde_json::json;
use tokio::time::timeout;

use crate::support::PATIENCE;

use super::genesys::person;
use super::plants::{EMAIL, FREE_ID, Place, UUID};
use super::world::{Servers, World};

const TAP: &str = "canary.tap";

/// Messages that are not events, or not valid ones, all about planted people.
pub(super) fn junk() -> Vec<Vec<u8>> {
    let later = json!({ "v": 4711, "id": FREE_ID, "customer": person(UUID) });
    let almost = json!({ "v": 1, "id": FREE_ID, "tenant": EMAIL, "keys": [UUID], "kind": FREE_ID });
    vec![
        person(UUID).to_string().into(),
        later.to_string().into(),
        almost.to_string().into(),
        b"\xff\0Zephyrina".into(),
    ]
}

/// A connection of the test to the broker.
pub(super) struct Broker<'a> {
    servers: &'a Servers,
    channel: Channel,
    _connection: Connection,
}

impl<'a> Broker<'a> {
    pub(super) async fn of(servers: &'a Servers) -> Self {
        let url = servers.rabbit.url(&servers.vhost);
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        Self { servers, channel, _connection: connection }
    }

    /// Copies every message to a work queue into another queue from now on.
    pub(super) async fn tap(&self) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(TAP.into(), options, FieldTable::default()).await.unwrap();
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        self.channel.queue_bind(TAP.into(), "profile-edge.events".into(), "#".into(), options, none).await.unwrap();
    }

    /// Publishes junk to the work queue directly, with plants also in its properties.
    pub(super) async fn inject(&self) {
        for bytes in junk() {
            let mut headers = FieldTable::default();
            headers.insert("traceparent".into(), AMQPValue::LongString(FREE_ID.into()));
            let properties = BasicProperties::default().with_message_id(EMAIL.into()).with_type(FREE_ID.into());
            let properties = properties.with_headers(headers);
            let (queue, options) = ("profile-edge.invalidations.0".into(), BasicPublishOptions::default());
            self.channel.basic_publish("".into(), queue, options, &bytes, properties).await.unwrap().await.unwrap();
        }
    }

    /// Reads this many messages of a queue, or all that it reports.
    async fn read(&self, queue: &str, count: Option<u32>) -> Vec<Place> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap();
        let count = count.unwrap_or_else(|| declared.message_count());
        let mut arguments = FieldTable::default();
        if queue == "profile-edge.journal" {
            arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
        }
        self.channel.basic_qos(u16::MAX, BasicQosOptions::default()).await.unwrap();
        let options = BasicConsumeOptions::default();
        let mut consumer = self.channel.basic_consume(queue.into(), queue.into(), options, arguments).await.unwrap();
        let mut read = Vec::new();
        for _ in 0..count {
            let next = timeout(PATIENCE, consumer.next()).await.unwrap_or_else(|_| panic!("{queue} has {count}"));
            let message = next.unwrap().unwrap();
            let head = format!("{} {} {:?}\n", message.exchange, message.routing_key, message.properties);
            read.push(Place::new(format!("a message of {queue}"), [head.as_bytes(), &message.data].concat()));
        }
        read
    }

    /// Returns all messages: copies of those in the work queue, the journal and the dead letters.
    pub(super) async fn contents(&self) -> Vec<Place> {
        let work = self.read(TAP, None).await;
        assert!(work.len() > 15, "{}", work.len());
        let journal = self.read("profile-edge.journal", Some(u32::try_from(work.len()).unwrap())).await;
        let dead = self.read("profile-edge.dead-letters", None).await;
        assert_eq!(dead.len(), junk().len());
        let left = self.read("profile-edge.invalidations.0", None).await;
        assert!(left.is_empty(), "everything was settled");
        [work, journal, dead].concat()
    }

    /// Removes the planted user.
    pub(super) async fn forget(self) {
        self.servers.rabbit.api("DELETE", &format!("/users/{}", self.servers.vhost), None).await.expect("it was there");
    }
}

/// Returns the keys of Redis, their values and its files.
pub(super) async fn of_redis(servers: &Servers) -> Vec<Place> {
    let mut redis = servers.redis().await;
    // Compression would hide the content of a value.
    redis::cmd("CONFIG").arg(&["SET", "rdbcompression", "no"]).exec_async(&mut redis).await.unwrap();
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    let mut places = vec![Place::new("the keys of Redis", keys.join(&b'\n'))];
    let mut records = 0;
    for key in keys {
        let value: Vec<u8> =
            redis::cmd("DUMP").arg(&key).query_async::<Option<_>>(&mut redis).await.unwrap().unwrap_or_default();
        records += usize::from(key.starts_with(b"cust:profile:") && value.len() > 200);
        places.push(Place::new(format!("the value of {}", String::from_utf8_lossy(&key)), value));
    }
    assert!(records > 0, "some profile is in Redis, sealed");
    // A value in clear text is found in the file, so the search works.
    let () = redis.set("canary-in-clear", "what is in clear").await.unwrap();
    redis::cmd("SAVE").exec_async(&mut redis).await.unwrap();
    let folder: Vec<String> = redis::cmd("CONFIG").arg(&["GET", "dir"]).query_async(&mut redis).await.unwrap();
    let kept = files(Path::new(&folder[1]));
    let rdb = kept.iter().find(|place| place.name.ends_with("dump.rdb")).expect("the RDB file");
    assert!(rdb.bytes.windows(16).any(|window| window == b"what is in clear"), "the RDB file shows what it holds");
    places.extend(kept);
    places
}

/// Returns all files below a directory.
pub(super) fn files(directory: &Path) -> Vec<Place> {
    let mut places = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            places.extend(files(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            // Sockets cannot be read, and a file may be removed meanwhile.
            places.push(Place::new(path.display().to_string(), bytes));
        }
    }
    places
}

/// Returns every request that the collector received.
pub(super) fn spans(world: &World) -> Vec<Place> {
    for name in ["lookup", "lead", "fetch", "webhook", "publish", "apply"] {
        assert!(world.collector.spans().iter().any(|span| span.name == name), "a span {name} was exported");
    }
    world.collector.requests().into_iter().map(|(_, body)| Place::new("a batch of spans", body)).collect()
}

/// Puts junk into the embedded queue while it is closed.
pub(super) fn inject_into_file(directory: &Path) {
    let events = redb::TableDefinition::<u64, &[u8]>::new("events");
    let file = redb::Database::create(directory.join("queue.redb")).unwrap();
    let txn = file.begin_write().unwrap();
    {
        let mut table = txn.open_table(events).unwrap();
        let last = redb::ReadableTable::last(&table).unwrap().map_or(0, |(last, _)| last.value());
        for (number, bytes) in (last + 1..).zip(junk()) {
            table.insert(number, bytes.as_slice()).unwrap();
        }
    }
    txn.commit().unwrap();
}
