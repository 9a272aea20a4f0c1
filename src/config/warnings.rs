//! What can be used, and is probably a mistake.

use std::collections::HashSet;

use bytesize::ByteSize;

use crate::queue::open::QueueKind;
use crate::store::open::StoreKind;

use super::nearest::nearest;
use super::{Config, DEFAULTS, ENV_PREFIX, KeyScheme, contact};

/// What the files of a queue on the disk take at least.
const LEAST_FILES: ByteSize = ByteSize::mib(4);

/// What all our environment variables begin with.
const OURS: &str = "PROFILE_EDGE_";

/// Variables that are not options of the file. A name that ends in `_` is a prefix.
pub const UNPREFIXED: [&str; 9] = [
    "PROFILE_EDGE_ADMIN_KEY",
    "PROFILE_EDGE_CALLER_KEY",
    "PROFILE_EDGE_COMMIT",
    "PROFILE_EDGE_CONFIG",
    "PROFILE_EDGE_FAULTS",
    "PROFILE_EDGE_MODEL",
    "PROFILE_EDGE_ORACLE_",
    "PROFILE_EDGE_TEST_",
    "PROFILE_EDGE_WEBHOOK_KEY",
];

impl Config {
    /// Returns a warning for every setting that can be used, but not for what its author expects of it.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.keys.scheme == KeyScheme::Sha256 {
            found.push(
                "keys.scheme is \"sha256\": anyone who can read the store or the queue can find out by trial whether \
                 a person is a customer; \"hmac-sha256\" with a keys.secret prevents it (PCI DSS 3.5.1.1)"
                    .to_owned(),
            );
        }
        self.unconnected_processes(&mut found);
        self.unconnected_tenants(&mut found);
        if self.roles.ingest && self.queue.kind == QueueKind::Amqp && self.queue.outbox.is_abandoned() {
            found.push(format!(
                "queue.outbox.enabled is false, and there is an outbox in {}: events in it are not handed on; delete the \
                 directory if it was drained",
                self.queue.outbox.path.display()
            ));
        }
        self.small_queues(&mut found);
        self.open_sandbox(&mut found);
        self.short_secrets(&mut found);
        for (index, caller) in self.callers.iter().enumerate() {
            if caller.key_sha256.bytes().all(|digit| digit == b'0') {
                found.push(format!(
                    "caller[{index}].key_sha256 is a placeholder, so caller \"{}\" is refused: set it to the output of \
                     `profile-edge hash-key`",
                    caller.name
                ));
            }
            for field in caller.fields.iter().filter(|field| !contact::has_field(field)) {
                let near = contact::nearest_field(field).map(|near| format!("; the nearest is \"{near}\""));
                found.push(format!(
                    "caller[{index}].fields: no Genesys contact has the field \"{field}\", so caller \"{}\" never \
                     gets it{}",
                    caller.name,
                    near.unwrap_or_default()
                ));
            }
        }
        found
    }

    /// Finds roles and adapters that leave out what other processes need.
    fn unconnected_processes(&self, found: &mut Vec<String>) {
        let roles = self.roles;
        if self.store.kind == StoreKind::Embedded && self.queue.kind == QueueKind::Amqp {
            found.push(
                "store.kind is \"embedded\" and queue.kind is \"amqp\": each event reaches one process, and evicts in the memory \
                 of that one only; run exactly one process, or set store.kind = \"redis\""
                    .to_owned(),
            );
        }
        if self.store.kind == StoreKind::Embedded && roles.lookup && !roles.consumer {
            found.push(
                "roles has \"lookup\" without \"consumer\", and store.kind is \"embedded\", the memory of one process: no event \
                 evicts what this process caches, which is outdated until its ttl; set store.kind = \"redis\""
                    .to_owned(),
            );
        }
        if self.store.kind == StoreKind::Embedded && roles.consumer && !roles.lookup {
            found.push(
                "roles has \"consumer\" without \"lookup\", and store.kind is \"embedded\": events evict in the memory of this \
                 process, which nobody reads; set store.kind = \"redis\""
                    .to_owned(),
            );
        }
        if self.queue.kind == QueueKind::Embedded && roles.ingest != roles.consumer {
            found.push(
                "roles has one of \"ingest\" and \"consumer\", and queue.kind is \"embedded\", which one process uses alone: no \
                 event gets from one to the other; run both in one process, or set queue.kind = \"amqp\""
                    .to_owned(),
            );
        }
    }

    /// Finds limits of queues on the disk that are below what their files take.
    fn small_queues(&self, found: &mut Vec<String>) {
        let (queue, outbox) = (self.queue.embedded.max_bytes, self.queue.outbox.max_bytes);
        for (name, is_used, size) in [
            ("queue.embedded", self.queue.kind == QueueKind::Embedded, queue),
            ("queue.outbox", self.queue.outbox.enabled, outbox),
        ] {
            if is_used && size < LEAST_FILES {
                found.push(format!(
                    "{name}.max_bytes is below 4MiB: events are refused at {} bytes of them, and the files take up to 4MiB",
                    size.as_u64()
                ));
            }
        }
    }

    /// Finds a sandbox that other hosts can reach.
    fn open_sandbox(&self, found: &mut Vec<String>) {
        if self.runs_sandbox() && !self.sandbox.listen.ip().is_loopback() {
            found.push(format!(
                "sandbox.listen is {}, not on loopback: everybody who can reach it knows its credentials, and may change its \
                 customers and its behaviour",
                self.sandbox.listen
            ));
        }
    }

    /// Finds webhook secrets that can be guessed from a recorded signature with some effort.
    fn short_secrets(&self, found: &mut Vec<String>) {
        for (index, tenant) in self.tenants.iter().enumerate() {
            for (number, webhook) in tenant.webhooks.iter().enumerate() {
                found.extend(webhook.secrets_below(16).filter(|place| !webhook.secrets[*place].matches(b"demo-secret")).map(
                    |place| {
                        format!(
                            "tenant[{index}].webhook[{number}].secrets[{place}] has fewer than 16 bytes: choose a longer, \
                             random one"
                        )
                    },
                ));
            }
        }
    }

    /// Finds tenants that no events arrive for, and tenants that no caller can read.
    fn unconnected_tenants(&self, found: &mut Vec<String>) {
        for (index, tenant) in self.tenants.iter().enumerate() {
            let id = &tenant.id;
            if self.roles.lookup && !self.roles.ingest && !tenant.sources.is_empty() {
                found.push(format!(
                    "tenant[{index}] (\"{id}\") has a [[tenant.source]], and roles has \"lookup\" without \"ingest\": this \
                     process watches nothing, so its profiles are fresh for unwatched_ttl only"
                ));
            }
            if self.roles.ingest && tenant.webhooks.is_empty() && tenant.sources.is_empty() {
                found.push(format!(
                    "tenant[{index}] (\"{id}\") has no [[tenant.webhook]]: its events are refused, so a change at \
                     Genesys is visible only when the cached profile expires (lookup.ttl)"
                ));
            }
            if self.roles.lookup && !self.callers.iter().any(|caller| caller.tenants.contains(id)) {
                found.push(format!(
                    "tenant[{index}] (\"{id}\") is not in the tenants of any [[caller]]: nobody can look up its \
                     customers"
                ));
            }
        }
    }
}

