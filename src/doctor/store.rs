//! Redis: how its servers are set up.

use std::time::Duration;

use crate::clock::SharedClock;
use crate::config::Config;
use crate::store;
use crate::store::open::StoreKind;
use crate::store::redis::survey::{NodeState, Survey, survey};

use super::{ANSWER, Finding, memcached};

/// The version that the tests run on.
const TESTED: (u32, u32) = (7, 0);

/// How far the clocks may differ before answers have a wrong age, and before tombstones count as invalid.
const CLOCK_WARNING_MS: i64 = 2_000;
const CLOCK_FAILURE_MS: i64 = 60_000;

/// The share of `store.timeout` that a round trip may take.
const SLOW_SHARE: u32 = 4;

/// Examines the store.
pub(super) async fn examine(config: &Config, clock: &SharedClock) -> Vec<Finding> {
    if !config.roles.use_the_store() {
        return Vec::new();
    }
    match config.store.kind {
        StoreKind::Embedded => {
            return vec![Finding::ok("store", "embedded", "the memory of the process; nothing to check")];
        }
        StoreKind::Memcached => return memcached::examine(config).await,
        StoreKind::Redis => {}
    }
    match survey(&config.store.redis, ANSWER, clock).await {
        Ok(found) => judge(&found, config.store.redis.min_replicas, config.store.timeout),
        Err(error) => vec![unreachable(&error)],
    }
}

/// What to do about a replica.
const PRIMARY: &str = "point store.redis.url at the primary, or use mode = \"sentinel\" or \"cluster\"";

fn unreachable(error: &store::Error) -> Finding {
    let (detail, subject) = (error.to_string(), "redis");
    if detail.contains("READONLY") {
        return Finding::failed("redis.role", subject, detail, PRIMARY);
    }
    let advice = match error {
        store::Error::Rejected { .. } => {
            "Redis refuses the user or a command: check user, password and ACL; the service needs every key under cust:, \
             fence:, seen: and lock:, scripts, PUBLISH and SUBSCRIBE, and the doctor INFO and TIME"
        }
        _ if detail.contains("certificate") => "check store.redis.tls.ca, and the name in the server's certificate",
        _ => "check store.redis.url, that the server runs, and that nothing between here and there blocks its port",
    };
    Finding::failed("redis.connection", subject, detail, advice)
}

fn judge(found: &Survey, min_replicas: u32, timeout: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in &found.nodes {
        let subject = format!("redis:{}", node.port);
        findings.push(version(&subject, &node.version));
        findings.push(role(&subject, node));
        findings.push(eviction(&subject, node));
        findings.push(persistence(&subject, node, found.has_snapshots));
        findings.push(replicas(&subject, node, min_replicas));
    }
    findings.push(clock_of(found.clock_offset_ms));
    findings.push(round_trip(found.round_trip, timeout));
    findings
}

fn version(subject: &str, version: &str) -> Finding {
    const CHECK: &str = "redis.version";
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let found = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if found < TESTED {
        let advice = format!("upgrade to {}.{} or newer, which the tests run on", TESTED.0, TESTED.1);
        return Finding::warning(CHECK, subject, format!("version {version}"), advice);
    }
    Finding::ok(CHECK, subject, format!("version {version}"))
}

fn role(subject: &str, node: &NodeState) -> Finding {
    const CHECK: &str = "redis.role";
    if !node.is_primary {
        return Finding::failed(CHECK, subject, "a replica, which accepts no writes", PRIMARY);
    }
    if node.is_loading {
        return Finding::warning(CHECK, subject, "it still loads its data", "wait, then run the doctor again");
    }
    Finding::ok(CHECK, subject, "primary")
}

fn eviction(subject: &str, node: &NodeState) -> Finding {
    const CHECK: &str = "redis.eviction";
    let NodeState { used, max_memory, policy, evicted, .. } = node;
    let advice = "raise maxmemory (CONFIG SET maxmemory), or shorten consumer.dedup_window: an evicted fence forgets what \
                  events announced";
    if *evicted > 0 {
        return Finding::warning(CHECK, subject, format!("{evicted} keys were evicted since its start"), advice);
    }
    if *max_memory == 0 {
        return Finding::ok(CHECK, subject, "no maxmemory, nothing was evicted");
    }
    let share = used.saturating_mul(100) / max_memory;
    if policy == "noeviction" && share >= 100 {
        let advice = "raise maxmemory: nothing can be stored, and every lookup asks Genesys";
        return Finding::failed(CHECK, subject, "maxmemory is reached and nothing may be evicted", advice);
    }
    if policy.starts_with("allkeys") || policy == "volatile-random" {
        let detail = format!("maxmemory-policy is {policy}: under pressure fences go before old profiles");
        return Finding::warning(CHECK, subject, detail, "set maxmemory-policy to volatile-ttl");
    }
    if share >= 80 {
        return Finding::warning(CHECK, subject, format!("{share} % of maxmemory is used"), advice);
    }
    Finding::ok(CHECK, subject, format!("{share} % of maxmemory is used, policy {policy}, nothing was evicted"))
}

