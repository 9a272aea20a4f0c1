//! The URLs of one tenant's Genesys: a region or two base URLs, and the path of a profile.
//!
//! All errors in them are found here, before the first request.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use crate::domain::CustomerId;
use crate::invalid::InvalidSetting;

use super::privileges::IntrospectionUrls;
use super::search::SearchUrls;
use super::{Error, Expand};

/// The part of a path template that is replaced by the customer id.
const PLACEHOLDER: &str = "{customer_id}";

/// The characters of a customer id that are percent-encoded: all but the unreserved ones (RFC 3986 section 2.3). So an
/// id is always exactly one path segment, and Genesys decodes it to the same id.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The regions of Genesys Cloud and their domains, as the official SDKs list them.
const REGIONS: [(&str, &str); 18] = [
    ("us_east_1", "mypurecloud.com"),
    ("eu_west_1", "mypurecloud.ie"),
    ("ap_southeast_2", "mypurecloud.com.au"),
    ("ap_northeast_1", "mypurecloud.jp"),
    ("eu_central_1", "mypurecloud.de"),
    ("us_west_2", "usw2.pure.cloud"),
    ("ca_central_1", "cac1.pure.cloud"),
    ("ap_northeast_2", "apne2.pure.cloud"),
    ("eu_west_2", "euw2.pure.cloud"),
    ("ap_south_1", "aps1.pure.cloud"),
    ("us_east_2", "use2.us-gov-pure.cloud"),
    ("sa_east_1", "sae1.pure.cloud"),
    ("me_central_1", "mec1.pure.cloud"),
    ("ap_northeast_3", "apne3.pure.cloud"),
    ("eu_central_2", "euc2.pure.cloud"),
    ("mx_central_1", "mxc1.pure.cloud"),
    ("ap_southeast_1", "apse1.pure.cloud"),
    ("eusc_de_east_1", "edee1.eusc-pure.cloud"),
];

/// The two base URLs of a tenant's Genesys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrls {
    /// Of the API.
    pub api: Url,
    /// Of the token endpoint.
    pub login: Url,
}

impl BaseUrls {
    /// Derives them from the region, or takes the given URLs.
    ///
    /// # Errors
    ///
    /// Neither or both are given, the region is unknown, or a path cannot be appended to a URL.
    pub(super) fn find(region: Option<&str>, api: Option<&Url>, login: Option<&Url>) -> Result<Self, InvalidSetting> {
        const REGION: &str = "region";
        const API: &str = "api_url";
        const LOGIN: &str = "login_url";
        match (region, api, login) {
            (Some(region), None, None) => {
                let domain = domain(region).map_err(|reason| InvalidSetting::new(REGION, reason))?;
                let base = |host| {
                    let url = format!("https://{host}.{domain}");
                    Url::parse(&url).map_err(|error| InvalidSetting::new(REGION, error.to_string()))
                };
                Ok(Self { api: base("api")?, login: base("login")? })
            }
            (None, Some(api), Some(login)) => {
                Ok(Self { api: checked_base(API, api)?, login: checked_base(LOGIN, login)? })
            }
            (Some(_), _, _) => Err(InvalidSetting::new(REGION, "give a region, or api_url and login_url, not both")),
            (None, None, None) => Err(InvalidSetting::new(REGION, "give a region, or api_url and login_url")),
            (None, None, Some(_)) => Err(InvalidSetting::new(API, "is missing: login_url alone is not enough")),
            (None, Some(_), None) => Err(InvalidSetting::new(LOGIN, "is missing: api_url alone is not enough")),
        }
    }

    /// Returns the hosts of the two.
    pub(super) fn hosts(self) -> [String; 2] {
        [self.api, self.login].map(|url| url.host_str().unwrap_or_default().to_owned())
    }

    /// Returns whether one of the two needs TLS.
    pub(super) fn need_tls(&self) -> bool {
        [&self.api, &self.login].iter().any(|url| url.scheme() == "https")
    }

    /// Returns the URL of the token endpoint (RFC 6749 section 3.2).
    pub(super) fn token(&self) -> Result<Url, InvalidSetting> {
        Url::parse(&format!("{}/oauth/token", trimmed(&self.login)))
            .map_err(|error| InvalidSetting::new("login_url", error.to_string()))
    }

    /// Returns the URL of the bulk request for contacts.
    pub(super) fn bulk(&self) -> Result<Url, InvalidSetting> {
        self.api("/api/v2/externalcontacts/bulk/contacts")
    }

    /// Returns the URLs of searches for contacts.
    pub(super) fn searches(&self) -> Result<SearchUrls, InvalidSetting> {
        Ok(SearchUrls {
            identifier: self.api("/api/v2/externalcontacts/identifierlookup/contacts")?,
            reverse: self.api("/api/v2/externalcontacts/reversewhitepageslookup")?,
            contacts: self.api("/api/v2/externalcontacts/contacts")?,
        })
    }