/// Returns a warning for every variable that looks like an option and is none; `used` names those that secrets are read
/// from.
pub(super) fn of_environment<'a>(names: impl Iterator<Item = &'a str>, used: &HashSet<String>) -> Vec<String> {
    let ours: Vec<&str> = names.filter(|name| name.starts_with(OURS) && !name.starts_with(ENV_PREFIX)).collect();
    let is_known = |name: &str, known: &str| name == known || known.ends_with('_') && name.starts_with(known);
    // Kubernetes describes every Service of a namespace in variables that begin with its name, which may be ours.
    let services: Vec<&str> = ours.iter().filter_map(|name| name.strip_suffix("_SERVICE_HOST")).collect();
    let is_of = |name: &str, service: &str| {
        let rest = name.strip_prefix(service).unwrap_or_default();
        rest == "_PORT" || rest.starts_with("_PORT_") || rest.starts_with("_SERVICE_")
    };
    let is_mistake = |name: &&str| {
        !used.contains(*name)
            && !UNPREFIXED.iter().any(|known| is_known(name, known))
            && !services.iter().any(|service| is_of(name, service))
    };
    let variables = variables();
    let mut mistakes: Vec<&str> = ours.iter().copied().filter(is_mistake).collect();
    mistakes.sort_unstable();
    let describe = |name: &str| {
        // Only the underscores may differ, so they are not compared.
        let plain = |name: &str| name.replace("__", "_");
        let same = variables.iter().find(|known| plain(known) == plain(name)).map(String::as_str);
        let near = same.or_else(|| nearest(name, variables.iter().map(String::as_str)));
        let near = near.map(|near| format!("; the nearest is {near}")).unwrap_or_default();
        format!("the environment variable {name} is not an option and has no effect{near}")
    };
    mistakes.into_iter().map(describe).collect()
}

