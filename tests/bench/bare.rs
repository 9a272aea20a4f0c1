//! The bare programs that profile-edge is measured against: what the same libraries do with nothing around them.
//! Each is this binary again, as a process of its own.

use std::process::Stdio;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::routing::get;
use axum::serve::ListenerExt;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;

/// A bare program that runs; it ends with this value.
pub(crate) struct Bare {
    child: Child,
    tell: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Bare {
    pub(crate) fn start(program: &str, arguments: &[&str]) -> Self {
        let own = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(own)
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("this program can be started again");
        let tell = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { child, tell, answers }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Waits for a line that it prints.
    pub(crate) async fn answer(&mut self) -> String {
        self.answers.next_line().await.expect("it can be read").expect("it runs")
    }

    /// Writes a line to it, and waits for the one that it answers.
    pub(crate) async fn ask(&mut self, line: &str) -> String {
        self.tell.write_all(format!("{line}\n").as_bytes()).await.expect("it listens");
        self.answer().await
    }
}

/// A bare program in this process, if the arguments name one. It never returns then.
pub(crate) async fn run(arguments: &[String]) {
    match arguments {
        [_, program, url] if program == "bare-hits" => hits(url).await,
        [_, program, url] if program == "bare-queue" => queue(url).await,
        _ => {}
    }
}

/// Answers `GET /?key` with what one `GET` of that key returns.
async fn hits(redis: &str) {
    async fn one_get(State(connection): State<MultiplexedConnection>, RawQuery(key): RawQuery) -> Bytes {
        let value: Vec<u8> = connection.clone().get(key.expect("a key")).await.expect("redis answers");
        value.into()
    }
    let client = redis::Client::open(redis).expect("a valid address");
    let connection = client.get_multiplexed_async_connection().await.expect("redis answers");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    println!("{}", listener.local_addr().expect("a bound listener has an address"));
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("the option can be set"));
    let router = Router::new().route("/", get(one_get)).with_state(connection);
    axum::serve(listener, router).await.expect("it serves until it is killed");
}

/// On each line `<events> <in flight> <bytes>`, publishes so many with confirms, consumes and acknowledges them,
/// and answers with the seconds that it took. The topology must stand.
async fn queue(url: &str) {
    let connect = async || {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("the broker answers");
        let channel = connection.create_channel().await.expect("a channel");
        (connection, channel)
    };
    let (publishing, consuming) = (connect().await, connect().await);
    publishing.1.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    consuming.1.basic_qos(512, BasicQosOptions::default()).await.expect("a prefetch");
    let consumer = consuming.1.basic_consume(
        "profile-edge.invalidations.0".into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut consumer = consumer.await.expect("the queue stands");
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(order)) = orders.next_line().await {
        let numbers: Vec<usize> = order.split(' ').map(|number| number.parse().expect("a number")).collect();
        let [events, in_flight, length] = numbers[..] else { panic!("three numbers") };
        let started = Instant::now();
        let publisher = tokio::spawn(publish(publishing.1.clone(), events, in_flight, vec![b'x'; length]));
        for _ in 0..events {
            let delivery = consumer.next().await.expect("the consumer lives").expect("a delivery");
            delivery.ack(BasicAckOptions::default()).await.expect("an acknowledgement");
        }
        publisher.await.expect("the publisher ends");
        println!("{}", started.elapsed().as_secs_f64());
    }
}

async fn publish(channel: Channel, events: usize, in_flight: usize, body: Vec<u8>) {
    let one = |_| async {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(2).with_content_type("application/json".into());
        let sent = channel.basic_publish("profile-edge.events".into(), "shard.0".into(), options, &body, properties);
        let confirm = sent.await.expect("it is sent").await.expect("an answer");
        assert!(confirm.is_ack(), "the broker confirms");
    };
    stream::iter(0..events).map(one).buffer_unordered(in_flight).for_each(|()| async {}).await;
}
