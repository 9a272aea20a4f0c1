//! Genesys: the OAuth client of each tenant, what it may do, and what the organisation sends.

use std::time::Duration;

use futures_util::future::join_all;
use url::Url;

use crate::clock::SharedClock;
use crate::config::{Config, Tenant};
use crate::tls::is_loopback;
use crate::upstream::survey::{Survey, TokenSurvey, survey};
use crate::upstream::{self, TransportPhase};

use super::{ANSWER, Finding, Options, events};

/// A token that is renewed more often costs noticeable requests.
const SHORT_LIFETIME: Duration = Duration::from_secs(600);

/// How far our clock may be from that of Genesys: the times of events are compared with it.
const CLOCK_WARNING_MS: i64 = 5_000;
const CLOCK_FAILURE_MS: i64 = 60_000;

/// Examines Genesys for each tenant.
pub(super) async fn examine(
    config: &Config,
    tenants: &[&Tenant],
    options: &Options,
    clock: &SharedClock,
) -> Vec<Finding> {
    if !config.roles.lookup {
        return Vec::new();
    }
    join_all(tenants.iter().map(|tenant| of_tenant(tenant, options, clock))).await.into_iter().flatten().collect()
}

/// What advice names.
struct Places {
    /// Where events are posted.
    target: String,
    /// The directory with the files to import.
    pack: String,
}

impl Places {
    fn of(tenant: &Tenant, options: &Options) -> Self {
        let path = format!("/webhooks/{}", tenant.id);
        let base = options.service.as_ref().map(|service| &service.url).or(options.public_url.as_ref());
        let target = match base {
            Some(base) => format!("{}{path}", base.as_str().trim_end_matches('/')),
            None => format!("{path} at the public URL of the service"),
        };
        let pack = options.pack.as_ref().map_or_else(|| "conf/genesys".to_owned(), |pack| pack.display().to_string());
        Self { target, pack }
    }
}

async fn of_tenant(tenant: &Tenant, options: &Options, clock: &SharedClock) -> Vec<Finding> {
    let Some(upstream) = &tenant.upstream else { return Vec::new() };
    let subject = tenant.id.to_string();
    let region = upstream.region.as_deref();
    match survey(&tenant.id, upstream, ANSWER, clock).await {
        Ok(found) => judge(&subject, region, &Places::of(tenant, options), &found),
        Err(error) => {
            vec![Finding::failed("genesys.connection", subject, error.to_string(), "correct [tenant.upstream]")]
        }
    }
}

fn judge(subject: &str, region: Option<&str>, places: &Places, survey: &Survey) -> Vec<Finding> {
    match &survey.token {
        Err(error) => vec![no_token(subject, region, &survey.hosts, error)],
        Ok(found) => {
            let [api, login] = &survey.hosts;
            let hosts = if api == login { api.clone() } else { format!("{api}, {login}") };
            let mut findings = vec![Finding::ok("genesys.connection", subject, hosts)];
            findings.extend(with_token(subject, places, found));
            findings
        }
    }
}

fn no_token(subject: &str, region: Option<&str>, [_, login]: &[String; 2], error: &upstream::Error) -> Finding {
    const CONNECTION: &str = "genesys.connection";
    let place = region.map_or_else(|| "the server of login_url".to_owned(), |region| format!("region {region}"));
    let failed = |check, detail: String, advice: String| Finding::failed(check, subject, detail, advice);
    match error {
        upstream::Error::Unreachable(failure) | upstream::Error::Timeout(failure) => {
            let detail = failure.as_ref().map_or_else(|| error.to_string(), ToString::to_string);
            let advice = match failure.as_ref().map(|failure| failure.phase) {
                Some(TransportPhase::Dns) => {
                    format!("the name {login} cannot be resolved: check the DNS server of this machine, and {place}")
                }
                Some(TransportPhase::Tls) => {
                    "the certificate is not trusted: install the CA of the proxy that opens TLS, or bypass that proxy"
                        .to_owned()
                }
                Some(TransportPhase::Connect) if is_of_this_machine(login) => {
                    format!("nothing listens at {login}: start it, for example with profile-edge sandbox")
                }
                Some(TransportPhase::Connect) => {
                    format!("no connection: allow outgoing connections to {login}, or set HTTPS_PROXY")
                }
                Some(TransportPhase::Timeout | TransportPhase::Response) | None => {
                    format!("{login} gives no whole answer: look at the firewall or proxy in between")
                }
            };
            failed(CONNECTION, detail, advice)
        }
        upstream::Error::Denied { status } => failed(
            "genesys.token",
            format!("the OAuth client is refused (status {status})"),
            format!(
                "check client_id and client_secret, that the client belongs to {place}, and that its grant type is client \
                 credentials"
            ),
        ),
        upstream::Error::Throttled { .. } => Finding::warning(
            "genesys.token",
            subject,
            error.to_string(),
            "too many tokens are requested: give each service a client of its own, and run the doctor again later",
        ),
        upstream::Error::Failed { .. } => {
            failed("genesys.token", error.to_string(), "Genesys fails: look at its status page".to_owned())
        }
        upstream::Error::Unusable { .. }
        | upstream::Error::Privileges { .. }
        | upstream::Error::BudgetSpent { .. }
        | upstream::Error::BreakerOpen { .. } => failed(
            "genesys.token",
            error.to_string(),
            format!("{login} does not answer as Genesys does: check {place}, and whether a proxy answers instead"),
        ),
    }
}

