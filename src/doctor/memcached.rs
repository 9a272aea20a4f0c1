//! Memcached: how its servers are set up.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::config::Config;
use crate::store::memcached::survey::{ServerState, survey};

use super::{ANSWER, Finding};

/// The share of a server's memory above which it soon evicts, in percent.
const NEARLY_FULL: u64 = 90;

/// The most addresses that a finding shows.
const MOST_SHOWN: usize = 4;

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
    vec![connection(subject, &state), memory]
}

/// Judges the name of a server that answers.
fn connection(subject: &str, state: &ServerState) -> Finding {
    const CHECK: &str = "memcached.connection";
    // One server may have an address of each family.
    let [v4, v6]: [BTreeSet<IpAddr>; 2] =
        [true, false].map(|v4| state.addresses.iter().copied().filter(|address| address.is_ipv4() == v4).collect());
    let Some(several) = [v4, v6].into_iter().find(|family| family.len() > 1) else {
        return Finding::ok(CHECK, subject, format!("version {}", state.version));
    };
    let shown: Vec<String> = several.iter().take(MOST_SHOWN).map(ToString::to_string).collect();
    let detail = format!("the name leads to {} addresses: {}", several.len(), shown.join(", "));
    let advice = "name one server in each entry of store.memcached.servers: where a name leads to several, an event may take effect at \
                  one and lookups read from another";
    Finding::warning(CHECK, subject, detail, advice)
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
        let state = ServerState { used: 10, max_memory: 100, ..ServerState::default() };
        assert_eq!(verdict(state.clone()), Verdict::Ok);
        assert_eq!(verdict(ServerState { evicted: 1, ..state.clone() }), Verdict::Warning);
        assert_eq!(verdict(ServerState { used: 90, ..state }), Verdict::Warning);
    }

    #[test]
    fn a_name_that_leads_to_several_servers_is_warned_of() {
        let of = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            verdict(ServerState { addresses, ..ServerState::default() })
        };
        for one in [&["127.0.0.1", "::1", "127.0.0.1"][..], &["10.0.0.1"], &[]] {
            assert_eq!(of(one), Verdict::Ok, "{one:?}");
        }
        for several in [&["10.0.0.1", "10.0.0.2"][..], &["10.0.0.1", "fd00::1", "fd00::2"]] {
            assert_eq!(of(several), Verdict::Warning, "{several:?}");
        }
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
