//! The audit on real files and on failing sinks, without the rest of the process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde_json::Value;

use crate::clock::SystemClock;
use crate::domain::{Digest, Event, EventId, Redelivery, ReplayId, Timestamp};
use crate::metrics::Metrics;
use crate::shutdown::{Controller, Shutdown};

use super::chain::{Chain, Hasher};
use super::config::{Config, Fsync, Lookups, SinkKind};
use super::open::{OpenSink, open, start};
use super::recent_events::RecentEvents;
use super::sinks::{PartialWrite, Sink};
use super::system_record::{ProcessEvent, SystemRecord};
use super::verify::{self, BadLine, Error, RecordFault, Verifier};
use super::*;

mod form;

const KEY: [u8; 32] = [7; 32];

fn config(path: &Path) -> Config {
    Config {
        sink: SinkKind::File,
        path: path.to_owned(),
        lookups: Lookups::All,
        key: None,
        strict: false,
        buffer: 16,
        fsync: Fsync::Always,
        max_bytes: bytesize::ByteSize::gib(1),
        keep: 0,
    }
}

fn event(n: u64) -> Arc<Event> {
    Arc::new(Event {
        identity: Digest::from_bytes(u128::from(n).to_be_bytes()),
        id: format!("event-{n}").parse::<EventId>().unwrap(),
        ..Event::example()
    })
}

fn applied(n: u64, verdict: EventEffect) -> AuditRecord {
    AuditRecord::Event(EventRecord { event: event(n), verdict })
}

/// A running audit and the controller that stops it.
struct RunningAudit {
    audit: Audit,
    tasks: Controller,
    metrics: Arc<Metrics>,
}

impl RunningAudit {
    fn open(config: &Config) -> Result<Self, super::open::Error> {
        let (tasks, shutdown) = Shutdown::new();
        let metrics = Metrics::new();
        let audit = open(config, &SystemClock::shared(), &metrics, &shutdown)?;
        Ok(Self { audit, tasks, metrics })
    }

    fn onto(sink: impl Sink + 'static, config: &Config) -> Self {
        let (tasks, shutdown) = Shutdown::new();
        let metrics = Metrics::new();
        let open = OpenSink {
            sink: Box::new(sink),
            chain: Chain::start(Hasher::Sha256),
            first: vec![SystemRecord::began("sha256", None)],
            recent: RecentEvents::default(),
        };
        let audit = start(config, open, &SystemClock::shared(), &metrics, &shutdown).unwrap();
        Self { audit, tasks, metrics }
    }

    async fn close(self) {
        self.audit.close();
        assert!(self.tasks.drain(Duration::from_secs(60)).await, "the writer ends");
    }

    fn counted(&self, outcome: &str) -> u64 {
        let series = format!("profile_edge_audit_records_total{{outcome=\"{outcome}\"}} ");
        let text = self.metrics.render();
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }
}

