//! Checks that types cannot express: ranges, and settings that depend on each other.

mod rules;
mod tenants;

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::http::server::cors::AllowedOrigins;
use crate::store::memcached;
use crate::store::sealed::keyring;
use crate::tls::is_loopback;
use crate::{queue, store};

use super::error::SettingError;
use super::{Config, KeyScheme};

use rules::{invalid, is_sha256, lookup_times, plain_link, positive, sizes};

/// The expected form of key material.
const KEY_MATERIAL: &str = "must be base64 of 32 bytes or more";

/// The longest `queue.amqp.publish_timeout` that leaves time for the outbox.
const LONGEST_PUBLISH: Duration = Duration::from_secs(3);

/// The allowed lifetimes of a token; Genesys allows no longer ones.
const TOKEN_LIFETIMES: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(48 * 3600);

/// Returns everything that is wrong.
pub(super) fn errors(config: &Config) -> Vec<SettingError> {
    let mut found = Vec::new();
    roles(config, &mut found);
    times(config, &mut found);
    sizes(config, &mut found);
    keys(config, &mut found);
    tokens(config, &mut found);
    listeners(config, &mut found);
    sealing(config, &mut found);
    redis(config, &mut found);
    memcached(config, &mut found);
    amqp(config, &mut found);
    outbox(config, &mut found);
    audit(config, &mut found);
    tenants::check(config, &mut found);
    telemetry(config, &mut found);
    found
}

fn roles(config: &Config, found: &mut Vec<SettingError>) {
    let roles = config.roles;
    if !(roles.ingest || roles.consumer || roles.lookup) {
        found.push(SettingError::new("roles", "at least one of \"ingest\", \"consumer\", \"lookup\" is needed"));
    }
}

fn times(config: &Config, found: &mut Vec<SettingError>) {
    positive("startup_timeout", config.startup_timeout, found);
    positive("shutdown.deadline", config.shutdown.deadline, found);
    positive("store.timeout", config.store.timeout, found);
    positive("consumer.dedup_window", config.consumer.dedup_window, found);
    positive("consumer.tombstone_ttl", config.consumer.tombstone_ttl, found);
    positive("ingest.max_future", config.ingest.max_future, found);
    lookup_times("lookup", &config.lookup, None, found);
    if config.lookup.lease_ttl <= config.upstream.timeout {
        let reason = "must be longer than upstream.timeout: a fetch must not outlive its lease";
        found.push(SettingError::new("lookup.lease_ttl", reason));
    }
    if !(1..=10_000).contains(&config.consumer.concurrency) {
        found.push(SettingError::new("consumer.concurrency", "must be from 1 to 10000"));
    }
    if config.http.max_in_flight == 0 {
        found.push(SettingError::new("http.max_in_flight", "must be at least 1"));
    }
    if config.http.max_change_streams == 0 {
        found.push(SettingError::new("http.max_change_streams", "must be at least 1"));
    }
    if let Err(error) = AllowedOrigins::parse(&config.http.cors_origins) {
        found.push(invalid("http", error));
    }
    if let Err(error) = config.upstream.validate() {
        found.push(invalid("upstream", error));
    }
}

fn keys(config: &Config, found: &mut Vec<SettingError>) {
    let material = KEY_MATERIAL;
    match (config.keys.scheme, &config.keys.secret) {
        (KeyScheme::HmacSha256, None) => {
            found.push(SettingError::new("keys.secret", "is missing: keys.scheme \"hmac-sha256\" needs it"));
        }
        (KeyScheme::HmacSha256, Some(secret)) if secret.key_material().is_none() => {
            found.push(SettingError::new("keys.secret", material));
        }
        // It is the key of identifiers.
        (KeyScheme::Sha256, Some(secret)) if secret.key_material().is_none() => {
            found.push(SettingError::new("keys.secret", material));
        }
        (KeyScheme::HmacSha256 | KeyScheme::Sha256, _) => {}
    }
    if let Some(previous) = &config.keys.previous
        && previous.expose() != "sha256"
        && previous.key_material().is_none()
    {
        found.push(SettingError::new("keys.previous", format!("{material}, or \"sha256\"")));
    }
}

fn tokens(config: &Config, found: &mut Vec<SettingError>) {
    if config.http.token_secret.as_ref().is_some_and(|secret| secret.key_material().is_none()) {
        found.push(SettingError::new("http.token_secret", KEY_MATERIAL));
    }
    if !TOKEN_LIFETIMES.contains(&config.http.token_lifetime) {
        found.push(SettingError::new("http.token_lifetime", "must be from 1m to 48h"));
    }
}

