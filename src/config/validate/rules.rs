//! Rules that several sections share.

use std::time::Duration;

use url::Url;

use crate::invalid::InvalidSetting;
use crate::lookup;
use crate::tls::is_loopback;

use super::super::Config;
use super::super::error::SettingError;

pub(super) fn positive(path: &str, time: Duration, found: &mut Vec<SettingError>) {
    if time.is_zero() {
        found.push(SettingError::new(path, "must be longer than zero"));
    }
}

/// Checks the times of `[lookup]`, or those of a tenant; what a tenant has `inherited` is checked there.
pub(super) fn lookup_times(
    section: &str,
    times: &lookup::Config,
    inherited: Option<&lookup::Config>,
    found: &mut Vec<SettingError>,
) {
    let inherited_times = inherited.map(lookup::Config::positive_times);
    for (index, (name, time)) in times.positive_times().into_iter().enumerate() {
        if inherited_times.is_none_or(|inherited| inherited[index].1 != time) {
            positive(&format!("{section}.{name}"), time, found);
        }
    }
    if !(0.0..=0.5).contains(&times.ttl_jitter) && inherited.is_none_or(|common| common.ttl_jitter != times.ttl_jitter)
    {
        found.push(SettingError::new(format!("{section}.ttl_jitter"), "must be from 0 to 0.5"));
    }
}

/// Refuses sizes with which nothing could work.
pub(super) fn sizes(config: &Config, found: &mut Vec<SettingError>) {
    for (path, size) in [
        ("http.max_body", config.http.max_body),
        ("store.embedded.max_bytes", config.store.embedded.max_bytes),
        ("queue.embedded.max_bytes", config.queue.embedded.max_bytes),
    ] {
        if size.as_u64() == 0 {
            found.push(SettingError::new(path, "must be above zero"));
        }
    }
}

/// Returns the error of a setting of `section`.
pub(super) fn invalid(section: &str, error: InvalidSetting) -> SettingError {
    let InvalidSetting { field, reason } = error.within(section);
    SettingError::new(field, reason)
}

/// Refuses a connection to another host that is not encrypted.
pub(super) fn plain_link(config: &Config, path: &str, url: &Url, encrypted: &str, found: &mut Vec<SettingError>) {
    if config.security.require_tls && url.scheme() != encrypted && !is_loopback(url) {
        let reason = format!(
            "is a plain {} connection to another host: use {encrypted}, or set security.require_tls = false",
            url.scheme()
        );
        found.push(SettingError::new(path, reason));
    }
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