    fn api(&self, path: &str) -> Result<Url, InvalidSetting> {
        Url::parse(&format!("{}{path}", trimmed(&self.api)))
            .map_err(|error| InvalidSetting::new("api_url", error.to_string()))
    }

    /// Returns the URL of queries about audits.
    pub(super) fn audits(&self) -> Result<Url, InvalidSetting> {
        Url::parse(&format!("{}/api/v2/audits/query/realtime", trimmed(&self.api)))
            .map_err(|error| InvalidSetting::new("api_url", error.to_string()))
    }

    /// Returns the URLs of the documents about a token.
    pub(super) fn introspection(&self) -> Result<IntrospectionUrls, InvalidSetting> {
        let (token, subject) = ("/api/v2/tokens/me", "/api/v2/authorization/subjects/me");
        Ok(IntrospectionUrls { token: self.api(token)?, subject: self.api(subject)? })
    }
}

/// Builds the URL of a profile.
#[derive(Clone, Debug)]
pub(super) struct ProfileUrl {
    before: String,
    after: String,
}

impl ProfileUrl {
    /// Parses a path template.
    ///
    /// # Errors
    ///
    /// The template does not start with `/`, has a fragment, or does not hold the placeholder exactly once.
    pub(super) fn new(api: &Url, template: &str) -> Result<Self, InvalidSetting> {
        let bad = |reason: &'static str| InvalidSetting::new("profile_path", reason);
        if !template.starts_with('/') {
            return Err(bad("must start with '/'"));
        }
        if template.contains('#') {
            return Err(bad("must not have a fragment: it would never be sent"));
        }
        match template.split_once(PLACEHOLDER) {
            Some((before, after)) if !after.contains(PLACEHOLDER) => {
                Ok(Self { before: format!("{}{before}", trimmed(api)), after: after.to_owned() })
            }
            Some(_) | None => Err(bad("must contain {customer_id} exactly once")),
        }
    }

    /// Returns the URL of this customer's profile, with the fields to expand.
    pub(super) fn of(&self, customer: &CustomerId, expand: Option<&Expand>) -> Result<Url, Error> {
        let segment = utf8_percent_encode(customer.expose(), SEGMENT);
        let url = format!("{}{segment}{}", self.before, self.after);
        // The base is a URL and the segment is encoded, so this does not fail. The parse error is dropped because it
        // would repeat the customer id.
        let mut url = Url::parse(&url).map_err(|_| Error::Unreachable(None))?;
        if let Some(expand) = expand {
            url.query_pairs_mut().append_pair("expand", expand.as_str());
        }
        Ok(url)
    }
}

fn domain(region: &str) -> Result<&'static str, String> {
    if let Some((_, domain)) = REGIONS.iter().find(|(name, _)| *name == region) {
        return Ok(domain);
    }
    if let Some((name, _)) =
        REGIONS.iter().find(|(_, domain)| region == *domain || region.ends_with(&format!(".{domain}")))
    {
        return Err(format!("must be the name of a region, not its domain: use {name}"));
    }
    let likeness = |name: &str| strsim::jaro_winkler(name, region);
    let nearest = REGIONS.iter().map(|(name, _)| *name).max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    Err(format!("no such region; the nearest is {}", nearest.unwrap_or_default()))
}

fn checked_base(field: &'static str, url: &Url) -> Result<Url, InvalidSetting> {
    let bad = |reason: &'static str| Err(InvalidSetting::new(field, reason));
    if !matches!(url.scheme(), "http" | "https") {
        bad("must be an http or https URL")
    } else if !url.username().is_empty() || url.password().is_some() {
        bad("must not hold credentials: give client_id and client_secret")
    } else if url.query().is_some() || url.fragment().is_some() {
        bad("must not have a query or a fragment: a path is appended to it")
    } else {
        Ok(url.clone())
    }
}