fn listeners(config: &Config, found: &mut Vec<SettingError>) {
    let named = [("http.listen", config.http.listen), ("admin.listen", config.admin.listen)];
    let tls = [("http.tls", &config.http.tls), ("admin.tls", &config.admin.tls)];
    for ((path, listen), (section, tls)) in named.into_iter().zip(tls) {
        if config.security.require_tls && !listen.ip().is_loopback() && !tls.is_on() {
            let reason = format!(
                "is not on loopback, and its connections would not be encrypted: configure {section}, or listen on loopback, or set \
                 security.require_tls = false behind a proxy that encrypts"
            );
            found.push(SettingError::new(path, reason));
        }
        if let Err(error) = tls.load(section) {
            found.push(invalid(section, error));
        }
    }
    if let Err(error) = config.http.limits.validate() {
        found.push(invalid("http.limits", error));
    }
    let mut all = named.to_vec();
    if config.runs_sandbox() {
        all.push(("sandbox.listen", config.sandbox.listen));
    }
    for (index, (path, listen)) in all.iter().enumerate() {
        if listen.port() != 0
            && let Some((other, _)) = all[..index].iter().find(|(_, other)| other == listen)
        {
            found.push(SettingError::new(*path, format!("is the same address as {other}")));
        }
    }
    match &config.admin.key_sha256 {
        Some(key) if !is_sha256(key) => {
            found.push(SettingError::new(
                "admin.key_sha256",
                "must be 64 hex digits, as profile-edge hash-key prints them",
            ));
        }
        None if !config.admin.listen.ip().is_loopback() => {
            found.push(SettingError::new("admin.key_sha256", "is missing: admin.listen is not on loopback"));
        }
        Some(_) | None => {}
    }
}

fn sealing(config: &Config, found: &mut Vec<SettingError>) {
    if let Some(Err(error)) = config.store.sealing.as_ref().map(keyring::Config::validate) {
        found.push(invalid("store.sealing", error));
    }
}

fn redis(config: &Config, found: &mut Vec<SettingError>) {
    if config.store.kind != store::open::StoreKind::Redis {
        return;
    }
    if let Err(error) = config.store.redis.validate() {
        found.push(invalid("store.redis", error));
    }
    let path = if config.store.redis.urls.is_empty() { "store.redis.url" } else { "store.redis.urls" };
    for url in config.store.redis.addresses().iter().flatten() {
        plain_link(config, path, url, "rediss", found);
    }
}

fn memcached(config: &Config, found: &mut Vec<SettingError>) {
    if config.store.kind != store::open::StoreKind::Memcached {
        return;
    }
    if let Err(error) = config.store.memcached.validate() {
        found.push(invalid("store.memcached", error));
    }
    let lifetimes =
        store::Lifetimes { dedup_window: config.consumer.dedup_window, tombstone_ttl: config.consumer.tombstone_ttl };
    if let Err(error) = memcached::config::Config::check_lifetimes(lifetimes) {
        found.push(invalid("consumer", error));
    }
    let is_plain = config.security.require_tls && !config.store.memcached.tls.is_any();
    if is_plain && !config.store.memcached.addresses().iter().flatten().all(is_loopback) {
        let reason = "has another host, and its connection is not encrypted: configure store.memcached.tls, or set \
                      security.require_tls = false";
        found.push(SettingError::new("store.memcached.servers", reason));
    }
}

fn amqp(config: &Config, found: &mut Vec<SettingError>) {
    if config.queue.kind != queue::open::QueueKind::Amqp {
        return;
    }
    let amqp = &config.queue.amqp;
    if let Err(error) = amqp.validate() {
        found.push(invalid("queue.amqp", error));
    }
    let path = if amqp.urls.is_empty() { "queue.amqp.url" } else { "queue.amqp.urls" };
    for url in amqp.addresses().iter().flatten() {
        plain_link(config, path, url, "amqps", found);
    }
}

fn outbox(config: &Config, found: &mut Vec<SettingError>) {
    let outbox = &config.queue.outbox;
    if !outbox.enabled {
        return;
    }
    if let Err(error) = outbox.validate() {
        found.push(invalid("queue.outbox", error));
    }
    if config.queue.kind != queue::open::QueueKind::Amqp {
        let reason = "needs queue.kind = \"amqp\": the embedded queue is on this disk already";
        found.push(SettingError::new("queue.outbox.enabled", reason));
    } else if config.queue.amqp.publish_timeout > LONGEST_PUBLISH {
        let reason = "must be 3s or less with queue.outbox.enabled: a webhook waits four seconds for both";
        found.push(SettingError::new("queue.amqp.publish_timeout", reason));
    }
}

fn telemetry(config: &Config, found: &mut Vec<SettingError>) {
    if let Err(error) = config.telemetry.validate() {
        found.push(invalid("telemetry", error));
    }
    if let Some(endpoint) = &config.telemetry.endpoint {
        plain_link(config, "telemetry.endpoint", endpoint, "https", found);
    }
}

fn audit(config: &Config, found: &mut Vec<SettingError>) {
    if let Err(error) = config.audit.validate() {
        found.push(invalid("audit", error));
    }
}
