//! `[queue.amqp]`: the broker, and how it is used.

use std::time::Duration;

use serde::Deserialize;
use url::Url;

use crate::domain::Secret;
use crate::invalid::InvalidSetting;
use crate::tls::{TlsFiles, is_loopback};

/// The largest number of work queues.
const MAX_SHARDS: u16 = 256;

/// `[queue.amqp]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The broker, as an `amqp://` or `amqps://` URL. It is a secret, since it contains a password.
    pub url: Secret,
    /// Several nodes of one broker, tried in turn. If there are any, `url` is not used.
    #[serde(default)]
    pub urls: Vec<Secret>,
    /// The management API of the broker, which shows policies; absent: port 15672 of the broker (15671 with TLS).
    #[serde(default)]
    pub management_url: Option<Url>,
    /// `[queue.amqp.tls]`, for `amqps://` URLs.
    #[serde(default)]
    pub tls: TlsFiles,
    /// The prefix of the names of exchange, queues and stream.
    pub name: String,
    /// The number of work queues. An event goes to one of them by its first key.
    pub shards: u16,
    /// How many unsettled deliveries this process may have.
    pub prefetch: u16,
    /// The age at which a connection is replaced, where a URL contains a name.
    #[serde(with = "humantime_serde")]
    pub max_connection_age: Duration,
    /// The longest wait of a publish for the broker's confirms.
    #[serde(with = "humantime_serde")]
    pub publish_timeout: Duration,
    /// How long the journal keeps events.
    #[serde(with = "humantime_serde")]
    pub journal_retention: Duration,
    /// The key of the MAC in messages; absent: messages have none.
    #[serde(default)]
    pub mac_key: Option<Secret>,
    /// Other keys under which a MAC is valid, while keys are rotated.
    #[serde(default)]
    pub mac_previous: Vec<Secret>,
    /// Whether messages without a valid MAC become dead letters.
    pub mac_required: bool,
}