fn trimmed(base: &Url) -> &str {
    base.as_str().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn profile_url(api: &str, template: &str, id: &str) -> String {
        ProfileUrl::new(&url(api), template).unwrap().of(&id.parse().unwrap(), None).unwrap().to_string()
    }

    #[test]
    fn a_region_gives_both_urls() {
        let urls = BaseUrls::find(Some("eu_central_1"), None, None).unwrap();
        assert_eq!(
            urls,
            BaseUrls { api: url("https://api.mypurecloud.de"), login: url("https://login.mypurecloud.de") }
        );
        assert!(urls.need_tls());
        assert_eq!(urls.token().unwrap().as_str(), "https://login.mypurecloud.de/oauth/token");
    }

    #[test]
    fn every_region_gives_urls() {
        for (region, domain) in REGIONS {
            let urls = BaseUrls::find(Some(region), None, None).unwrap();
            assert_eq!(urls.api.host_str(), Some(format!("api.{domain}").as_str()));
        }
    }

    #[test]
    fn an_unknown_region_names_the_nearest() {
        let error = BaseUrls::find(Some("eu-central-1"), None, None).unwrap_err();
        assert_eq!(error.to_string(), "region: no such region; the nearest is eu_central_1");
    }

    #[test]
    fn a_domain_or_an_aws_name_for_a_region_is_answered_with_the_region() {
        for (given, region) in [
            ("mypurecloud.com", "us_east_1"),
            ("api.mypurecloud.de", "eu_central_1"),
            ("mypurecloud.com.au", "ap_southeast_2"),
            ("usw2.pure.cloud", "us_west_2"),
            ("us-east-1", "us_east_1"),
        ] {
            let error = BaseUrls::find(Some(given), None, None).unwrap_err();
            assert!(error.reason.ends_with(&format!(" {region}")), "{given}: {error}");
        }
    }

    #[test]
    fn a_region_and_urls_exclude_each_other() {
        let (api, login) = (url("http://127.0.0.1:1"), url("http://127.0.0.1:2"));
        let field = |region, api, login| BaseUrls::find(region, api, login).unwrap_err().field;
        assert_eq!(field(None, None, None), "region");
        assert_eq!(field(Some("us_east_1"), Some(&api), Some(&login)), "region");
        assert_eq!(field(Some("us_east_1"), None, Some(&login)), "region");
        assert_eq!(field(None, Some(&api), None), "login_url");
        assert_eq!(field(None, None, Some(&login)), "api_url");
        assert!(!BaseUrls::find(None, Some(&api), Some(&login)).unwrap().need_tls());
    }

    #[test]
    fn a_url_that_is_not_a_base_is_refused() {
        let good = url("https://gateway.example/login/");
        for bad in ["ftp://h", "data:,x", "https://user@h", "https://:pass@h", "https://h?a=b", "https://h#f"] {
            let error = BaseUrls::find(None, Some(&url(bad)), Some(&good)).unwrap_err();
            assert_eq!(error.field, "api_url", "{bad}");
        }
    }

    #[test]
    fn paths_are_appended_to_a_base_with_a_path() {
        let gateway = url("https://gateway.example/login/");
        let urls = BaseUrls::find(None, Some(&gateway), Some(&gateway)).unwrap();
        assert_eq!(urls.token().unwrap().as_str(), "https://gateway.example/login/oauth/token");
        let profile = profile_url("https://gateway.example/cache/", "/v2/{customer_id}/x?expand=division", "a");
        assert_eq!(profile, "https://gateway.example/cache/v2/a/x?expand=division");
    }

    #[test]
    fn a_bad_template_is_refused() {
        for template in ["", "contacts/{customer_id}", "/contacts", "/{customer_id}/{customer_id}", "/#{customer_id}"] {
            let error = ProfileUrl::new(&url("http://h"), template).unwrap_err();
            assert_eq!(error.field, "profile_path", "{template}");
        }
    }

    #[test]
    fn fields_to_expand_are_added_to_the_query() {
        let expanded = |template| {
            let expand = Expand::parse("expand=b,a").unwrap();
            ProfileUrl::new(&url("http://h"), template).unwrap().of(&"c".parse().unwrap(), expand.as_ref()).unwrap()
        };
        assert_eq!(expanded("/{customer_id}").as_str(), "http://h/c?expand=a%2Cb");
        assert_eq!(expanded("/{customer_id}?x=1").as_str(), "http://h/c?x=1&expand=a%2Cb");
    }

    #[test]
    fn an_id_is_one_encoded_segment() {
        let path = |id| profile_url("http://h", "/c/{customer_id}", id);
        assert_eq!(path("a b"), "http://h/c/a%20b");
        assert_eq!(path("é"), "http://h/c/%C3%A9");
        assert_eq!(path("a+b"), "http://h/c/a%2Bb");
        assert_eq!(path("x@y.z"), "http://h/c/x%40y.z");
        assert_eq!(path("a;b=c&d:e"), "http://h/c/a%3Bb%3Dc%26d%3Ae");
        assert_eq!(path("..."), "http://h/c/...");
    }

    proptest! {
        #[test]
        fn every_id_is_one_segment_and_decodes_to_itself(id in "[^\\p{Cc}/\\\\?#%]{1,60}") {
            prop_assume!(id != "." && id != "..");
            let url = url(&profile_url("http://h", "/c/{customer_id}/x", &id));
            let segments: Vec<_> = url.path_segments().unwrap().collect();
            prop_assert_eq!(segments.len(), 3);
            prop_assert_eq!(percent_encoding::percent_decode_str(segments[1]).decode_utf8().unwrap(), id);
        }
    }
}
