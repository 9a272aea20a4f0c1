//! `POST /api/v2/audits/query/realtime`: who changed which external contacts, in the last 14 days.
//!
//! The request and the answer are Genesys' `AuditRealtimeQueryRequest` and `AuditRealtimeQueryResultsResponse`. The
//! audits of a time span come in pages. A page is the last one if it says so by `pageCount`, or, without that field, if it is
//! empty.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::Timestamp;

use super::Error;

/// How long Genesys answers questions about an audit.
pub const KEPT: Duration = Duration::from_secs(14 * 24 * 3600);

/// The number of audits in a page.
pub const PAGE_SIZE: u32 = 100;

/// The name of the service of contacts in audits.
pub(super) const EXTERNAL_CONTACTS: &str = "ExternalContacts";

/// A page of the audits of contacts in a time span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditQuery {
    /// The start of the time span. A part of a second is cut off.
    pub since: Timestamp,
    /// Its end. A part of a second is rounded up.
    pub until: Timestamp,
    /// The page, from 1.
    pub page: u32,
}

/// The audits of one page.
pub struct AuditPage {
    /// The audits, each one JSON object: Genesys' `AuditLogMessage`.
    pub audits: Vec<Box<RawValue>>,
    /// The number of audits in the time span, if the answer names it.
    pub total: Option<u64>,
    /// Whether no page follows.
    pub is_last: bool,
}

impl fmt::Debug for AuditPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Audits hold names.
        write!(f, "AuditPage({} audits)", self.audits.len())
    }
}

/// Genesys' `AuditRealtimeQueryRequest`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuditRequest {
    interval: String,
    service_name: &'static str,
    filters: [AuditFilter; 1],
    sort: [AuditSort; 1],
    page_number: u32,
    page_size: u32,
}

#[derive(Debug, Serialize)]
struct AuditFilter {
    property: &'static str,
    value: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AuditSort {
    name: &'static str,
    sort_order: &'static str,
}

impl AuditQuery {
    /// Returns the body of the request.
    pub(super) fn request(&self) -> AuditRequest {
        let second =
            |millis: i64| Timestamp::from_millis(millis.saturating_mul(1_000)).to_string().replace(".000Z", "Z");
        let since = second(self.since.as_millis().div_euclid(1_000));
        let until = second(self.until.as_millis().saturating_add(999).div_euclid(1_000));
        AuditRequest {
            interval: format!("{since}/{until}"),
            service_name: EXTERNAL_CONTACTS,
            filters: [AuditFilter { property: "EntityType", value: "Contact" }],
            // Audits that arrive during the query are appended, and move no page.
            sort: [AuditSort { name: "Timestamp", sort_order: "ascending" }],
            page_number: self.page,
            page_size: PAGE_SIZE,
        }
    }

    /// Parses the answer.
    pub(super) fn read(&self, body: &[u8]) -> Result<AuditPage, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct AuditAnswer {
            #[serde(default)]
            entities: Option<Vec<Box<RawValue>>>,
            #[serde(default)]
            total: Option<u64>,
            #[serde(default)]
            page_count: Option<u64>,
        }
        // An array would be taken for an object without members. The text of a parse error may repeat the body.
        let object = body.trim_ascii_start().starts_with(b"{").then_some(body);
        let answer: AuditAnswer = object
            .and_then(|body| serde_json::from_slice(body).ok())
            .ok_or(Error::Unusable { reason: "not a page of audits" })?;
        let audits = answer.entities.unwrap_or_default();
        let is_last = audits.is_empty() || answer.page_count.is_some_and(|pages| u64::from(self.page) >= pages);
        Ok(AuditPage { audits, total: answer.total, is_last })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn query(page: u32) -> AuditQuery {
        let since = Timestamp::from_millis(1_741_064_767_500);
        AuditQuery { since, until: since.plus(Duration::from_secs(60)), page }
    }

    #[test]
    fn a_query_covers_whole_seconds_oldest_first() {
        let body = serde_json::to_value(query(2).request()).unwrap();
        assert_eq!(body["interval"], "2025-03-04T05:06:07Z/2025-03-04T05:07:08Z");
        assert_eq!((&body["serviceName"], &body["pageNumber"]), (&json!("ExternalContacts"), &json!(2)));
        assert_eq!(body["filters"], json!([{ "property": "EntityType", "value": "Contact" }]));
        assert_eq!(body["sort"], json!([{ "name": "Timestamp", "sortOrder": "ascending" }]));
    }

    #[test]
    fn a_page_is_the_last_by_its_count_or_when_it_is_empty() {
        let is_last = |page, body: serde_json::Value| query(page).read(body.to_string().as_bytes()).unwrap().is_last;
        assert!(!is_last(1, json!({ "entities": [{}], "pageCount": 2 })));
        assert!(is_last(2, json!({ "entities": [{}], "pageCount": 2 })));
        assert!(!is_last(1, json!({ "entities": [{}] })));
        assert!(is_last(3, json!({ "entities": [], "pageCount": 9 })));
        assert!(is_last(1, json!({ "entities": null })) && is_last(1, json!({})));
        assert!(query(1).read(b"[]").is_err());
    }

    #[test]
    fn a_page_cannot_be_printed() {
        let page = query(1).read(br#"{"entities":[{"entity":{"name":"planted"}}]}"#).unwrap();
        assert!(!format!("{page:?}").contains("planted"));
    }
}