fn records(text: &[u8]) -> Vec<Value> {
    text.split_inclusive(|b| *b == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect()
}

fn of_type(records: &[Value], kind: &str) -> Vec<Value> {
    records.iter().filter(|record| record["type"] == kind).cloned().collect()
}

fn full_files(path: &Path) -> Vec<PathBuf> {
    let directory = std::fs::read_dir(path.parent().unwrap()).unwrap();
    let mut found: Vec<PathBuf> = directory.map(|entry| entry.unwrap().path()).collect();
    found.retain(|found| found.extension().is_some_and(|number| number.len() == 6 && number != "jsonl"));
    found.sort();
    found
}

#[tokio::test]
async fn the_chain_continues_across_restarts_and_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/audit.jsonl");
    let config = Config { max_bytes: bytesize::ByteSize::b(2_000), ..config(&path) };
    for start in 0..3 {
        let running = RunningAudit::open(&config).unwrap();
        for n in 0..20 {
            running.audit.record_and_wait(applied(100 * start + n, EventEffect::Applied)).await.unwrap();
        }
        running.close().await;
    }
    let mut files = full_files(&path);
    assert!(files.len() > 4, "{files:?}");
    files.push(path.clone());
    let report = verify::files(&files, Hasher::Sha256, None).unwrap();
    let text: Vec<u8> = files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
    let all = records(&text);
    assert_eq!((report.heads.len(), report.records), (1, all.len() as u64));
    assert_eq!(of_type(&all, "event").len(), 60);
    assert_eq!(of_type(&all, "process").len(), 6);
    // Each later file names the previous one, and can be checked without it.
    verify::files(&files[2..], Hasher::Sha256, None).unwrap();
    let missing = verify::files(&[&files[..2], &files[3..]].concat(), Hasher::Sha256, None);
    assert!(
        matches!(missing, Err(Error::Bad(BadLine { line: 1, fault: RecordFault::OutOfOrder { .. }, .. }))),
        "{missing:?}"
    );
    use std::os::unix::fs::PermissionsExt;
    for file in &files {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
}

#[tokio::test]
async fn only_the_newest_full_files_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let config = Config { max_bytes: bytesize::ByteSize::b(1_000), keep: 2, ..config(&path) };
    let running = RunningAudit::open(&config).unwrap();
    for n in 0..30 {
        running.audit.record_and_wait(applied(n, EventEffect::Applied)).await.unwrap();
    }
    running.close().await;
    let full = full_files(&path);
    assert_eq!(full.len(), 2, "{full:?}");
    verify::files(&[full, vec![path]].concat(), Hasher::Sha256, None).unwrap();
}

#[tokio::test]
async fn an_incomplete_last_record_is_truncated_and_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let config = config(&path);
    let running = RunningAudit::open(&config).unwrap();
    running.audit.record_and_wait(applied(1, EventEffect::Applied)).await.unwrap();
    running.close().await;
    let mut text = std::fs::read(&path).unwrap();
    let half = b"{\"v\":1,\"chain\":\"half";
    text.extend_from_slice(half);
    std::fs::write(&path, &text).unwrap();
    let torn = verify::files(std::slice::from_ref(&path), Hasher::Sha256, None);
    assert!(matches!(torn, Err(Error::Bad(BadLine { fault: RecordFault::CutOff, .. }))), "{torn:?}");

    RunningAudit::open(&config).unwrap().close().await;
    verify::files(std::slice::from_ref(&path), Hasher::Sha256, None).unwrap();
    let cut = of_type(&records(&std::fs::read(&path).unwrap()), "cut");
    assert_eq!((cut.len(), &cut[0]["bytes"]), (1, &Value::from(half.len())));
}

#[tokio::test]
async fn the_chain_continues_after_a_crash_between_two_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let config = config(&path);
    let running = RunningAudit::open(&config).unwrap();
    running.audit.record_and_wait(applied(1, EventEffect::Applied)).await.unwrap();
    running.close().await;
    let full = directory.path().join("audit.jsonl.000001");
    std::fs::rename(&path, &full).unwrap();

    let running = RunningAudit::open(&config).unwrap();
    running.audit.record_and_wait(applied(1, EventEffect::Duplicate)).await.unwrap();
    running.close().await;
    assert_eq!(
        of_type(&records(&std::fs::read(&path).unwrap()), "event").len(),
        0,
        "the full file already holds the record"
    );
    let report = verify::files(&[full, path], Hasher::Sha256, None).unwrap();
    assert_eq!(report.heads.len(), 1);
}

