//! The certificates in the files of the configuration: until when they are valid.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::clock::SharedClock;
use crate::config::Config;

use super::Finding;

const CHECK: &str = "certificate";

/// How many days before its end a certificate should have been renewed.
const RENEW_DAYS: i64 = 21;

const DAY: i64 = 86_400;

/// Examines every certificate file.
pub(super) fn examine(config: &Config, clock: &SharedClock) -> Vec<Finding> {
    let now = clock.now().as_millis() / 1_000;
    files(config).into_iter().flat_map(|(option, path)| file(option, path, now)).collect()
}

fn files(config: &Config) -> Vec<(&'static str, &PathBuf)> {
    let (http, admin) = (&config.http.tls, &config.admin.tls);
    let (redis, memcached, amqp) = (&config.store.redis.tls, &config.store.memcached.tls, &config.queue.amqp.tls);
    let named = [
        ("http.tls.cert", &http.cert),
        ("http.tls.client_ca", &http.client_ca),
        ("admin.tls.cert", &admin.cert),
        ("admin.tls.client_ca", &admin.client_ca),
        ("store.redis.tls.ca", &redis.ca),
        ("store.redis.tls.cert", &redis.cert),
        ("store.memcached.tls.ca", &memcached.ca),
        ("store.memcached.tls.cert", &memcached.cert),
        ("queue.amqp.tls.ca", &amqp.ca),
        ("queue.amqp.tls.cert", &amqp.cert),
        ("telemetry.tls.ca", &config.telemetry.tls.ca),
        ("telemetry.tls.cert", &config.telemetry.tls.cert),
    ];
    named.into_iter().filter_map(|(option, path)| Some((option, path.as_ref()?))).collect()
}

fn file(option: &'static str, path: &Path, now: i64) -> Vec<Finding> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let Ok(found) = found else {
        let detail = format!("{} cannot be read as PEM certificates", path.display());
        return vec![Finding::failed(CHECK, option, detail, "check the path and its permissions")];
    };
    let ends = found.iter().filter_map(validity);
    // The first to end counts.
    let Some((from, until)) = ends.min_by_key(|(_, until)| *until) else {
        let detail = format!("{} has no readable certificate", path.display());
        return vec![Finding::failed(CHECK, option, detail, "replace the file")];
    };
    vec![judge(option, path, from, until, now)]
}

/// Returns the seconds since the epoch at which a certificate begins and ends to be valid.
fn validity(certificate: &CertificateDer<'static>) -> Option<(i64, i64)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let validity = parsed.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

fn judge(option: &'static str, path: &Path, from: i64, until: i64, now: i64) -> Finding {
    let path = path.display();
    let days = (until - now).div_euclid(DAY);
    if now < from {
        let detail = format!("{path} is not valid yet");
        Finding::failed(CHECK, option, detail, "check the clock of this machine, then the certificate")
    } else if now >= until {
        let detail = format!("{path} ended {} days ago", (now - until) / DAY);
        Finding::failed(CHECK, option, detail, "renew the certificate, then send SIGHUP (listeners) or restart")
    } else if days < RENEW_DAYS {
        let detail = format!("{path} ends in {days} days");
        Finding::warning(CHECK, option, detail, "renew the certificate, then send SIGHUP (listeners) or restart")
    } else {
        Finding::ok(CHECK, option, format!("valid for {days} days"))
    }
}