impl Config {
    /// Checks what the types cannot express.
    ///
    /// # Errors
    ///
    /// The first option that is not usable.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let refuse = |field, reason| Err(InvalidSetting::new(field, reason));
        let encrypted = self.addresses()?.iter().all(|url| url.scheme() == "amqps");
        match (&self.tls.cert, &self.tls.key) {
            (Some(_), None) => return refuse("tls.key", "is missing: tls.cert needs it"),
            (None, Some(_)) => return refuse("tls.cert", "is missing: tls.key needs it"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if self.tls.is_any() && !encrypted {
            return refuse("tls", "needs amqps:// addresses");
        }
        if let Some(url) = &self.management_url {
            if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
                return refuse(
                    "management_url",
                    "must be http://host:port or https://, without a user: it gets that of url",
                );
            }
            if encrypted && url.scheme() == "http" && !is_loopback(url) {
                return refuse(
                    "management_url",
                    "must be https:// beside amqps:// addresses: it gets the same password",
                );
            }
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(is_plain) {
            return refuse("name", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -");
        }
        if !(1..=MAX_SHARDS).contains(&self.shards) {
            return refuse("shards", "must be from 1 to 256");
        }
        if self.prefetch < self.shards {
            return refuse("prefetch", "must be from 1 to 65535, and not below queue.amqp.shards");
        }
        if self.max_connection_age < Duration::from_secs(1) {
            return refuse("max_connection_age", "must be 1s or longer");
        }
        if self.publish_timeout.is_zero() {
            return refuse("publish_timeout", "must be longer than zero");
        }
        for (field, mut keys) in
            [("mac_key", self.mac_key.as_slice().iter()), ("mac_previous", self.mac_previous.iter())]
        {
            if keys.any(|key| key.key_material().is_none()) {
                return refuse(field, "must be base64 of 32 bytes or more");
            }
        }
        if self.mac_required && self.mac_key.is_none() {
            return refuse("mac_key", "is missing: queue.amqp.mac_required needs it");
        }
        if self.journal_retention < Duration::from_secs(1) {
            return refuse("journal_retention", "must be one second or longer");
        }
        Ok(())
    }

    /// Returns the URLs in use, for the check which of them may be unencrypted.
    ///
    /// # Errors
    ///
    /// One of them is not an `amqp://` or `amqps://` URL.
    pub fn addresses(&self) -> Result<Vec<Url>, InvalidSetting> {
        let field = if self.urls.is_empty() { "url" } else { "urls" };
        let reason = "must be amqp://user:password@host:port/vhost or amqps://";
        let parse = |url: &Secret| {
            let url = Url::parse(url.expose()).ok().filter(|url| matches!(url.scheme(), "amqp" | "amqps"));
            url.filter(Url::has_host).ok_or_else(|| InvalidSetting::new(field, reason))
        };
        self.node_urls().iter().map(parse).collect()
    }

    /// Returns the URLs of the nodes, in the order in which they are tried.
    pub(super) fn node_urls(&self) -> &[Secret] {
        if self.urls.is_empty() { std::slice::from_ref(&self.url) } else { &self.urls }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(edit: impl FnOnce(&mut Config)) -> Option<String> {
        let mut config = Config {
            url: Secret::new("amqp://guest:planted@127.0.0.1:5672/%2f"),
            urls: Vec::new(),
            management_url: None,
            tls: TlsFiles::default(),
            name: "profile-edge".to_owned(),
            shards: 1,
            prefetch: 512,
            max_connection_age: Duration::from_secs(300),
            publish_timeout: Duration::from_secs(2),
            journal_retention: Duration::from_secs(7 * 86_400),
            mac_key: None,
            mac_previous: Vec::new(),
            mac_required: false,
        };
        edit(&mut config);
        config.validate().err().map(|error| {
            assert!(!error.to_string().contains("planted"), "{error}");
            error.field.into_owned()
        })
    }

    #[test]
    fn an_unusable_option_is_reported_with_its_path() {
        assert_eq!(refused(|_| ()), None);
        assert_eq!(refused(|config| config.tls.cert = Some("c.pem".into())).as_deref(), Some("tls.key"));
        assert_eq!(refused(|config| config.tls.ca = Some("c.pem".into())).as_deref(), Some("tls"));
        for url in ["ftp://broker", "http://guest:planted@broker:15672"] {
            let refused = refused(|config| config.management_url = url.parse().ok());
            assert_eq!(refused.as_deref(), Some("management_url"), "{url}");
        }
        let in_clear = |config: &mut Config| {
            config.url = Secret::new("amqps://guest:planted@broker/%2f");
            config.management_url = "http://broker:15672".parse().ok();
        };
        assert_eq!(refused(in_clear).as_deref(), Some("management_url"));
        for name in ["", "a b", "a/b"] {
            assert_eq!(refused(|config| config.name = name.to_owned()).as_deref(), Some("name"), "{name}");
        }
        assert_eq!(refused(|config| config.shards = 0).as_deref(), Some("shards"));
        assert_eq!(refused(|config| config.shards = 257).as_deref(), Some("shards"));
        assert_eq!(refused(|config| config.prefetch = 0).as_deref(), Some("prefetch"));
        assert_eq!(refused(|config| config.max_connection_age = Duration::ZERO).as_deref(), Some("max_connection_age"));
        assert_eq!(refused(|config| config.publish_timeout = Duration::ZERO).as_deref(), Some("publish_timeout"));
        assert_eq!(refused(|config| config.journal_retention = Duration::ZERO).as_deref(), Some("journal_retention"));
    }

    #[test]
    fn an_invalid_url_is_refused_without_being_shown() {
        for bad in ["planted", "http://planted@host", "amqp:planted", "amqp://u:planted@host:port"] {
            assert_eq!(refused(|config| config.url = Secret::new(bad)).as_deref(), Some("url"), "{bad}");
            assert_eq!(refused(|config| config.urls = vec![Secret::new(bad)]).as_deref(), Some("urls"), "{bad}");
        }
    }
}
