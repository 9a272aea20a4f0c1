//! What types cannot say: settings that must fit each other.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use sha2::{Digest, Sha256};
use url::{Host, Url};

use crate::invalid::InvalidSetting;
use crate::store::sealed::keyring;
use crate::{queue, store};

use super::de::Problem;
use super::{Config, KeyScheme, Tenant};

/// The demo's secrets, which everyone can read.
const DEMO_KEY: &str = "demo-key";
const DEMO_SECRET: &str = "demo-secret";

/// What key material must be.
const KEY_MATERIAL: &str = "must be base64 of 32 bytes or more";

/// How long a token may live: at most as long as one of Genesys.
const TOKEN_LIFETIMES: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(48 * 3600);

/// Returns everything that is wrong.
pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let mut found = Vec::new();
    roles(config, &mut found);
    times(config, &mut found);
    keys(config, &mut found);
    tokens(config, &mut found);
    listeners(config, &mut found);
    sealing(config, &mut found);
    redis(config, &mut found);
    amqp(config, &mut found);
    audit(config, &mut found);
    tenants(config, &mut found);
    callers(config, &mut found);
    demo(config, &mut found);
    telemetry(config, &mut found);
    found
}

fn roles(config: &Config, found: &mut Vec<Problem>) {
    let roles = config.roles;
    if !(roles.ingest || roles.consumer || roles.lookup) {
        found.push(Problem::new("roles", "at least one of \"ingest\", \"consumer\", \"lookup\" is needed"));
    }
}

fn times(config: &Config, found: &mut Vec<Problem>) {
    let mut positive = |path: &str, time: Duration| {
        if time.is_zero() {
            found.push(Problem::new(path, "must be longer than zero"));
        }
    };
    positive("startup_timeout", config.startup_timeout);
    positive("shutdown.deadline", config.shutdown.deadline);
    positive("store.timeout", config.store.timeout);
    positive("lookup.ttl", config.lookup.ttl);
    positive("lookup.negative_ttl", config.lookup.negative_ttl);
    positive("lookup.unsettled_ttl", config.lookup.unsettled_ttl);
    positive("lookup.deadline", config.lookup.deadline);
    positive("consumer.dedup_window", config.consumer.dedup_window);
    positive("consumer.tombstone_ttl", config.consumer.tombstone_ttl);
    if config.lookup.lease_ttl <= config.upstream.timeout {
        let reason = "must be longer than upstream.timeout: a fetcher must not outlive its lease";
        found.push(Problem::new("lookup.lease_ttl", reason));
    }
    jitter("lookup.ttl_jitter", config.lookup.ttl_jitter, found);
    if !(1..=10_000).contains(&config.consumer.concurrency) {
        found.push(Problem::new("consumer.concurrency", "must be from 1 to 10000"));
    }
    if config.http.max_in_flight == 0 {
        found.push(Problem::new("http.max_in_flight", "must be at least 1"));
    }
    if let Err(error) = config.upstream.validate() {
        found.push(invalid("upstream", error));
    }
}

fn jitter(path: &str, jitter: f64, found: &mut Vec<Problem>) {
    if !(0.0..=0.5).contains(&jitter) {
        found.push(Problem::new(path, "must be from 0 to 0.5"));
    }
}

fn keys(config: &Config, found: &mut Vec<Problem>) {
    let material = KEY_MATERIAL;
    match (config.keys.scheme, &config.keys.secret) {
        (KeyScheme::HmacSha256, None) => {
            found.push(Problem::new("keys.secret", "is missing: keys.scheme \"hmac-sha256\" needs it"));
        }
        (KeyScheme::HmacSha256, Some(secret)) if secret.key_material().is_none() => {
            found.push(Problem::new("keys.secret", material));
        }
        (KeyScheme::HmacSha256 | KeyScheme::Sha256, _) => {}
    }
    if let Some(previous) = &config.keys.previous
        && previous.expose() != "sha256"
        && previous.key_material().is_none()
    {
        found.push(Problem::new("keys.previous", format!("{material}, or \"sha256\"")));
    }
}

fn tokens(config: &Config, found: &mut Vec<Problem>) {
    if config.http.token_secret.as_ref().is_some_and(|secret| secret.key_material().is_none()) {
        found.push(Problem::new("http.token_secret", KEY_MATERIAL));
    }
    if !TOKEN_LIFETIMES.contains(&config.http.token_lifetime) {
        found.push(Problem::new("http.token_lifetime", "must be from 1m to 48h"));
    }
}

fn listeners(config: &Config, found: &mut Vec<Problem>) {
    let named = [("http.listen", config.http.listen), ("admin.listen", config.admin.listen)];
    let tls = [("http.tls", &config.http.tls), ("admin.tls", &config.admin.tls)];
    for ((path, listen), (section, tls)) in named.into_iter().zip(tls) {
        if config.security.require_tls && !listen.ip().is_loopback() && !tls.is_on() {
            let reason = format!(
                "is not on loopback, and its links would be plain: configure {section}, or listen on loopback, or set \
                 security.require_tls = false behind a proxy that encrypts"
            );
            found.push(Problem::new(path, reason));
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
            found.push(Problem::new(*path, format!("is the same address as {other}")));
        }
    }
    match &config.admin.key_sha256 {
        Some(key) if !is_sha256(key) => {
            found.push(Problem::new("admin.key_sha256", "must be 64 hex digits, as profile-edge hash-key prints them"));
        }
        None if !config.admin.listen.ip().is_loopback() => {
            found.push(Problem::new("admin.key_sha256", "is missing: admin.listen is not on loopback"));
        }
        Some(_) | None => {}
    }
}

