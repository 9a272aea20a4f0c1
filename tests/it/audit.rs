//! The audit trail of real processes: files and pipes, crashes, and full disks.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use profile_edge::faults::Fault;
use reqwest::header::RETRY_AFTER;
use serde_json::{Value, json};
use sha2::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::pairing::on_every_pairing;
use crate::support::edge::{DEMO_KEY_SHA256, Edge, Pairing, flat, looked};
use crate::support::process::{Ports, Process, configuration, event_id};
use crate::support::{customer, eventually};

on_every_pairing!(an_event_redelivered_after_restarts_has_one_record,);

const FILE: [(&str, &str); 2] = [("PROFILE_EDGE__AUDIT__SINK", "file"), ("PROFILE_EDGE__AUDIT__LOOKUPS", "all")];

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// Returns the complete records of a file. A line that is still being written is left out.
fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    parse(&text[..text.rfind('\n').map_or(0, |end| end + 1)])
}

fn parse(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn of_type<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["type"] == kind).collect()
}

/// Runs `profile-edge audit verify` in a directory.
fn verify(directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_profile-edge"))
        .args(["audit", "verify"])
        .args(arguments)
        .current_dir(directory)
        .output();
    let Output { status, stdout, stderr } = run.unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

async fn look_up(ports: &Ports, client: &reqwest::Client, n: u32) -> reqwest::Response {
    let request = client.get(format!("http://127.0.0.1:{}/api/v1/profile", ports.public));
    let request = request.query(&[("tenantId", "10001"), ("customerId", &customer(n))]);
    request.header("X-API-Key", "demo-key").send().await.unwrap()
}

async fn degraded(ports: &Ports, client: &reqwest::Client) -> Value {
    let ready = client.get(format!("http://127.0.0.1:{}/readyz", ports.admin)).send().await.unwrap();
    ready.json::<Value>().await.unwrap()["degraded"].take()
}

async fn stop(mut process: Process) {
    process.signal("TERM");
    assert_eq!(process.ended().await, Some(0), "{}", process.log());
}

/// Kills a process several times while it holds an event at this fault. Posts the event first if `post` is set.
async fn die_at(fault: Fault, times: usize, directory: &Path, settings: &str, mut post: bool) {
    let client = client();
    for _ in 0..times {
        let ports = Ports::draw();
        let more = [("PROFILE_EDGE_CONFIG", settings), ("PROFILE_EDGE_FAULTS", fault.as_str()), FILE[0], FILE[1]];
        let mut process = ports.start(directory, &more);
        ports.ready(&client).await;
        if std::mem::take(&mut post) {
            assert_eq!(ports.post(&client, 1).await, 202);
        }
        eventually("the event is applied", || async {
            let mut taken = 0.0;
            for outcome in ["applied", "duplicate"] {
                let series = format!("profile_edge_consumer_events_total{{kind=\"updated\",outcome=\"{outcome}\"}}");
                taken += ports.metric(&client, &series).await;
            }
            (taken == 1.0).then_some(())
        })
        .await;
        if fault == Fault::PauseBeforeAck {
            let path = directory.join("data/audit.jsonl");
            eventually("the audit record is written", || async {
                (of_type(&records(&path), "event").len() == 1).then_some(())
            })
            .await;
        }
        process.signal("KILL");
        assert_eq!(process.ended().await, None);
    }
}

/// Runs a process without a fault until the queue is empty, and returns the records of events.
async fn run_until_empty(directory: &Path, settings: &str) -> Vec<Value> {
    let (client, ports) = (client(), Ports::draw());
    let process = ports.start(directory, &[("PROFILE_EDGE_CONFIG", settings), FILE[0], FILE[1]]);
    ports.ready(&client).await;
    eventually("the queue is empty", || async {
        (ports.metric(&client, "profile_edge_queue_events").await == 0.0).then_some(())
    })
    .await;
    stop(process).await;
    let (code, said) = verify(directory, &["data/audit.jsonl"]);
    assert_eq!(code, Some(0), "{said}");
    of_type(&records(&directory.join("data/audit.jsonl")), "event").into_iter().cloned().collect()
}

async fn redelivered(times: usize, pairing: Pairing) {
    let directory = tempfile::tempdir().unwrap();
    let settings = configuration(directory.path(), &pairing.settings().await).display().to_string();
    die_at(Fault::PauseBeforeAck, times, directory.path(), &settings, true).await;
    let events = run_until_empty(directory.path(), &settings).await;
    assert_eq!(events.len(), 1, "{events:#?}");
    assert_eq!((&events[0]["event"], &events[0]["verdict"]), (&json!(event_id(1)), &json!("applied")));
    let all = records(&directory.path().join("data/audit.jsonl"));
    assert_eq!(all.iter().filter(|record| record["action"] == "started").count(), times + 1);
    assert!(all.iter().all(|record| record["chain"] == all[0]["chain"]), "a restart must continue the chain");
}

async fn an_event_redelivered_after_restarts_has_one_record(pairing: Pairing) {
    redelivered(3, pairing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_redeliveries_with_restarts_leave_one_audit_record() {
    redelivered(20, Pairing::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_effect_and_audit_leaves_one_recovered_record() {
    let directory = tempfile::tempdir().unwrap();
    let settings = configuration(directory.path(), &Pairing::Redis.settings().await).display().to_string();
    die_at(Fault::PauseBeforeAudit, 2, directory.path(), &settings, true).await;
    assert!(of_type(&records(&directory.path().join("data/audit.jsonl")), "event").is_empty());
    die_at(Fault::PauseBeforeAck, 2, directory.path(), &settings, false).await;
    let events = run_until_empty(directory.path(), &settings).await;
    assert_eq!(events.len(), 1, "{events:#?}");
    assert_eq!((&events[0]["event"], &events[0]["verdict"]), (&json!(event_id(1)), &json!("recovered")));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_the_first_line_edited_removed_moved_or_truncated() {
    let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), client());
    let process = ports.start(directory.path(), &FILE);
    ports.ready(&client).await;
    for n in 1..=4 {
        assert_eq!(look_up(&ports, &client, n).await.status(), 200);
    }
    stop(process).await;
    let path = directory.path().join("data/audit.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() >= 7, "{text}");
    let head = records(&path).last().unwrap()["hash"].as_str().unwrap().to_owned();
    let file = path.display().to_string();
    let (code, said) = verify(directory.path(), &[&file, "--expect-head", &head, "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["records"], &said["heads"][0]["hash"]), (&json!(lines.len()), &json!(head)));

    let edited = lines[3].replace("\"allowed\"", "\"denied\"");
    let all = lines.clone();
    let harmed = |change: &dyn Fn(&mut Vec<&str>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        lines.iter().map(|line| format!("{line}\n")).collect::<String>()
    };
    let cases: [(&str, String, usize); 6] = [
        ("edited", text.replace(lines[3], &edited), 4),
        ("removed", harmed(&|lines| lines.retain(|line| *line != all[3])), 4),
        ("first line removed", harmed(&|lines| lines.retain(|line| *line != all[0])), 1),
        ("moved", harmed(&|lines| lines.swap(3, 5)), 4),
        ("last lines removed", harmed(&|lines| lines.truncate(6)), 7),
        ("last line truncated", text[..text.len() - 20].to_owned(), lines.len()),
    ];
    for (what, harmed, line) in cases {
        assert_ne!(harmed, text, "{what}");
        std::fs::write(&path, harmed).unwrap();
        let (code, said) = verify(directory.path(), &[&file, "--expect-head", &head]);
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(said.contains(&format!("audit.jsonl: line {line}: ")), "{what}: {said}");
    }
    let (code, said) = verify(directory.path(), &["nowhere.jsonl"]);
    assert_eq!(code, Some(64), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_output_holds_only_audit_records() {
    let (directory, ports, client) = (tempfile::tempdir().unwrap(), Ports::draw(), client());
    let path = directory.path().join("out.jsonl");
    for _ in 0..2 {
        let out = std::fs::File::options().create(true).append(true).open(&path).unwrap();
        let process = ports.start_with_stdout(directory.path(), &[FILE[1]], out.into());
        ports.ready(&client).await;
        look_up(&ports, &client, 1).await;
        assert_eq!(ports.post(&client, 1).await, 202);
        eventually("the event is applied", || async { of_type(&records(&path), "event").first().map(|_| ()) }).await;
        stop(process).await;
    }
    let all = records(&path);
    assert_eq!(of_type(&all, "lookup").len(), 2);
    assert_eq!(of_type(&all, "process").len(), 4);
    let (code, said) = verify(directory.path(), &["out.jsonl", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["heads"].as_array().unwrap().len(), 2, "each start begins a new chain");
}

/// Starts a process whose standard output is not read.
async fn stalled(directory: &Path, strict: bool) -> (Ports, Process, std::io::PipeReader) {
    let ports = Ports::draw();
    let (reader, writer) = std::io::pipe().unwrap();
    let more = [
        FILE[1],
        ("PROFILE_EDGE__AUDIT__BUFFER", "1000"),
        ("PROFILE_EDGE__AUDIT__STRICT", if strict { "true" } else { "false" }),
        // All lookups but the first are hits.
        ("PROFILE_EDGE__LOOKUP__TTL", "1h"),
    ];
    let process = ports.start_with_stdout(directory, &more, writer.into());
    ports.ready(&client()).await;
    (ports, process, reader)
}

/// Reads a pipe to its end.
fn drained(reader: std::io::PipeReader) -> tokio::task::JoinHandle<String> {
    tokio::spawn(async move {
        let file = std::fs::File::from(std::os::fd::OwnedFd::from(reader));
        let mut text = String::new();
        tokio::fs::File::from_std(file).read_to_string(&mut text).await.unwrap();
        text
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_audit_sink_blocks_no_request_and_drops_are_counted() {
    let (directory, client) = (tempfile::tempdir().unwrap(), client());
    let (ports, process, reader) = stalled(directory.path(), false).await;
    let dropped = "profile_edge_audit_records_total{outcome=\"dropped\"}";
    let mut asked = 0_u32;
    while ports.metric(&client, dropped).await == 0.0 {
        let answers = join_all((0..100).map(|_| look_up(&ports, &client, 1))).await;
        assert!(answers.iter().all(|answer| answer.status() == 200));
        asked += 100;
    }
    eventually("degraded", || async { (degraded(&ports, &client).await == json!(["audit"])).then_some(()) }).await;
    // If lookups waited for the audit, each of these would take half a second.
    let begun = Instant::now();
    for _ in 0..100 {
        let answer = look_up(&ports, &client, 1).await;
        assert_eq!(answer.status(), 200);
        assert!(answer.headers()["cache-status"].to_str().unwrap().contains("hit"));
    }
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert_eq!(ports.post(&client, 1).await, 202);
    let applied = "profile_edge_consumer_events_total{kind=\"updated\",outcome=\"applied\"}";
    eventually("the event is applied", || async { (ports.metric(&client, applied).await == 1.0).then_some(()) }).await;
    process.wait_for_log("audit records are dropped").await;

    let text = drained(reader);
    eventually("no longer degraded", || async { (degraded(&ports, &client).await == json!([])).then_some(()) }).await;
    let dropped = ports.metric(&client, dropped).await;
    stop(process).await;
    let text = text.await.unwrap();
    std::fs::write(directory.path().join("out.jsonl"), &text).unwrap();
    let (code, said) = verify(directory.path(), &["out.jsonl"]);
    assert_eq!(code, Some(0), "{said}");
    let all = parse(&text);
    let recorded: f64 = of_type(&all, "dropped").iter().map(|record| record["records"].as_f64().unwrap()).sum();
    assert!(recorded >= 100.0 && (recorded - dropped).abs() < f64::EPSILON, "{recorded} of {dropped}");
    let events = of_type(&all, "event").len();
    assert_eq!((of_type(&all, "lookup").len() + events) as f64 + recorded, f64::from(asked) + 101.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_mode_answers_503_and_holds_events_while_auditing_fails() {
    let (directory, client) = (tempfile::tempdir().unwrap(), client());
    let (ports, process, reader) = stalled(directory.path(), true).await;
    let refused = loop {
        let answer = look_up(&ports, &client, 1).await;
        if answer.status() != 200 {
            break answer;
        }
    };
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key(RETRY_AFTER));
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["code"], "audit_unavailable");
    assert!(problem.get("firstName").is_none());
    for command in ["replay", "dead-letters/purge"] {
        let order = if command == "replay" { json!({ "since": "1h" }) } else { json!({ "all": true }) };
        let asked = client.post(format!("http://127.0.0.1:{}/admin/{command}", ports.admin)).json(&order);
        let answer = asked.send().await.unwrap();
        assert_eq!(answer.status(), 503, "{command}");
        assert!(answer.text().await.unwrap().contains("audit_unavailable"), "{command}");
    }
    assert_eq!(ports.post(&client, 1).await, 202);
    process.wait_for_log("the audit accepts no records").await;
    eventually("the event waits in the queue", || async {
        (ports.metric(&client, "profile_edge_queue_events").await == 1.0).then_some(())
    })
    .await;
    eventually("degraded", || async { (degraded(&ports, &client).await == json!(["audit"])).then_some(()) }).await;

    let text = drained(reader);
    eventually("a lookup is answered", || async { (look_up(&ports, &client, 1).await.status() == 200).then_some(()) })
        .await;
    eventually("the event is acknowledged", || async {
        (ports.metric(&client, "profile_edge_queue_events").await == 0.0).then_some(())
    })
    .await;
    assert_eq!(ports.metric(&client, "profile_edge_audit_records_total{outcome=\"dropped\"}").await, 0.0);
    stop(process).await;
    assert_eq!(of_type(&parse(&text.await.unwrap()), "event").len(), 1, "a redelivered event must have one record");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_lookups_only_in_strict_mode() {
    let (directory, client) = (tempfile::tempdir().unwrap(), client());
    for (strict, status) in [("false", 200), ("true", 503)] {
        let ports = Ports::draw();
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let more = [FILE[1], ("PROFILE_EDGE__AUDIT__STRICT", strict), ("PROFILE_EDGE__AUDIT__BUFFER", "1000")];
        let mut process = ports.start_with_stdout(directory.path(), &more, Stdio::from(full));
        process.wait_for_log("audit records cannot be written").await;
        ports.ready(&client).await;
        eventually("degraded", || async { (degraded(&ports, &client).await == json!(["audit"])).then_some(()) }).await;
        for _ in 0..12 {
            let answers = join_all((0..100).map(|_| look_up(&ports, &client, 1))).await;
            assert!(answers.iter().all(|answer| answer.status() == status), "strict = {strict}");
        }
        let dropped = ports.metric(&client, "profile_edge_audit_records_total{outcome=\"dropped\"}").await;
        assert_eq!(dropped > 0.0, strict == "false", "{dropped}");
        process.signal("TERM");
        assert_eq!(process.ended().await, Some(0), "{}", process.log());
        process.wait_for_log("audit records were lost").await;
    }
}

/// Waits until the audit file meets a condition, and returns its records.
async fn records_when(path: &Path, what: &str, is_met: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    eventually(what, || async {
        let all = records(path);
        is_met(&all).then_some(all)
    })
    .await
}

fn audited(directory: &Path, more: &str) -> (PathBuf, String) {
    let path = directory.join("audit.jsonl");
    let settings = format!("sandbox.latency = \"0ms\"\naudit.lookups = \"all\"\naudit.path = {path:?}\n{more}");
    (path, settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_record_has_caller_customer_digest_decision_and_fields() {
    let directory = tempfile::tempdir().unwrap();
    let other = "caller = [{ name = \"desk-7\", key_sha256 = \"KEY\", tenants = [\"10001\"], fields = [\"firstName\", \"workPhone.e164\", \"id\"], requests_per_second = 20 }]";
    let (path, settings) = audited(directory.path(), &other.replace("KEY", DEMO_KEY_SHA256));
    let edge = Edge::start_with(&settings).await;
    let one = customer(1);
    for fields in [None, None, Some("id,firstName"), Some("id,title"), Some("lastName")] {
        edge.look_up_with(&one, |request| {
            let fields: Vec<_> = fields.iter().map(|fields| ("fields", *fields)).collect();
            request.header("X-Request-Id", "call-4711").query(&fields)
        })
        .await;
    }
    let elsewhere = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
    let elsewhere = elsewhere.query(&[("tenantId", "15550199871"), ("customerId", &one)]).send().await.unwrap();
    assert_eq!(elsewhere.status(), 403);
    let wrong = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "wrong").send().await.unwrap();
    assert_eq!(wrong.status(), 401);
    let many = join_all((0..100).map(|_| edge.look_up(&one))).await;
    assert!(many.iter().any(|answer| answer.status == 429));
    let has = |all: &[Value], reason: &str| all.iter().any(|record| record["reason"] == reason);
    let is_whole = |all: &[Value]| has(all, "rate") && has(all, "unauthorized");
    let all = records_when(&path, "the records of a rate limit and of a wrong key", is_whole).await;
    let (refused, lookups): (Vec<&Value>, Vec<&Value>) =
        of_type(&all, "lookup").into_iter().partition(|record| record["reason"] == "unauthorized");
    let field_of = |n: usize, name: &str| lookups[n][name].clone();
    assert_eq!((field_of(0, "result"), field_of(1, "result")), (json!("miss"), json!("hit")));
    assert_eq!(field_of(1, "fields"), json!(["firstName", "id", "workPhone.e164"]));
    assert_eq!(field_of(2, "fields"), json!(["firstName", "id"]));
    for n in 0..3 {
        assert_eq!((field_of(n, "request"), field_of(n, "caller")), (json!("call-4711"), json!("desk-7")));
        assert_eq!((field_of(n, "tenant"), field_of(n, "decision")), (json!("10001"), json!("allowed")));
        assert_eq!(field_of(n, "key").as_str().unwrap().len(), 32);
    }
    for n in 3..5 {
        assert_eq!((field_of(n, "decision"), field_of(n, "reason")), (json!("denied"), json!("fields")));
        assert_eq!(field_of(n, "key"), field_of(0, "key"));
    }
    assert_eq!(
        (field_of(5, "reason"), lookups[5].get("tenant")),
        (json!("tenant"), None),
        "an unknown tenant must not be recorded"
    );
    assert_eq!((refused.len(), refused[0].get("caller"), refused[0].get("count")), (1, None, None));
    let text = std::fs::read_to_string(&path).unwrap();
    for secret in ["wrong", "5550199871", "demo-key", one.as_str()] {
        assert!(!text.contains(secret), "{secret}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_denied_webhooks_and_operator_commands_are_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let (path, settings) = audited(directory.path(), "");
    let edge = Edge::start_with(&settings).await;
    edge.post_event(&flat(&customer(1))).await;
    edge.post_event(&json!({ "tenantId": "10002", "customerId": customer(1) })).await;
    edge.client.post(edge.url("/webhooks/10001")).json(&flat(&customer(1))).send().await.unwrap();
    edge.client.post(edge.url("/webhooks/nobody")).json(&flat(&customer(1))).send().await.unwrap();
    let admin = |path: &str| format!("http://{}/admin/{path}", edge.admin);
    let target = json!({ "tenantId": "10001", "customerId": customer(1) });
    for action in ["inspect", "invalidate"] {
        edge.client.post(admin(action)).json(&target).send().await.unwrap();
    }
    edge.client.get(admin("dead-letters/nothing")).send().await.unwrap();
    records_when(&path, "the records of two events", |all| of_type(all, "event").len() == 2).await;
    // The second replay ends a millisecond before it is ordered.
    let applied = Instant::now();
    eventually("two milliseconds later", || async { (applied.elapsed() > Duration::from_millis(2)).then_some(()) })
        .await;
    for (path, order) in [
        ("replay", json!({ "since": "1h", "tenantId": "10001", "dryRun": true })),
        ("replay", json!({ "since": "1h", "until": "1ms", "tenantId": "10001" })),
        ("replay", json!({ "since": "1h", "tenantId": "20002" })),
        ("dead-letters/redrive", json!({ "all": true })),
        ("dead-letters/redrive", json!({ "ids": ["7"] })),
        ("dead-letters/purge", json!({ "all": true })),
    ] {
        edge.client.post(admin(path)).json(&order).send().await.unwrap().text().await.unwrap();
    }
    let is_whole = |all: &[Value]| {
        of_type(all, "event").len() == 4
            && of_type(all, "operator").iter().any(|one| one["action"] == "replay.ended")
            // Refusals are recorded up to a second later.
            && of_type(all, "webhook").len() == 3
    };
    let all = records_when(&path, "four events, three refusals, and the end of the replay", is_whole).await;
    let keys: Vec<&Value> = of_type(&all, "event").iter().map(|event| &event["keys"][0]).collect();
    let (ends, operations): (Vec<&Value>, Vec<&Value>) =
        of_type(&all, "operator").into_iter().partition(|operation| operation["action"] == "replay.ended");
    let outcomes: Vec<(&Value, &Value)> =
        operations.iter().map(|operation| (&operation["action"], &operation["outcome"])).collect();
    let expected = [
        (json!("inspect"), json!("ok")),
        (json!("invalidate"), json!("ok")),
        (json!("dead_letters.show"), json!("unknown_dead_letter")),
        (json!("replay.dry_run"), json!("ok")),
        (json!("replay"), json!("ok")),
        (json!("replay"), json!("unknown_tenant")),
        (json!("dead_letters.redrive"), json!("ok")),
        (json!("dead_letters.redrive"), json!("unknown_dead_letter")),
        (json!("dead_letters.purge"), json!("ok")),
    ];
    assert_eq!(outcomes, expected.iter().map(|(action, outcome)| (action, outcome)).collect::<Vec<_>>());
    assert_eq!((&operations[0]["key"], &operations[1]["key"]), (keys[0], keys[1]));
    assert!(of_type(&all, "event").iter().any(|event| event["event"] == operations[1]["event"]));
    let replays: Vec<&Value> = of_type(&all, "event").iter().filter_map(|event| event.get("replay")).collect();
    assert_eq!(replays, [&operations[4]["replay"]; 2]);
    assert_eq!(ends.len(), 1);
    assert_eq!((&ends[0]["replay"], &ends[0]["outcome"], &ends[0]["count"]), (replays[0], &json!("done"), &json!(2)));
    assert_eq!((&operations[4]["tenant"], operations[5].get("tenant")), (&json!("10001"), None));
    assert_eq!((&operations[6]["count"], &operations[8]["count"]), (&json!(0), &json!(0)));
    let denied: Vec<(&Value, Option<&Value>)> =
        of_type(&all, "webhook").iter().map(|denied| (&denied["reason"], denied.get("tenant"))).collect();
    let tenant = json!("10001");
    let expected = [
        (json!("foreign_tenant"), Some(&tenant)),
        (json!("unauthorized"), Some(&tenant)),
        (json!("unknown_tenant"), None),
    ];
    assert_eq!(denied, expected.iter().map(|(reason, tenant)| (reason, *tenant)).collect::<Vec<_>>());
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_without_a_credential_are_counted_in_one_record_a_second() {
    const EACH: u64 = 1_500;
    let directory = tempfile::tempdir().unwrap();
    let key = hex::encode(sha2::Sha256::digest("operator-key"));
    let (path, settings) = audited(directory.path(), &format!("audit.buffer = 1000\nadmin.key_sha256 = \"{key}\"\n"));
    let edge = Edge::start_with(&settings).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    let urls = [
        (edge.url("/api/v1/profile"), 401),
        (edge.url("/oauth/token"), 401),
        (edge.url("/webhooks/10001"), 401),
        (edge.url("/webhooks/nobody"), 404),
        (format!("http://{}/admin/inspect", edge.admin), 401),
    ];
    let started = Instant::now();
    for _ in 0..EACH / 50 {
        let refused = async |(url, status): &(String, u16)| {
            let request = edge.client.post(url).header("X-API-Key", "wrong");
            let form = [("grant_type", "client_credentials"), ("client_id", "demo"), ("client_secret", "wrong")];
            let request = if url.ends_with("token") { request.form(&form) } else { request.json(&json!({})) };
            assert_eq!(request.send().await.unwrap().status(), *status, "{url}");
        };
        join_all(urls.iter().cycle().take(50 * urls.len()).map(refused)).await;
    }
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    assert_eq!(edge.metric("profile_edge_audit_records_total{outcome=\"dropped\"}").await, 0.0);
    edge.stop().await;
    let all = records(&path);
    assert_eq!(of_type(&all, "lookup").iter().filter(|record| record["decision"] == "allowed").count(), 2);
    let refusals = |kind: &str, reason: &str| -> Vec<u64> {
        let is_it = |one: &&&Value| one["reason"] == reason || (kind == "operator" && one["outcome"] == reason);
        of_type(&all, kind).iter().filter(is_it).map(|one| one["count"].as_u64().unwrap_or(1)).collect()
    };
    for (kind, reason) in [
        ("lookup", "unauthorized"),
        ("token", "unauthorized"),
        ("webhook", "unauthorized"),
        ("webhook", "unknown_tenant"),
        ("operator", "unauthorized"),
    ] {
        let counts = refusals(kind, reason);
        assert_eq!(counts.iter().sum::<u64>(), EACH, "{kind} {reason}");
        assert!(counts.len() <= seconds + 3, "{kind} {reason}: {} records in {seconds} s", counts.len());
    }
    let (status, said) = verify(directory.path(), &["audit.jsonl"]);
    assert_eq!(status, Some(0), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_over_a_rate_are_one_record_a_second_for_each_caller() {
    const EACH: u64 = 1_000;
    let directory = tempfile::tempdir().unwrap();
    let (path, settings) = audited(directory.path(), "audit.buffer = 1000\n");
    let caller = |name: &str| {
        let key = hex::encode(sha2::Sha256::digest(format!("key-of-{name}")));
        format!(
            "[[caller]]\nname = \"{name}\"\nkey_sha256 = \"{key}\"\ntenants = [\"10001\"]\nfields = [\"*\"]\n\
             requests_per_second = 1\n"
        )
    };
    let edge =
        Edge::start_with(&format!("{settings}sandbox.enabled = true\n{}{}", caller("hasty"), caller("hurried"))).await;
    let started = Instant::now();
    let mut refused = [0; 2];
    for _ in 0..EACH / 50 {
        for (name, refused) in ["hasty", "hurried"].into_iter().zip(&mut refused) {
            let ask = async |n: u32| {
                let request =
                    edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", format!("key-of-{name}"));
                request.query(&[("tenantId", "10001"), ("customerId", &customer(n % 9))]).send().await.unwrap().status()
            };
            let answers = join_all((0..50).map(ask)).await;
            *refused += answers.iter().filter(|status| status.as_u16() == 429).count() as u64;
        }
    }
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    edge.stop().await;
    let all = records(&path);
    for (name, refused) in ["hasty", "hurried"].into_iter().zip(refused) {
        let lookups = of_type(&all, "lookup");
        let over = lookups.iter().filter(|one| one["caller"] == name && one["reason"] == "rate");
        let counts: Vec<u64> = over.map(|one| one["count"].as_u64().unwrap_or(1)).collect();
        assert!(refused > EACH / 2, "{name}: {refused}");
        assert_eq!(counts.iter().sum::<u64>(), refused, "{name}");
        assert!(counts.len() <= seconds + 3, "{name}: {} records in {seconds} s", counts.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_that_a_caller_repeats_are_counted_beyond_a_hundred() {
    const EACH: u64 = 1_500;
    let directory = tempfile::tempdir().unwrap();
    let (path, settings) = audited(directory.path(), "audit.buffer = 1000\n");
    let edge = Edge::start_with(&settings).await;
    let started = Instant::now();
    let denied = async |n: u64| {
        let form = [("grant_type", "client_credentials"), ("client_id", "demo"), ("client_secret", "demo-key")];
        let form: Vec<_> = form.into_iter().chain([("scope", "tenant:99999")]).collect();
        let token = edge.client.post(edge.url("/oauth/token")).form(&form).send().await.unwrap();
        assert_eq!(token.status(), 400);
        let request = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", "demo-key");
        let customer = customer(u32::try_from(n % 9).unwrap());
        let request = request.query(&[("tenantId", "99999"), ("customerId", customer.as_str())]);
        assert_eq!(request.send().await.unwrap().status(), 403);
    };
    for batch in 0..EACH / 50 {
        join_all((0..50).map(|n| denied(50 * batch + n))).await;
    }
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    edge.stop().await;
    let all = records(&path);
    for (kind, reason) in [("token", "scope"), ("lookup", "tenant")] {
        let such: Vec<&Value> = of_type(&all, kind).into_iter().filter(|one| one["reason"] == reason).collect();
        assert!(such.iter().all(|one| one["caller"] == "demo"));
        let number: u64 = such.iter().map(|one| one["count"].as_u64().unwrap_or(1)).sum();
        assert_eq!(number, EACH, "{kind}");
        assert!(such.len() <= 100 + 11 * (seconds + 3), "{kind}: {} records in {seconds} s", such.len());
        // A common record names no customer that is not that of all.
        assert!(
            such.iter().all(|one| one["count"].as_u64().is_none_or(|number| number < 9 || one.get("key").is_none()))
        );
    }
}

/// The names of the fields in an answer are in its record. A caller that chooses them could write any text there, and a record that is
/// too long for `audit verify`.
#[tokio::test(flavor = "multi_thread")]
async fn requested_fields_write_no_text_of_the_caller_into_the_trail() {
    let directory = tempfile::tempdir().unwrap();
    let (path, settings) = audited(directory.path(), "");
    let edge = Edge::start_with(&settings).await;
    let names = |count: u32| (0..count).map(|n| format!("a{n:05x}")).collect::<Vec<_>>().join(",");
    for (fields, status) in [
        (format!("{},ada@example.com,firstName", names(63)), 400),
        ("+15550199871,firstName".to_owned(), 400),
        (format!("{},firstName", names(140_000)), 400),
        (format!("{},firstName", names(64)), 400),
        (format!("{},firstName", names(63)), 200),
    ] {
        for (path, name, value) in [
            ("/api/v1/profile", "customerId", json!(customer(1))),
            ("/api/v1/profiles", "customerIds", json!([customer(1)])),
        ] {
            let request = edge.client.post(edge.url(path)).header("X-API-Key", "demo-key");
            let order = json!({ "tenantId": "10001", name: value, "fields": fields });
            let answer = looked(request.json(&order).send().await.unwrap()).await;
            assert_eq!(answer.status, status, "{path} {} bytes: {}", fields.len(), answer.text);
        }
    }
    edge.stop().await;
    let all = records(&path);
    let lookups = of_type(&all, "lookup");
    assert_eq!(lookups.iter().map(|one| one["fields"].clone()).collect::<Vec<_>>(), vec![json!(["firstName"]); 2]);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("ada@") && !text.contains("15550199871"));
    let (status, said) = verify(directory.path(), &["audit.jsonl"]);
    assert_eq!(status, Some(0), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_reports_that_earlier_files_of_a_rotated_trail_are_missing() {
    let directory = tempfile::tempdir().unwrap();
    let (path, settings) = audited(directory.path(), "audit.max_bytes = \"64KiB\"\naudit.keep = 2\n");
    let edge = Edge::start_with(&settings).await;
    let files = || {
        let names = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name.strip_prefix("audit.jsonl.").is_some_and(|rest| rest.parse::<u32>().is_ok()));
        names.sort();
        names
    };
    // Until the first two files are gone.
    let one = customer(1);
    eventually("a third rotation", || async {
        join_all((0..100).map(|_| edge.look_up(&one))).await;
        files().first().is_some_and(|oldest| oldest.as_str() > "audit.jsonl.000002").then_some(())
    })
    .await;
    edge.stop().await;
    let mut given = files();
    given.push("audit.jsonl".to_owned());
    let first = records(&directory.path().join(&given[0]))[0]["seq"].as_u64().unwrap();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let (status, said) = verify(directory.path(), &given);
    assert_eq!(status, Some(0), "{said}");
    let missing = format!(
        "earlier files are missing (audit.keep removed them, or they were not given): records 1 to {}",
        first - 1
    );
    assert!(first > 1 && said.contains(&missing), "{said}");
    let (status, said) = verify(directory.path(), &[&["--json"], given.as_slice()].concat());
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((status, &report["heads"][0]["first"]), (Some(0), &json!(first)), "{said}");
    assert!(path.exists());
}

/// Sends a command and disconnects at once.
async fn send_and_disconnect(address: SocketAddr, path: &str, order: &Value) {
    let body = order.to_string();
    let head = format!(
        "POST /admin/{path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_completes_and_is_recorded_after_its_client_disconnects() {
    let directory = tempfile::tempdir().unwrap();
    let (path, settings) = audited(directory.path(), "");
    let edge = Edge::start_with(&settings).await;
    for n in 0..20 {
        edge.post_event(&flat(&customer(1 + n))).await;
    }
    records_when(&path, "the records of twenty events", |all| of_type(all, "event").len() == 20).await;
    let target = json!({ "tenantId": "10001", "customerId": customer(1) });
    for _ in 0..20 {
        send_and_disconnect(edge.admin, "invalidate", &target).await;
    }
    edge.client.post(format!("http://{}/admin/inspect", edge.admin)).json(&target).send().await.unwrap();
    // Some clients disconnect before their command starts; each command that starts is completed and recorded.
    let counted = |all: &[Value], action: &str| {
        of_type(all, "operator").iter().filter(|operation| operation["action"] == action).count()
    };
    let is_whole = |all: &[Value]| {
        let invalidated = counted(all, "invalidate");
        counted(all, "inspect") == 1 && invalidated > 0 && invalidated + 20 == of_type(all, "event").len()
    };
    records_when(&path, "a record of each command", is_whole).await;
    eventually("a replay ends after its client disconnects", || async {
        send_and_disconnect(edge.admin, "replay", &json!({ "since": "1h", "rate": 1 })).await;
        let all = records(&path);
        let of = |action: &str, outcome: &str| -> Vec<Value> {
            let is_it = |one: &&&Value| one["action"] == action && one["outcome"] == outcome;
            of_type(&all, "operator").iter().filter(is_it).map(|operation| operation["replay"].clone()).collect()
        };
        let ended = of("replay.ended", "stopped");
        (!ended.is_empty() && ended == of("replay", "ok")).then_some(())
    })
    .await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_denied_lookups_are_recorded_when_so_configured() {
    let directory = tempfile::tempdir().unwrap();
    let (path, settings) = audited(directory.path(), "");
    let edge = Edge::start_with(&settings.replace("\"all\"", "\"denied\"")).await;
    assert_eq!(edge.look_up(&customer(1)).await.status, 200);
    edge.client.get(edge.url("/api/v1/profile")).send().await.unwrap();
    edge.stop().await;
    let all = records(&path);
    let lookups = of_type(&all, "lookup");
    assert_eq!((lookups.len(), &lookups[0]["decision"]), (1, &json!("denied")));
}