fn persistence(subject: &str, node: &NodeState, has_snapshots: Option<bool>) -> Finding {
    const CHECK: &str = "redis.persistence";
    if !node.writes_to_disk {
        let advice = "look at the disk and the log of Redis: it may refuse writes until a write to disk succeeds";
        return Finding::failed(CHECK, subject, "its last write to disk failed", advice);
    }
    match (node.has_append_only_file, has_snapshots) {
        (true, _) => Finding::ok(CHECK, subject, "append-only file"),
        (false, Some(true)) => Finding::ok(CHECK, subject, "snapshots; events since the last one are restored"),
        (false, None) => Finding::ok(CHECK, subject, "no append-only file; CONFIG GET is not allowed"),
        (false, Some(false)) => Finding::warning(
            CHECK,
            subject,
            "neither append-only file nor snapshots: a restart loses all entries, tombstones included",
            "set appendonly yes; until then the journal restores what it still holds",
        ),
    }
}

fn replicas(subject: &str, node: &NodeState, min_replicas: u32) -> Finding {
    const CHECK: &str = "redis.replicas";
    let connected = node.replicas;
    if connected < u64::from(min_replicas) {
        let detail = format!("{connected} replicas are connected, store.redis.min_replicas is {min_replicas}");
        let advice = "connect the replicas: until then no event is acknowledged";
        return Finding::failed(CHECK, subject, detail, advice);
    }
    Finding::ok(CHECK, subject, format!("{connected} connected, {min_replicas} must confirm"))
}

fn clock_of(offset_ms: i64) -> Finding {
    const CHECK: &str = "redis.clock";
    let detail = format!("{:.1} s from the clock of this machine", offset_ms as f64 / 1_000.0);
    let advice = "synchronise the clocks of this machine and of Redis (NTP)";
    match offset_ms.abs() {
        CLOCK_FAILURE_MS.. => Finding::failed(CHECK, "redis", detail, advice),
        CLOCK_WARNING_MS.. => Finding::warning(CHECK, "redis", detail, advice),
        _ => Finding::ok(CHECK, "redis", detail),
    }
}

fn round_trip(round_trip: Duration, timeout: Duration) -> Finding {
    const CHECK: &str = "redis.latency";
    let detail = format!("an empty command takes {:.1} ms", round_trip.as_secs_f64() * 1_000.0);
    if round_trip * SLOW_SHARE > timeout {
        let advice = "run Redis closer to this process, or look for what keeps it busy (SLOWLOG GET)";
        return Finding::warning(CHECK, "redis", detail, advice);
    }
    Finding::ok(CHECK, "redis", detail)
}

#[cfg(test)]
mod tests {
    use super::super::{Verdict, worst};
    use super::*;

    fn node() -> NodeState {
        NodeState {
            port: "6379".to_owned(),
            version: "7.0.15".to_owned(),
            is_primary: true,
            policy: "noeviction".to_owned(),
            has_append_only_file: true,
            writes_to_disk: true,
            ..NodeState::default()
        }
    }

    fn findings(edit: impl FnOnce(&mut Survey)) -> Vec<Finding> {
        let (clock_offset_ms, round_trip) = (0, Duration::from_millis(1));
        let mut survey = Survey { nodes: vec![node()], has_snapshots: Some(false), clock_offset_ms, round_trip };
        edit(&mut survey);
        judge(&survey, 0, Duration::from_millis(250))
    }

    #[test]
    fn each_fault_of_redis_is_named_alone() {
        type Edit = fn(&mut Survey);
        let faults: [(Edit, &str, Verdict); 11] = [
            (|found| found.nodes[0].version = "6.2.4".to_owned(), "redis.version", Verdict::Warning),
            (|found| found.nodes[0].is_primary = false, "redis.role", Verdict::Failed),
            (|found| found.nodes[0].is_loading = true, "redis.role", Verdict::Warning),
            (|found| found.nodes[0].evicted = 3, "redis.eviction", Verdict::Warning),
            (|found| (found.nodes[0].used, found.nodes[0].max_memory) = (10, 10), "redis.eviction", Verdict::Failed),
            (|found| (found.nodes[0].used, found.nodes[0].max_memory) = (9, 10), "redis.eviction", Verdict::Warning),
            (|found| found.nodes[0].writes_to_disk = false, "redis.persistence", Verdict::Failed),
            (|found| found.nodes[0].has_append_only_file = false, "redis.persistence", Verdict::Warning),
            (|found| found.clock_offset_ms = -600_000, "redis.clock", Verdict::Failed),
            (|found| found.clock_offset_ms = 3_000, "redis.clock", Verdict::Warning),
            (|found| found.round_trip = Duration::from_millis(80), "redis.latency", Verdict::Warning),
        ];
        assert_eq!(worst(&findings(|_| ())), Verdict::Ok);
        for (edit, check, verdict) in faults {
            let found = findings(edit);
            let wrong: Vec<_> = found.iter().filter(|finding| finding.verdict != Verdict::Ok).collect();
            assert_eq!((wrong.len(), wrong[0].check, wrong[0].verdict), (1, check, verdict), "{found:#?}");
        }
    }
}
