//! The bare programs for comparison with profile-edge: the same libraries without any of its code around them. Each runs
//! as a separate process of this binary.

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

/// A running bare program; dropping the value kills it.
pub(crate) struct BareProgram {
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl BareProgram {
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
        let input = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { child, input, answers }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Waits for its next line of output.
    pub(crate) async fn answer(&mut self) -> String {
        self.answers.next_line().await.expect("it can be read").expect("it runs")
    }

    /// Writes a line to its input, and waits for its answer.
    pub(crate) async fn ask(&mut self, line: &str) -> String {
        self.input.write_all(format!("{line}\n").as_bytes()).await.expect("it listens");
        self.answer().await
    }
}

/// Runs the bare program that the arguments name, and never returns then; without one it returns at once.
pub(crate) async fn run(arguments: &[String]) {
    match arguments {
        [_, program, url] if program == "bare-hits" => hits(url).await,
        [_, program, url] if program == "bare-queue" => queue(url).await,
        _ => {}
    }
}

/// Answers `GET /?key` with the value of that key in Redis.
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

/// For each input line `<events> <in flight> <bytes>`, publishes that many messages with confirms, consumes and
/// acknowledges them, and prints the duration in seconds. The topology must exist.
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
    let mut consumer = consumer.await.expect("the queue exists");
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(command)) = commands.next_line().await {
        let numbers: Vec<usize> = command.split(' ').map(|number| number.parse().expect("a number")).collect();
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