fn is_of_this_machine(host: &str) -> bool {
    Url::parse(&format!("http://{host}")).is_ok_and(|url| is_loopback(&url))
}

fn with_token(subject: &str, places: &Places, found: &TokenSurvey) -> Vec<Finding> {
    let mut findings = vec![lifetime(subject, found.lifetime)];
    let privileges = privileges(subject, &places.pack, &found.privileges);
    // A token that may not read cannot show whether contacts can be read.
    let may_read = !matches!(&found.privileges, Err(upstream::Error::Privileges { .. }));
    findings.push(privileges);
    if may_read {
        findings.push(reading(subject, &found.reading));
    }
    findings.push(rate(subject, found.rate));
    findings.extend(found.clock_offset_ms.map(|offset| clock_of(subject, offset)));
    findings.push(events::source(subject, found.transports.as_ref(), &places.target, &places.pack));
    findings.push(audits(subject, &found.audits));
    findings
}

fn lifetime(subject: &str, lifetime: Duration) -> Finding {
    const CHECK: &str = "genesys.token";
    let detail = format!("valid for {} min", lifetime.as_secs() / 60);
    if lifetime < SHORT_LIFETIME {
        let advice = "raise the token duration of the OAuth client: each renewal costs three requests";
        return Finding::warning(CHECK, subject, detail, advice);
    }
    Finding::ok(CHECK, subject, detail)
}

fn privileges(subject: &str, pack: &str, privileges: &Result<(), upstream::Error>) -> Finding {
    const CHECK: &str = "genesys.permissions";
    match privileges {
        Ok(()) => Finding::ok(CHECK, subject, "all that is required, and nothing that is forbidden"),
        Err(upstream::Error::Privileges { reason }) => {
            let advice = if reason.contains("holds the forbidden") {
                format!(
                    "remove the permission from the roles of the OAuth client: a cache only reads, so it needs a role of its own \
                     ({pack}/README.md)"
                )
            } else {
                format!("add the permission to the role of the OAuth client ({pack}/README.md)")
            };
            Finding::failed(CHECK, subject, reason.to_string(), advice)
        }
        Err(error @ upstream::Error::Throttled { .. }) => throttled(CHECK, subject, error),
        Err(error) => {
            let detail = format!("could not be checked: {error}");
            Finding::failed(CHECK, subject, detail, "allow /api/v2/tokens/me and /api/v2/authorization/subjects/me")
        }
    }
}

fn reading(subject: &str, reading: &Result<(), upstream::Error>) -> Finding {
    const CHECK: &str = "genesys.reading";
    match reading {
        Ok(()) => Finding::ok(CHECK, subject, "contacts can be read"),
        Err(error @ upstream::Error::Denied { .. }) => {
            let advice = "assign the role to the OAuth client in the divisions of the contacts";
            Finding::failed(CHECK, subject, error.to_string(), advice)
        }
        Err(error @ upstream::Error::Throttled { .. }) => throttled(CHECK, subject, error),
        Err(error) => Finding::failed(
            CHECK,
            subject,
            error.to_string(),
            "Genesys fails: look at its status page, and profile_path",
        ),
    }
}

fn throttled(check: &'static str, subject: &str, error: &upstream::Error) -> Finding {
    let advice = "something else spends the limit of this OAuth client: give the cache a client of its own";
    Finding::warning(check, subject, error.to_string(), advice)
}

fn rate(subject: &str, rate: Option<(u64, u64)>) -> Finding {
    const CHECK: &str = "genesys.rate";
    match rate {
        None => Finding::ok(CHECK, subject, "no answer was limited"),
        Some((count, allowed)) if count.saturating_mul(5) >= allowed.saturating_mul(4) => {
            let detail = format!("{count} of {allowed} requests of this minute are used");
            let advice = "lower requests_per_minute, or give other programs OAuth clients of their own";
            Finding::warning(CHECK, subject, detail, advice)
        }
        Some((count, allowed)) => Finding::ok(CHECK, subject, format!("{count} of {allowed} requests of this minute")),
    }
}

fn clock_of(subject: &str, offset_ms: i64) -> Finding {
    const CHECK: &str = "machine.clock";
    let detail = format!("{:.0} s from the clock of Genesys", offset_ms as f64 / 1_000.0);
    let advice = "synchronise the clock of this machine (NTP): events with a time in the future lose it, and signed \
                  webhooks are refused";
    match offset_ms.abs() {
        CLOCK_FAILURE_MS.. => Finding::failed(CHECK, subject, detail, advice),
        CLOCK_WARNING_MS.. => Finding::warning(CHECK, subject, detail, advice),
        _ => Finding::ok(CHECK, subject, detail),
    }
}

fn audits(subject: &str, audits: &Result<bool, upstream::Error>) -> Finding {
    const CHECK: &str = "genesys.audits";
    let detail = match audits {
        Ok(true) => {
            "the audit service covers external contacts: `profile-edge replay --from-genesys --since 2h` finds changes \
                     whose events were lost, and a [[tenant.source]] does so after each gap"
                .to_owned()
        }
        Ok(false) => "the audit service does not cover external contacts; nothing needs it".to_owned(),
        Err(upstream::Error::Denied { .. }) => {
            "the client may not read audits; only `profile-edge replay --from-genesys`, and a [[tenant.source]] after a \
             gap, use them (audits:audit:view)"
                .to_owned()
        }
        Err(error) => format!("the audit service gives no answer; nothing needs it: {error}"),
    };
    Finding::ok(CHECK, subject, detail)
}