/// Returns the variables of all options of `conf/default.toml`, including those that have no default.
fn variables() -> Vec<String> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in DEFAULTS.lines().map(|line| line.trim_start_matches("# ")) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && !section.starts_with('[')
            && !section.starts_with("tenant")
        {
            let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
            found.push(format!("{ENV_PREFIX}{}", path.to_ascii_uppercase().replace('.', "__")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning_of(name: &str) -> Option<String> {
        of_environment(std::iter::once(name), &HashSet::from(["PROFILE_EDGE_SECRET_1".to_owned()])).pop()
    }

    #[test]
    fn a_variable_with_one_underscore_is_answered_with_the_option() {
        for (name, option) in [
            ("PROFILE_EDGE_LOOKUP_TTL", "PROFILE_EDGE__LOOKUP__TTL"),
            ("PROFILE_EDGE_ROLES", "PROFILE_EDGE__ROLES"),
            ("PROFILE_EDGE_STORE_REDIS_URL", "PROFILE_EDGE__STORE__REDIS__URL"),
            ("PROFILE_EDGE_ADMIN_KEY_SHA256", "PROFILE_EDGE__ADMIN__KEY_SHA256"),
            ("PROFILE_EDGE_LOKUP_TTL", "PROFILE_EDGE__LOOKUP__TTL"),
        ] {
            let warning = warning_of(name).unwrap();
            assert!(warning.contains(name) && warning.ends_with(&format!("the nearest is {option}")), "{warning}");
        }
    }

    #[test]
    fn options_and_variables_with_another_purpose_are_not_warned_of() {
        for name in [
            "PROFILE_EDGE__LOOKUP__TTL",
            "PROFILE_EDGE_CONFIG",
            "PROFILE_EDGE_TEST_REDIS_URL",
            "PROFILE_EDGE_SECRET_1",
            "PATH",
        ] {
            assert_eq!(warning_of(name), None);
        }
        let of_kubernetes = [
            "PROFILE_EDGE_SERVICE_HOST",
            "PROFILE_EDGE_SERVICE_PORT_HTTP",
            "PROFILE_EDGE_PORT",
            "PROFILE_EDGE_PORT_8080_TCP_ADDR",
            "PROFILE_EDGE_ADMIN_SERVICE_HOST",
            "PROFILE_EDGE_ADMIN_PORT",
        ];
        assert_eq!(of_environment(of_kubernetes.into_iter(), &HashSet::new()), Vec::<String>::new());
        assert!(warning_of("PROFILE_EDGE_PORT").is_some(), "without a Service it is an option that does not exist");
    }
}