#[tokio::test]
async fn a_different_key_sets_the_file_aside_and_starts_a_new_chain() {
    use base64::Engine;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    RunningAudit::open(&config(&path)).unwrap().close().await;
    let key = base64::engine::general_purpose::STANDARD.encode(KEY);
    let keyed = Config { key: Some(crate::domain::Secret::new(key)), ..config(&path) };
    RunningAudit::open(&keyed).unwrap().close().await;
    let full = directory.path().join("audit.jsonl.000001");
    verify::files(std::slice::from_ref(&full), Hasher::Sha256, None).unwrap();
    verify::files(std::slice::from_ref(&path), Hasher::new(Some(&KEY)), None).unwrap();
    let other = verify::files(std::slice::from_ref(&path), Hasher::new(Some(&[8; 32])), None);
    assert!(matches!(other, Err(Error::Bad(BadLine { line: 1, fault: RecordFault::Changed, .. }))), "{other:?}");
    let first = &records(&std::fs::read(&path).unwrap())[0];
    assert_eq!((&first["mistrusted"], &first["seq"]), (&Value::from("audit.jsonl.000001"), &Value::from(1)));
}

#[tokio::test]
async fn a_second_process_on_the_same_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&directory.path().join("audit.jsonl"));
    let first = RunningAudit::open(&config).unwrap();
    let refused = RunningAudit::open(&config).map(drop).unwrap_err().to_string();
    assert!(refused.contains("another process uses") && refused.contains("audit.jsonl"), "{refused}");
    first.close().await;
    RunningAudit::open(&config).unwrap().close().await;
}

#[tokio::test]
async fn a_redelivered_event_is_recorded_once_for_each_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let again = |again, verdict| {
        let event = Arc::new(Event { again: Some(again), ..Event::clone(&event(1)) });
        AuditRecord::Event(EventRecord { event, verdict })
    };
    let (first, second) = (Redelivery::Replayed(ReplayId::fresh()), Redelivery::Replayed(ReplayId::fresh()));
    let (effect, duplicate) = (EventEffect::Applied, EventEffect::Duplicate);
    for restart in 0..2 {
        let running = RunningAudit::open(&config(&path)).unwrap();
        let mut records = vec![
            // The store still has its effect.
            again(Redelivery::Restored, duplicate),
            again(first, if restart == 0 { effect } else { duplicate }),
            again(first, duplicate),
            again(second, duplicate),
            again(Redelivery::Redriven, duplicate),
        ];
        if restart == 0 {
            records.insert(0, applied(1, effect));
            records.push(again(Redelivery::Restored, effect));
        }
        for record in records {
            running.audit.record_and_wait(record).await.unwrap();
        }
        running.close().await;
    }
    let events = of_type(&records(&std::fs::read(&path).unwrap()), "event");
    let members = |event: &Value| {
        let of = |name: &str| event.get(name).cloned().unwrap_or(Value::Null);
        (of("verdict"), of("replayed"), of("replay"))
    };
    let id = |again| match again {
        Redelivery::Replayed(id) => Value::from(id.to_string()),
        Redelivery::Restored | Redelivery::Redriven => Value::Null,
    };
    let expected = [
        ("applied".into(), Value::Null, Value::Null),
        ("applied".into(), true.into(), id(first)),
        ("recovered".into(), true.into(), id(second)),
        ("applied".into(), true.into(), Value::Null),
    ];
    assert_eq!(events.iter().map(members).collect::<Vec<_>>(), expected, "{events:#?}");
}

#[tokio::test]
async fn a_duplicate_event_is_recorded_only_if_no_record_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&directory.path().join("audit.jsonl"));
    let running = RunningAudit::open(&config).unwrap();
    running.audit.record_and_wait(applied(1, EventEffect::Applied)).await.unwrap();
    for _ in 0..3 {
        running.audit.record_and_wait(applied(1, EventEffect::Duplicate)).await.unwrap();
        running.audit.record_and_wait(applied(1, EventEffect::Applied)).await.unwrap();
        running.audit.record_and_wait(applied(2, EventEffect::Duplicate)).await.unwrap();
    }
    running.close().await;
    let running = RunningAudit::open(&config).unwrap();
    for n in 1..=3 {
        running.audit.record_and_wait(applied(n, EventEffect::Duplicate)).await.unwrap();
    }
    running.close().await;
    let events = of_type(&records(&std::fs::read(&config.path).unwrap()), "event");
    let verdicts: Vec<(&str, &str)> =
        events.iter().map(|event| (event["event"].as_str().unwrap(), event["verdict"].as_str().unwrap())).collect();
    assert_eq!(verdicts, [("event-1", "applied"), ("event-2", "recovered"), ("event-3", "recovered")]);
}

