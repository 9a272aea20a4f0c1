//! The running service: its readiness, its webhooks and its lookups, as senders and callers see them.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::config::{Config, Tenant};
use crate::domain::Secret;
use crate::operate::client;

use super::{Finding, Service, sender};

/// How long a test event may take from its acceptance to its effect.
const EFFECT_WITHIN: Duration = Duration::from_secs(4);

/// The interval between two looks at the entry of the test event.
const LOOK_EVERY: Duration = Duration::from_millis(20);

const WEBHOOK: &str = "service.webhook";
const LOOKUP: &str = "service.lookup";

/// The test of one service.
struct ServiceTest<'a> {
    service: &'a Service,
    /// Whether something that the service depends on is known to fail.
    has_cause: bool,
    clock: &'a SharedClock,
}

/// Examines the service, if it answers.
pub(super) async fn examine(
    config: &Config,
    tenants: &[&Tenant],
    service: &Service,
    has_cause: bool,
    clock: &SharedClock,
) -> Vec<Finding> {
    let test = ServiceTest { service, has_cause, clock };
    if let Err(reason) = test.answers().await {
        let advice =
            "start profile-edge run, or name the service with --url; --without-service checks what it depends on";
        return vec![Finding::failed("service.listener", service.url.as_str(), reason, advice)];
    }
    let mut found = vec![test.readiness().await];
    if config.roles.ingest {
        found.extend(join_all(tenants.iter().map(|tenant| test.webhook(tenant))).await);
    }
    if config.roles.lookup {
        found.extend(join_all(tenants.iter().map(|tenant| test.lookup(tenant))).await);
    }
    found
}