fn sealing(config: &Config, found: &mut Vec<Problem>) {
    if let Some(Err(error)) = config.store.sealing.as_ref().map(keyring::Config::validate) {
        found.push(invalid("store.sealing", error));
    }
}

fn redis(config: &Config, found: &mut Vec<Problem>) {
    if config.store.kind != store::open::Kind::Redis {
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

fn amqp(config: &Config, found: &mut Vec<Problem>) {
    if config.queue.kind != queue::open::Kind::Amqp {
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

fn telemetry(config: &Config, found: &mut Vec<Problem>) {
    if let Err(error) = config.telemetry.validate() {
        found.push(invalid("telemetry", error));
    }
    if let Some(endpoint) = &config.telemetry.endpoint {
        plain_link(config, "telemetry.endpoint", endpoint, "https", found);
    }
}

fn audit(config: &Config, found: &mut Vec<Problem>) {
    if let Err(error) = config.audit.validate() {
        found.push(invalid("audit", error));
    }
}

/// Returns the problem of a setting, which its module knows by the path below `section`.
fn invalid(section: &str, error: InvalidSetting) -> Problem {
    let InvalidSetting { field, reason } = error.within(section);
    Problem::new(field, reason)
}

/// Refuses a link to another host that is not encrypted.
fn plain_link(config: &Config, path: &str, url: &Url, encrypted: &str, found: &mut Vec<Problem>) {
    if config.security.require_tls && url.scheme() != encrypted && !is_loopback(url) {
        let reason = format!(
            "is a plain {} link to another host: use {encrypted}, or set security.require_tls = false",
            url.scheme()
        );
        found.push(Problem::new(path, reason));
    }
}

fn tenants(config: &Config, found: &mut Vec<Problem>) {
    let mut ids = HashSet::new();
    for (index, tenant) in config.tenants.iter().enumerate() {
        if !ids.insert(&tenant.id) {
            found.push(Problem::new(format!("tenant[{index}].id"), "another tenant has the same id"));
        }
        jitter(&format!("tenant[{index}].ttl_jitter"), tenant.lookup.ttl_jitter, found);
        upstream(config, index, tenant, found);
        for (number, webhook) in tenant.webhooks.iter().enumerate() {
            if let Err(error) = webhook.validate() {
                found.push(invalid(&format!("tenant[{index}].webhook[{number}]"), error));
            }
        }
    }
}

fn upstream(config: &Config, index: usize, tenant: &Tenant, found: &mut Vec<Problem>) {
    let Some(upstream) = &tenant.upstream else {
        if config.roles.lookup {
            found.push(Problem::new(format!("tenant[{index}].upstream"), "is missing: the role \"lookup\" needs it"));
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

fn callers(config: &Config, found: &mut Vec<Problem>) {
    let (mut names, mut keys) = (HashSet::new(), HashSet::new());
    for (index, caller) in config.callers.iter().enumerate() {
        let mut problem = |field: &str, reason: String| {
            found.push(Problem::new(format!("caller[{index}].{field}"), reason));
        };
        if let Err(reason) = caller.validate_name() {
            problem("name", reason.to_owned());
        }
        if !names.insert(&caller.name) {
            problem("name", "another caller has the same name".to_owned());
        }
        if !is_sha256(&caller.key_sha256) {
            problem("key_sha256", "must be 64 hex digits, as profile-edge hash-key prints them".to_owned());
        } else if !keys.insert(caller.key_sha256.to_ascii_lowercase()) {
            problem("key_sha256", "another caller has the same key".to_owned());
        }
        for tenant in &caller.tenants {
            if !config.tenants.iter().any(|known| known.id == *tenant) {
                problem("tenants", format!("{tenant} is not a configured tenant"));
            }
        }
        let fields = crate::http::auth::field_set::FieldSet::parse(caller.fields.iter().map(String::as_str));
        if let Err(error) = fields {
            problem("fields", error.to_string());
        }
    }
}

/// The demo's credentials are known to everyone, so they must not be reachable from elsewhere.
fn demo(config: &Config, found: &mut Vec<Problem>) {
    let reachable = |listen: SocketAddr| !listen.ip().is_loopback();
    if config.demo.allow_remote || !reachable(config.http.listen) {
        return;
    }
    let demo_key = hex::encode(Sha256::digest(DEMO_KEY));
    let has_key = config.callers.iter().any(|caller| caller.key_sha256.eq_ignore_ascii_case(&demo_key));
    let mut webhooks = config.tenants.iter().flat_map(|tenant| &tenant.webhooks);
    let has_secret =
        webhooks.any(|webhook| webhook.secrets.iter().any(|secret| secret.matches(DEMO_SECRET.as_bytes())));
    if has_key || has_secret {
        let reason = "is not on loopback while the demo's well-known credentials are configured: configure your own \
                      tenants and callers, or set demo.allow_remote = true";
        found.push(Problem::new("http.listen", reason));
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        // Of a scheme that the URL standard does not know, an address is a domain.
        Some(Host::Domain(name)) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}
