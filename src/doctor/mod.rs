//! The doctor: checks everything that a running service depends on, and advises what to do.
//!
//! Each subject has a file: it collects what there is to know (a *survey* of the adapter, or requests of its own) and judges
//! it by pure functions, one finding for each check. Nothing is changed, except that one test event about a customer that
//! does not exist is posted to each tenant's webhook. Every subject has `PATIENCE`; all run at the same time.
//!
//! A fault is named where it is: what cannot be checked because of it gets no finding of its own.

mod certificates;
mod events;
mod genesys;
mod machine;
mod management;
mod memcached;
pub mod policies;
mod queue;
mod sender;
mod service;
mod store;

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;
use url::Url;

use crate::clock::SharedClock;
use crate::config::{Config, Tenant};
use crate::domain::{Secret, TenantId};
use crate::operate::client::Client;

/// How long one subject may be examined.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long one dependency may take to answer.
const ANSWER: Duration = Duration::from_secs(4);

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check, such as `redis.eviction`.
    pub check: &'static str,
    /// What was checked: a host, a tenant, a file.
    pub subject: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// In order.
    Ok,
    /// It works; something should be changed.
    Warning,
    /// It does not work, or not for long.
    Failed,
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

impl Finding {
    /// Something is in order.
    pub fn ok(check: &'static str, subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check, subject: subject.into(), verdict: Verdict::Ok, detail: detail.into(), advice: None }
    }

    /// Something works, and should be changed.
    pub fn warning(
        check: &'static str,
        subject: impl Into<String>,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Warning, advice: Some(advice.into()), ..Self::ok(check, subject, detail) }
    }

    /// Something does not work.
    pub fn failed(
        check: &'static str,
        subject: impl Into<String>,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Failed, advice: Some(advice.into()), ..Self::ok(check, subject, detail) }
    }
}

/// What is to be examined, beside the configuration.
#[derive(Debug)]
pub struct Options {
    /// Only this tenant.
    pub tenant: Option<TenantId>,
    /// The running service; `None`: only what it depends on.
    pub service: Option<Service>,
    /// Where senders post events, if it is known without the running service.
    pub public_url: Option<Url>,
    /// The directory with the files to import into Genesys; `None`: that of the source code.
    pub pack: Option<PathBuf>,
    /// The address of RabbitMQ's management API; absent: the configured one, or port 15672 (15671 with TLS) of the broker.
    pub rabbitmq_api: Option<Url>,
}

/// How the running service is reached.
#[derive(Debug)]
pub struct Service {
    /// The URL of the public listener.
    pub url: Url,
    /// A client that trusts the certificate of the public listener.
    pub http: reqwest::Client,
    /// The client of the admin listener.
    pub admin: Client,
    /// The key of a caller.
    pub caller_key: Option<Secret>,
}

/// Examines everything, and returns what was found, in the order of the data: machine, store, queue, Genesys, service.
pub async fn examine(config: &Config, options: &Options, warnings: &[String], clock: &SharedClock) -> Vec<Finding> {
    let tenants: Vec<&Tenant> = config.tenants.iter().filter(|tenant| is_selected(options, &tenant.id)).collect();
    let expects_consumers = options.service.is_some();
    // Boxed, because their types are too deep for the compiler.
    let (store, queue, genesys) = tokio::join!(
        within("redis", Box::pin(store::examine(config, clock))),
        within("rabbitmq", Box::pin(queue::examine(config, options.rabbitmq_api.as_ref(), expects_consumers))),
        within("genesys", genesys::examine(config, &tenants, options, clock)),
    );
    let mut found = machine::examine(config, warnings);
    found.extend(certificates::examine(config, clock));
    found.extend(store);
    found.extend(queue);
    found.extend(genesys);
    if let Some(service) = &options.service {
        // What fails below makes the service fail too, and is named there.
        let has_cause = found.iter().any(|finding| finding.verdict == Verdict::Failed);
        found.extend(within("service", service::examine(config, &tenants, service, has_cause, clock)).await);
    }
    found
}

fn is_selected(options: &Options, id: &TenantId) -> bool {
    options.tenant.as_ref().is_none_or(|tenant| tenant == id)
}

async fn within(subject: &'static str, examination: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    timeout(PATIENCE, examination).await.unwrap_or_else(|_elapsed| {
        let detail = format!("the checks did not end within {} s", PATIENCE.as_secs());
        vec![Finding::failed(subject, subject, detail, "look for a host that accepts connections and never answers")]
    })
}

/// Returns the worst verdict.
#[must_use]
pub fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
}

/// Formats findings for people: a line for each, and one for each advice.
#[must_use]
pub fn text(findings: &[Finding]) -> String {
    let width = |of: fn(&Finding) -> &str| findings.iter().map(|finding| of(finding).len()).max().unwrap_or_default();
    let (checks, subjects) = (width(|finding| finding.check), width(|finding| &finding.subject));
    let mut text = String::new();
    for Finding { check, subject, verdict, detail, advice } in findings {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:<7}  {check:checks$}  {subject:subjects$}  {detail}", verdict.as_str());
        if let Some(advice) = advice {
            let _ = writeln!(text, "{:7}  advice: {advice}", "");
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (ok, warnings, failed) = (count(Verdict::Ok), count(Verdict::Warning), count(Verdict::Failed));
    let _ = writeln!(text, "{ok} ok, {warnings} warnings, {failed} failed");
    text
}

/// Formats findings for programs: one JSON object on a line.
#[must_use]
pub fn json_lines(findings: &[Finding]) -> String {
    // A finding is text only, so its serialization does not fail.
    findings.iter().filter_map(|finding| serde_json::to_string(finding).ok()).map(|line| line + "\n").collect()
}
