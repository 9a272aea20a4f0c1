//! Checks of `[[tenant]]` and `[[caller]]`.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use sha2::{Digest, Sha256};

use crate::domain::LookupBy;
use crate::http::auth::agents::AGENTS;
use crate::http::auth::callers;
use crate::ingest::authenticate;

use super::super::error::SettingError;
use super::super::{Config, Tenant};
use super::rules::{invalid, lookup_times, plain_link};

/// The secrets of the demo.
const DEMO_KEY: &str = "demo-key";
const DEMO_SECRET: &str = "demo-secret";
const DEMO_ADMIN_KEY: &str = "demo-admin";

/// The minimum length of a webhook's secret, in bytes. With fewer, a recorded signature shows it within hours.
const SHORTEST_SECRET: usize = 8;

/// The digests of the examples in `conf/production.toml`.
const EXAMPLES: [&str; 3] = [
    "7b8a2d3c5f4e60918273645566778899aabbccddeeff00112233445566778899",
    "0f1e2d3c4b5a69788796a5b4c3d2e1f00123456789abcdef0123456789abcdef",
    "fedcba9876543210fedcba98765432100f1e2d3c4b5a69788796a5b4c3d2e1f0",
];

pub(super) fn check(config: &Config, found: &mut Vec<SettingError>) {
    tenants(config, found);
    shared_secrets(config, found);
    callers(config, found);
    demo(config, found);
    guessable_keys(config, found);
}

fn tenants(config: &Config, found: &mut Vec<SettingError>) {
    let mut ids = HashSet::new();
    for (index, tenant) in config.tenants.iter().enumerate() {
        if !ids.insert(&tenant.id) {
            found.push(SettingError::new(format!("tenant[{index}].id"), "another tenant has the same id"));
        }
        lookup_times(&format!("tenant[{index}]"), &tenant.lookup, Some(&config.lookup), found);
        upstream(config, index, tenant, found);
        if let Some(agents) = &tenant.agents {
            let path = format!("tenant[{index}].agents");
            unkeyed_identifiers(config, &path, &agents.lookup_by, found);
            found.extend(agents.validate().err().map(|error| invalid(&path, error)));
        }
        sources(config, index, tenant, found);
        for (number, webhook) in tenant.webhooks.iter().enumerate() {
            if let Err(error) = webhook.validate() {
                found.push(invalid(&format!("tenant[{index}].webhook[{number}]"), error));
            }
            found.extend(webhook.secrets_below(SHORTEST_SECRET).map(|place| {
                let reason = format!(
                    "has fewer than {SHORTEST_SECRET} bytes, so it can be guessed: choose a longer, random one"
                );
                SettingError::new(format!("tenant[{index}].webhook[{number}].secrets[{place}]"), reason)
            }));
        }
    }
}

/// Refuses a webhook secret of two tenants: a request that is signed for one would be accepted for the other.
fn shared_secrets(config: &Config, found: &mut Vec<SettingError>) {
    let mut owners = HashMap::new();
    for (index, tenant) in config.tenants.iter().enumerate() {
        for (number, webhook) in tenant.webhooks.iter().enumerate() {
            for secret in &webhook.secrets {
                let owner = *owners.entry(authenticate::comparable(secret)).or_insert(&tenant.id);
                if *owner != tenant.id {
                    let reason = format!("tenant {} has a secret of tenant {owner}: each needs its own", tenant.id);
                    found.push(SettingError::new(format!("tenant[{index}].webhook[{number}].secrets"), reason));
                }
            }
        }
    }
}

fn upstream(config: &Config, index: usize, tenant: &Tenant, found: &mut Vec<SettingError>) {
    let Some(upstream) = &tenant.upstream else {
        if config.roles.lookup {
            found.push(SettingError::new(
                format!("tenant[{index}].upstream"),
                "is missing: the role \"lookup\" needs it",
            ));
        }
        return;
    };
    if let Err(error) = upstream.validate() {
        found.push(invalid(&format!("tenant[{index}].upstream"), error));
    }
    if let Ok(urls) = upstream.base_urls() {
        for (name, url) in [("api_url", &urls.api), ("login_url", &urls.login)] {
            plain_link(config, &format!("tenant[{index}].upstream.{name}"), url, "https", found);
        }
    }
}

fn sources(config: &Config, index: usize, tenant: &Tenant, found: &mut Vec<SettingError>) {
    for (number, source) in tenant.sources.iter().enumerate() {
        let path = format!("tenant[{index}].source[{number}]");
        if let Err(error) = source.validate() {
            found.push(invalid(&path, error));
        }
        if number > 0 {
            found
                .push(SettingError::new(format!("{path}.kind"), "there is one already: a tenant has one of this kind"));
        }
        if tenant.upstream.is_none() {
            found.push(SettingError::new(
                path.clone(),
                "needs [tenant.upstream], whose OAuth client opens the channels",
            ));
        }
        if config.roles.lookup && tenant.lookup.unwatched_ttl.is_zero() {
            found.push(SettingError::new(format!("tenant[{index}].unwatched_ttl"), "must be longer than zero"));
        }
    }
}

