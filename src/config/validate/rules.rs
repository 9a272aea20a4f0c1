//! Rules that several sections share.

use url::Url;

use crate::invalid::InvalidSetting;
use crate::tls::is_loopback;

use super::super::Config;
use super::super::error::SettingError;

pub(super) fn jitter(path: &str, jitter: f64, found: &mut Vec<SettingError>) {
    if !(0.0..=0.5).contains(&jitter) {
        found.push(SettingError::new(path, "must be from 0 to 0.5"));
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