impl ServiceTest<'_> {
    async fn answers(&self) -> Result<(), String> {
        let url = self.service.url.join("/openapi.json").map_err(|error| error.to_string())?;
        let answer = self.service.http.get(url).send().await.map_err(|error| describe(&error))?;
        if answer.status() == StatusCode::OK { Ok(()) } else { Err(format!("status {}", answer.status().as_u16())) }
    }

    async fn readiness(&self) -> Finding {
        const CHECK: &str = "service.readiness";
        match self.service.admin.ready(true).await {
            Ok(()) => Finding::ok(CHECK, "admin listener", "ready, and nothing that it depends on is down"),
            Err(error) if self.has_cause => self.symptom(CHECK, "admin listener", &error.to_string()),
            Err(error) => {
                let advice = "look at the log of the service; dashboards/README.md has a heading for each dependency";
                Finding::warning(CHECK, "admin listener", error.to_string(), advice)
            }
        }
    }

    /// What the failure of something else causes, which has its own finding.
    fn symptom(&self, check: &'static str, subject: &str, detail: &str) -> Finding {
        Finding::warning(check, subject, detail, "first mend what failed above")
    }

    /// Posts an event about a customer that nobody has, and waits for its effect.
    async fn webhook(&self, tenant: &Tenant) -> Finding {
        let subject = tenant.id.to_string();
        // One that is limited to networks may refuse this machine.
        let is_open = |webhook: &&crate::ingest::authenticate::Config| webhook.networks.is_none();
        let Some(webhook) = tenant.webhooks.iter().find(is_open).or(tenant.webhooks.first()) else {
            let advice = "add a [[tenant.webhook]] (conf/README.md)";
            return Finding::warning(WEBHOOK, subject, "the tenant has no webhook, so its events are refused", advice);
        };
        let (customer, event) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let now = self.clock.now();
        let at = jiff::Timestamp::from_millisecond(now.as_millis()).map(|at| at.to_string()).unwrap_or_default();
        let body =
            json!({ "tenantId": subject, "customerId": customer, "eventId": event, "occurredAt": at }).to_string();
        let Ok(url) = self.service.url.join(&format!("/webhooks/{subject}")) else {
            return Finding::failed(
                WEBHOOK,
                subject,
                "--url cannot be used",
                "give a URL such as https://edge.example",
            );
        };
        let request = self.service.http.post(url).header("Content-Type", "application/json");
        let Some(request) = sender::authenticate(request, webhook, &event, &body, now) else {
            return Finding::failed(WEBHOOK, subject, "the secret of the webhook cannot be used", "replace it");
        };
        let started = Instant::now();
        match request.body(body).send().await {
            Err(error) => {
                Finding::failed(WEBHOOK, subject, describe(&error), "look at the proxy in front of the service")
            }
            Ok(answer) if answer.status() == StatusCode::ACCEPTED => self.effect(&subject, &customer, started).await,
            Ok(answer) => self.refused(&subject, answer.status().as_u16(), webhook.networks.is_some()),
        }
    }

    fn refused(&self, subject: &str, status: u16, is_limited: bool) -> Finding {
        let detail = format!("the test event was refused with status {status}");
        let advice = match status {
            401 if is_limited => "the webhook accepts other networks only: run the doctor on one of them",
            401 => {
                "the service has another secret than this configuration (send it SIGHUP), or a proxy in front of it removes \
                 the header"
            }
            403 | 404 => "the service at --url does not know this tenant: it runs with another configuration",
            503 if self.has_cause => return self.symptom(WEBHOOK, subject, &detail),
            503 => "the event could not be made durable: look at the queue, and at the log of the service",
            _ => "look at what answers at --url, and at the log of the service",
        };
        Finding::failed(WEBHOOK, subject, detail, advice)
    }

    async fn effect(&self, tenant: &str, customer: &str, started: Instant) -> Finding {
        loop {
            match self.service.admin.inspect(tenant, customer).await {
                Ok(state) if state["fence"].is_object() => {
                    let detail = format!("a test event took effect after {} ms", started.elapsed().as_millis());
                    return Finding::ok(WEBHOOK, tenant, detail);
                }
                Ok(_) if started.elapsed() < EFFECT_WITHIN => sleep(LOOK_EVERY).await,
                Ok(_) => break,
                Err(error @ (client::Error::Refused { .. } | client::Error::PlainKey)) => {
                    let detail = format!("a test event was accepted; its effect cannot be seen: {error}");
                    let advice = "set PROFILE_EDGE_ADMIN_KEY to the key of the admin listener";
                    return Finding::warning(WEBHOOK, tenant, detail, advice);
                }
                Err(_) if self.has_cause => break,
                Err(error) => {
                    let detail = format!("a test event was accepted; its effect cannot be seen: {error}");
                    return Finding::warning(WEBHOOK, tenant, detail, "name the admin listener with --admin");
                }
            }
        }
        let detail = format!("a test event was accepted and had no effect within {} s", EFFECT_WITHIN.as_secs());
        if self.has_cause {
            return self.symptom(WEBHOOK, tenant, &detail);
        }
        let advice =
            "no consumer applies events to this store: start a process with the role \"consumer\", and look at its log";
        Finding::failed(WEBHOOK, tenant, detail, advice)
    }

    /// Looks up a customer that nobody has.
    async fn lookup(&self, tenant: &Tenant) -> Finding {
        let subject = tenant.id.to_string();
        let Some(key) = &self.service.caller_key else {
            let advice = "set PROFILE_EDGE_CALLER_KEY to the key of a caller (or --caller-key)";
            return Finding::warning(LOOKUP, subject, "not checked: no caller's key was given", advice);
        };
        self.lookup_with(&subject, key).await
    }

    async fn lookup_with(&self, subject: &str, key: &Secret) -> Finding {
        let body = json!({ "tenantId": subject, "customerId": Uuid::new_v4().to_string() });
        let Ok(url) = self.service.url.join("/api/v1/profile") else {
            return Finding::failed(LOOKUP, subject, "--url cannot be used", "give a URL such as https://edge.example");
        };
        let started = Instant::now();
        // With POST the id is in no log of a proxy.
        let answer = self.service.http.post(url).header("X-API-Key", key.expose()).json(&body).send().await;
        let (status, problem) = match answer {
            Ok(answer) => (answer.status().as_u16(), answer.json::<Value>().await.unwrap_or_default()),
            Err(error) => {
                let advice = "look at the proxy in front of the service";
                return Finding::failed(LOOKUP, subject, describe(&error), advice);
            }
        };
        let code = problem["code"].as_str().unwrap_or("no code");
        let detail = format!("a lookup was answered {status} ({code})");
        let advice = match status {
            200 | 404 | 410 => {
                let detail =
                    format!("a customer that nobody has is not found, in {} ms", started.elapsed().as_millis());
                return Finding::ok(LOOKUP, subject, detail);
            }
            401 => "the key belongs to no [[caller]]: compare its hash (profile-edge hash-key) with key_sha256",
            403 => "the caller may not read this tenant: add it to tenants of the [[caller]]",
            429 => "the caller is over its requests_per_second; run the doctor again",
            502 | 503 if self.has_cause => return self.symptom(LOOKUP, subject, &detail),
            502 | 503 => "Genesys or the store cannot answer now: /readyz and the log of the service name the reason",
            _ => "look at what answers at --url, and at the log of the service",
        };
        Finding::failed(LOOKUP, subject, detail, advice)
    }
}

/// Describes a request without an answer, without its URL.
fn describe(error: &reqwest::Error) -> String {
    let what = if error.is_connect() {
        "nobody accepts connections, or TLS fails"
    } else if error.is_timeout() {
        "no answer in time"
    } else {
        "no whole answer"
    };
    what.to_owned()
}