fn callers(config: &Config, found: &mut Vec<SettingError>) {
    let faults = callers::validate(&config.callers).into_iter();
    found.extend(
        faults.map(|fault| SettingError::new(format!("caller[{}].{}", fault.index, fault.field), fault.reason)),
    );
    let has_agents = config.tenants.iter().any(|tenant| tenant.agents.as_ref().is_some_and(|agents| agents.allow));
    for (index, caller) in config.callers.iter().enumerate() {
        if has_agents && caller.name == AGENTS {
            let reason = "is the name of the agents whom a tenant allows: choose another";
            found.push(SettingError::new(format!("caller[{index}].name"), reason));
        }
        unkeyed_identifiers(config, &format!("caller[{index}]"), &caller.lookup_by, found);
        for tenant in &caller.tenants {
            if !config.tenants.iter().any(|known| known.id == *tenant) {
                let reason = format!("{tenant} is not a configured tenant");
                found.push(SettingError::new(format!("caller[{index}].tenants"), reason));
            }
        }
    }
}

/// Refuses lookups by identifiers whose digests could be found out.
fn unkeyed_identifiers(config: &Config, path: &str, lookup_by: &[LookupBy], found: &mut Vec<SettingError>) {
    if let Some(by) = lookup_by.iter().find(|by| **by != LookupBy::CustomerId)
        && config.keys.identifier_hasher().is_none()
    {
        let reason = format!(
            "\"{}\" needs keys.secret: without a key, anyone who can read the store could find out phone numbers by trial",
            by.as_str()
        );
        found.push(SettingError::new(format!("{path}.lookup_by"), reason));
    }
}

/// Refuses the credentials of the demo, which everybody knows, and its sandbox, on a listener that other hosts can reach.
fn demo(config: &Config, found: &mut Vec<SettingError>) {
    const REST: &str = "which everybody knows, are configured: configure your own, or set demo.allow_remote = true";
    let reachable = |listen: SocketAddr| !listen.ip().is_loopback() && !config.demo.allow_remote;
    let is_digest_of = |digest: &str, key: &str| digest.eq_ignore_ascii_case(&hex::encode(Sha256::digest(key)));
    let has_key = config.callers.iter().any(|caller| is_digest_of(&caller.key_sha256, DEMO_KEY));
    let mut webhooks = config.tenants.iter().flat_map(|tenant| &tenant.webhooks);
    let has_secret =
        webhooks.any(|webhook| webhook.secrets.iter().any(|secret| secret.matches(DEMO_SECRET.as_bytes())));
    if reachable(config.http.listen) && (has_key || has_secret) {
        let reason = format!("is not on loopback while the credentials of the demo, {REST}");
        found.push(SettingError::new("http.listen", reason));
    }
    let admin_key = config.admin.key_sha256.as_deref().unwrap_or_default();
    if reachable(config.admin.listen) && [DEMO_ADMIN_KEY, DEMO_KEY].iter().any(|key| is_digest_of(admin_key, key)) {
        let reason = format!("is not on loopback while the credentials of the demo, {REST}");
        found.push(SettingError::new("admin.listen", reason));
    }
    if config.runs_sandbox() && reachable(config.sandbox.listen) {
        let reason = format!("is not on loopback while the credentials of the sandbox, {REST}");
        found.push(SettingError::new("sandbox.listen", reason));
    }
}

/// Refuses keys that anybody would guess (the empty one and those of one byte), and the digests of our examples.
fn guessable_keys(config: &Config, found: &mut Vec<SettingError>) {
    let guesses = std::iter::once(Vec::new()).chain((0..=u8::MAX).map(|byte| vec![byte]));
    let guesses: HashSet<String> = guesses.map(|key| hex::encode(Sha256::digest(key))).collect();
    let mut refuse = |path: String, digest: &str| {
        if guesses.contains(&digest.to_ascii_lowercase()) {
            found.push(SettingError::new(path, "is the digest of an empty key, or of one letter: choose a longer key"));
        } else if EXAMPLES.contains(&digest.to_ascii_lowercase().as_str()) {
            let reason = "is the example of conf/production.toml: set it to the output of `profile-edge hash-key`";
            found.push(SettingError::new(path, reason));
        }
    };
    for (index, caller) in config.callers.iter().enumerate() {
        refuse(format!("caller[{index}].key_sha256"), &caller.key_sha256);
    }
    refuse("admin.key_sha256".to_owned(), config.admin.key_sha256.as_deref().unwrap_or_default());
}