/// A sink that can fail like a full disk, in the middle of a record.
#[derive(Clone, Debug, Default)]
struct FullDisk {
    full: Arc<AtomicBool>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Sink for FullDisk {
    fn write(&mut self, records: &[u8]) -> Result<(), PartialWrite> {
        let mut disk = self.written.lock();
        if self.full.load(Ordering::Acquire) {
            let written = records.len().min(10);
            disk.extend_from_slice(&records[..written]);
            return Err(PartialWrite { written, error: io::ErrorKind::StorageFull.into() });
        }
        disk.extend_from_slice(records);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn is_full(&self) -> bool {
        false
    }

    fn rotate(&mut self) -> io::Result<String> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Waits, for a bounded real time, until a condition holds.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what}: not within a minute");
}

#[tokio::test]
async fn a_full_disk_drops_and_counts_records_and_reports_them_later() {
    let disk = FullDisk::default();
    let running = RunningAudit::onto(disk.clone(), &config(Path::new("unused")));
    running.audit.record_and_wait(applied(0, EventEffect::Applied)).await.unwrap();
    disk.full.store(true, Ordering::Release);
    running.audit.record(applied(1, EventEffect::Applied));
    until("the failure is noticed", || !running.audit.is_working()).await;
    for n in 2..100 {
        running.audit.record_and_wait(applied(n, EventEffect::Applied)).await.unwrap();
    }
    let dropped = running.counted("dropped");
    assert!(dropped > 0, "the buffer holds 16");
    disk.full.store(false, Ordering::Release);
    until("it works again", || running.audit.is_working()).await;
    running.audit.record_and_wait(applied(100, EventEffect::Applied)).await.unwrap();
    running.close().await;

    let text = disk.written.lock().clone();
    let mut verifier = Verifier::new(Hasher::Sha256, None);
    text.split_inclusive(|b| *b == b'\n').for_each(|line| verifier.line(line).unwrap());
    let all = records(&text);
    let reports = of_type(&all, "dropped");
    let reported: u64 = reports.iter().map(|report| report["records"].as_u64().unwrap()).sum();
    assert_eq!(reported, dropped);
    assert_eq!(of_type(&all, "event").len() as u64, 101 - dropped, "nothing else is missing");
}

#[tokio::test]
async fn in_strict_mode_a_full_disk_refuses_and_drops_nothing() {
    let disk = FullDisk::default();
    let running = RunningAudit::onto(disk.clone(), &Config { strict: true, ..config(Path::new("unused")) });
    running.audit.record_and_wait(applied(0, EventEffect::Applied)).await.unwrap();
    disk.full.store(true, Ordering::Release);
    assert_eq!(running.audit.record_and_wait(applied(1, EventEffect::Applied)).await, Err(Unrecorded));
    for n in 2..100 {
        assert_eq!(running.audit.record_and_wait(applied(n, EventEffect::Applied)).await, Err(Unrecorded));
    }
    assert_eq!((running.counted("dropped"), running.counted("refused")), (0, 99));
    disk.full.store(false, Ordering::Release);
    until("it works again", || running.audit.is_working()).await;
    // The event is redelivered; its record, which was already in the batch, is not written twice.
    running.audit.record_and_wait(applied(1, EventEffect::Duplicate)).await.unwrap();
    running.close().await;
    let events = of_type(&records(&disk.written.lock()), "event");
    assert_eq!(events.iter().filter(|event| event["event"] == "event-1").count(), 1);
}
