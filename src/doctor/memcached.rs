//! Memcached: how its servers are set up.

use crate::config::Config;
use crate::store::memcached::survey::{ServerState, survey};

use super::{ANSWER, Finding};

/// The share of a server's memory above which it soon evicts, in percent.
const NEARLY_FULL: u64 = 90;

/// Examines every server.
pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let found = survey(&config.store.memcached, ANSWER).await;
    found.into_iter().flat_map(|(server, found)| judge(&format!("memcached:{server}"), found)).collect()
}

fn judge(subject: &str, found: Result<ServerState, String>) -> Vec<Finding> {
    let state = match found {
        Ok(state) => state,
        Err(detail) => {
            let advice = match detail.as_str() {
                text if text.contains("certificate") => {
                    "check store.memcached.tls.ca, and the name in the server's certificate"
                }
                text if text.contains("authenticat") || text.contains("does not accept the user") => {
                    "check store.memcached.username and the password in store.memcached.password_file"
                }
                text if text.contains("disable-cas") => "start the server without --disable-cas",
                _ => {
                    "check store.memcached.servers, that the server runs, and that nothing between here and there blocks its port"
                }
            };
            return vec![Finding::failed("memcached.connection", subject, detail, advice)];
        }
    };
    let used = state.used.saturating_mul(100).checked_div(state.max_memory).unwrap_or(0);
    let detail = format!("{used} % of its memory is in use, {} keys were evicted since its start", state.evicted);
    let memory = if state.evicted > 0 || used >= NEARLY_FULL {
        let advice = "give the server more memory (-m), or add a server: an evicted fence costs labels and tombstones";
        Finding::warning("memcached.memory", subject, detail, advice)
    } else {
        Finding::ok("memcached.memory", subject, detail)
    };
    vec![Finding::ok("memcached.connection", subject, format!("version {}", state.version)), memory]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn verdict(state: ServerState) -> Verdict {
        judge("memcached:a:1", Ok(state)).into_iter().map(|finding| finding.verdict).max().unwrap()
    }

    #[test]
    fn evictions_and_a_full_server_are_warned_of() {
        let state = ServerState { version: "1.6.18".to_owned(), used: 10, max_memory: 100, evicted: 0 };
        assert_eq!(verdict(state.clone()), Verdict::Ok);
        assert_eq!(verdict(ServerState { evicted: 1, ..state.clone() }), Verdict::Warning);
        assert_eq!(verdict(ServerState { used: 90, ..state }), Verdict::Warning);
    }

    #[test]
    fn each_reason_has_its_advice() {
        for (reason, option) in [
            ("invalid peer certificate: UnknownIssuer", "tls.ca"),
            ("the server does not understand a command: CLIENT_ERROR authentication failure", "password_file"),
            ("the server does not understand a command: CLIENT_ERROR unauthenticated", "password_file"),
            ("the server does not compare versions (--disable-cas, or before 1.6)", "--disable-cas"),
            ("Connection refused (os error 111)", "servers"),
        ] {
            let finding = judge("memcached:a:1", Err(reason.to_owned())).remove(0);
            assert!(finding.verdict == Verdict::Failed && finding.advice.unwrap().contains(option), "{reason}");
        }
    }
}
