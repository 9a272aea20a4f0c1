//! The audit log: who changed which contact.
//!
//! A change is audited whether or not it posts an event, and at once; at Genesys an audit may appear later.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::Timestamp;

use super::contact::ContactView;
use super::errors::ApiError;
use super::fields::Fields;
use super::oauth::{ClientKind, ORGANISATION};
use super::shapes;

/// The limit of audits.
const MAX_AUDITS: usize = 100_000;

/// How long an audit can be asked for.
const KEPT: Duration = Duration::from_secs(14 * 24 * 3_600);

/// The size of a page, if a query names none, and the largest one.
const PAGE_SIZE: u64 = 25;
const MAX_PAGE_SIZE: u64 = 500;

/// The service and the type of the audited entities.
pub(super) const SERVICE: &str = "ExternalContacts";
pub(super) const ENTITY_TYPE: &str = "Contact";

/// What a client did to a contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AuditedAction {
    Create,
    Update,
    Delete,
}

impl AuditedAction {
    /// All actions.
    pub(super) const ALL: [Self; 3] = [Self::Create, Self::Update, Self::Delete];

    /// Returns the name.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "Create",
            Self::Update => "Update",
            Self::Delete => "Delete",
        }
    }
}

/// The audits, oldest first.
#[derive(Default)]
pub(super) struct AuditLog(Mutex<AuditEntries>);

#[derive(Default)]
struct AuditEntries {
    audits: VecDeque<Audit>,
    queries: u64,
}

struct Audit {
    id: Uuid,
    at: Timestamp,
    client: ClientKind,
    action: AuditedAction,
    contact: Uuid,
    name: String,
}

/// A query about audits.
pub(super) struct AuditQuery {
    since: Timestamp,
    until: Timestamp,
    /// Values that audits must have, by property.
    filters: Vec<(String, String)>,
    is_about_contacts: bool,
    is_descending: bool,
    page: u64,
    size: u64,
}

impl AuditLog {
    /// Records a change.
    pub(super) fn record(&self, client: ClientKind, action: AuditedAction, view: &ContactView, at: Timestamp) {
        let mut entries = self.0.lock();
        if entries.audits.len() >= MAX_AUDITS {
            entries.audits.pop_front();
        }
        let (id, name) = (Uuid::new_v4(), shapes::full_name(view));
        entries.audits.push_back(Audit { id, at, client, action, contact: view.id, name });
    }

    /// Counts a query.
    pub(super) fn count_query(&self) {
        self.0.lock().queries += 1;
    }

    /// Returns the number of queries since start.
    pub(super) fn queries(&self) -> u64 {
        self.0.lock().queries
    }

    /// Returns the answer to a query: Genesys' `AuditRealtimeQueryResultsResponse`.
    pub(super) fn answer(&self, query: &AuditQuery) -> Value {
        let entries = self.0.lock();
        let mut found: Vec<&Audit> = entries.audits.iter().filter(|audit| query.selects(audit)).collect();
        if query.is_descending {
            found.reverse();
        }
        let total = found.len() as u64;
        let skipped = usize::try_from((query.page - 1).saturating_mul(query.size)).unwrap_or(usize::MAX);
        let entities: Vec<Value> =
            found.into_iter().skip(skipped).take(query.size as usize).map(Audit::shown).collect();
        json!({
            "entities": entities, "pageSize": query.size, "pageNumber": query.page, "total": total,
            "pageCount": total.div_ceil(query.size),
        })
    }
}

impl Audit {
    /// Returns Genesys' `AuditLogMessage`.
    fn shown(&self) -> Value {
        json!({
            "id": self.id, "userHomeOrgId": ORGANISATION, "user": { "id": "" }, "client": { "id": self.client.id() },
            "remoteIp": ["127.0.0.1"], "serviceName": SERVICE, "level": "USER", "eventDate": self.at.to_string(),
            "action": self.action.as_str(), "entity": {
                "id": self.contact, "name": self.name, "selfUri": format!("{}/{}", shapes::CONTACTS, self.contact),
            },
            "entityType": ENTITY_TYPE, "status": "SUCCESS", "application": "", "initiatingAction": {},
            "transactionInitiator": false, "propertyChanges": [], "context": {}, "entityChanges": [],
        })
    }
}

impl AuditQuery {
    /// Parses a query: Genesys' `AuditRealtimeQueryRequest`.
    pub(super) fn parse(fields: &Fields, now: Timestamp) -> Result<Self, ApiError> {
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        let interval = ApiError::bad_request("interval must be two ISO 8601 times in UTC, separated by a slash");
        let time = |text: &str| text.parse::<jiff::Timestamp>().ok().map(|time| time.as_millisecond());
        let (since, until) = text("interval").and_then(|interval| interval.split_once('/')).ok_or(interval)?;
        let times = time(since).zip(time(until)).map(|(a, b)| (Timestamp::from_millis(a), Timestamp::from_millis(b)));
        let (since, until) = times
            .filter(|(since, until)| since <= until)
            .ok_or(ApiError::bad_request("interval must be two ISO 8601 times in UTC, the earlier one first"))?;
        // Queries name whole seconds.
        if since.plus(Duration::from_secs(1)) < now.minus(KEPT) {
            return Err(ApiError::bad_request("interval must be in the last 14 days"));
        }
        let service = text("serviceName").ok_or(ApiError::bad_request("serviceName is missing"))?;
        let number = |name: &str, default: u64| fields.get(name).map_or(Some(default), Value::as_u64);
        let page = number("pageNumber", 1).filter(|page| *page >= 1);
        let size = number("pageSize", PAGE_SIZE).filter(|size| (1..=MAX_PAGE_SIZE).contains(size));
        let (page, size) =
            page.zip(size).ok_or(ApiError::bad_request("pageNumber must be 1 or more, pageSize from 1 to 500"))?;
        let filters = fields.get("filters").and_then(Value::as_array).into_iter().flatten();
        let filter =
            |filter: &Value| Some((filter["property"].as_str()?.to_owned(), filter["value"].as_str()?.to_owned()));
        Ok(Self {
            since,
            until,
            filters: filters.filter_map(filter).collect(),
            is_about_contacts: service == SERVICE,
            is_descending: fields.get("sort").is_some_and(|sort| sort[0]["sortOrder"] == "descending"),
            page,
            size,
        })
    }

    fn selects(&self, audit: &Audit) -> bool {
        let has = |(property, value): &(String, String)| match property.as_str() {
            "EntityType" => value == ENTITY_TYPE,
            "EntityId" => *value == audit.contact.to_string(),
            "Action" => value == audit.action.as_str(),
            "ClientId" => value == audit.client.id(),
            // No user changes anything here.
            _ => false,
        };
        self.is_about_contacts && (self.since..=self.until).contains(&audit.at) && self.filters.iter().all(has)
    }
}
