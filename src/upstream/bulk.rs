//! `POST /api/v2/externalcontacts/bulk/contacts`: the contacts of many ids with one request.
//!
//! The answer has one result for each id, in no particular order. A merged id may be named by itself or by its canonical
//! contact, so a result is assigned only by an id that is equal. An id without a result is absent, but only if every
//! result was assigned. What cannot be read is [`Error::Unusable`], and the [guard](super::guard) fetches it alone.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::{CustomerId, Profile};

use super::{Error, Fetched};

/// A request for many contacts.
#[derive(Debug, Serialize)]
pub(super) struct BulkRequest<'a> {
    entities: Vec<BulkEntity<'a>>,
}

#[derive(Debug, Serialize)]
struct BulkEntity<'a> {
    id: &'a str,
}

#[derive(Deserialize)]
struct BulkAnswer<'a> {
    #[serde(borrow)]
    results: Vec<BulkResult<'a>>,
}

#[derive(Deserialize)]
struct BulkResult<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    status: Option<u16>,
    #[serde(borrow, default)]
    entity: Option<&'a RawValue>,
}

impl<'a> BulkRequest<'a> {
    /// Creates the request for these customers.
    pub(super) fn of(customers: &'a [CustomerId]) -> Self {
        Self { entities: customers.iter().map(|customer| BulkEntity { id: customer.expose() }).collect() }
    }
}

/// Assigns the results of an answer to the customers that were asked for; `read_profile` parses one contact.
pub(super) fn assign(
    body: &[u8],
    customers: &[CustomerId],
    read_profile: impl Fn(Bytes) -> Result<Profile, Error>,
) -> Result<Vec<Result<Fetched, Error>>, Error> {
    // The text of a parse error may repeat the body.
    let answer: BulkAnswer<'_> =
        serde_json::from_slice(body).map_err(|_| Error::Unusable { reason: "the bulk answer is malformed" })?;
    let mut unassigned = answer.results.len();
    let mut by_id = HashMap::new();
    for result in &answer.results {
        let id = result.id.as_ref().and_then(|id| id.parse::<CustomerId>().ok());
        if let Some(id) = id {
            by_id.insert(id.hashed_form().into_owned(), result);
        }
    }
    let mut taken = HashSet::new();
    let fetched: Vec<_> = customers
        .iter()
        .map(|customer| {
            let id = customer.hashed_form();
            let result = by_id.get(&*id)?;
            unassigned -= usize::from(taken.insert(id));
            Some(read(result, &read_profile))
        })
        .collect();
    let missing = || {
        if unassigned == 0 { Ok(Fetched::Absent) } else { Err(Error::Unusable { reason: "not in the bulk answer" }) }
    };
    Ok(fetched.into_iter().map(|found| found.unwrap_or_else(missing)).collect())
}

fn read(result: &BulkResult<'_>, read_profile: impl Fn(Bytes) -> Result<Profile, Error>) -> Result<Fetched, Error> {
    let status = result.status.and_then(|status| StatusCode::from_u16(status).ok());
    match (result.entity, status) {
        // A copy: a part of the answer would keep all of it in memory.
        (Some(entity), None | Some(StatusCode::OK)) => {
            read_profile(Bytes::copy_from_slice(entity.get().as_bytes())).map(Fetched::Found)
        }
        (_, Some(StatusCode::NOT_FOUND | StatusCode::GONE)) => Ok(Fetched::Absent),
        (_, Some(StatusCode::TOO_MANY_REQUESTS)) => Err(Error::Throttled { retry_after: Duration::from_secs(1) }),
        (_, Some(status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))) => {
            Err(Error::Denied { status: status.as_u16() })
        }
        (_, Some(status)) if status.is_server_error() => {
            Err(Error::Failed { status: status.as_u16(), retry_after: None })
        }
        (_, Some(_) | None) => Err(Error::Unusable { reason: "a bulk result without a contact" }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::ProfileBody;

    fn ids(ids: &[&str]) -> Vec<CustomerId> {
        ids.iter().map(|id| id.parse().unwrap()).collect()
    }

    fn assigned(answer: &serde_json::Value, asked: &[&str]) -> Vec<String> {
        let read = |body: Bytes| Ok(Profile { body: ProfileBody::new(body), modified: None, canonical: None });
        let show = |fetched: &Result<Fetched, Error>| match fetched {
            Ok(Fetched::Found(profile)) => String::from_utf8(profile.body.expose().to_vec()).unwrap(),
            Ok(Fetched::Absent) => "absent".to_owned(),
            Err(error) => error.to_string(),
        };
        assign(answer.to_string().as_bytes(), &ids(asked), read).unwrap().iter().map(show).collect()
    }

    #[test]
    fn results_in_any_order_are_assigned_by_their_ids() {
        let answer = json!({ "results": [
            { "id": "c", "success": false, "status": 404, "error": { "code": "not.found" } },
            { "id": "b", "success": true, "status": 200, "entity": { "id": "b" } },
            { "id": "a", "success": true, "status": 200, "entity": { "id": "z" } },
        ] });
        assert_eq!(
            assigned(&answer, &["a", "b", "c", "a"]),
            [r#"{"id":"z"}"#, r#"{"id":"b"}"#, "absent", r#"{"id":"z"}"#]
        );
    }

    #[test]
    fn an_id_without_a_result_is_absent_only_if_all_results_are_assigned() {
        let whole = json!({ "results": [{ "id": "a", "status": 200, "entity": { "id": "a" } }] });
        assert_eq!(assigned(&whole, &["a", "b"])[1], "absent");
        let strange = json!({ "results": [{ "id": "other", "status": 200, "entity": { "id": "other" } }] });
        assert!(assigned(&strange, &["b"])[0].contains("not in the bulk answer"));
    }

    #[test]
    fn a_failed_result_fails_its_own_customer_only() {
        let answer = json!({ "results": [
            { "id": "a", "status": 500 }, { "id": "b", "status": 403 }, { "id": "c", "status": 200 },
            { "id": "d", "status": 429 }, { "id": "e", "status": 200, "entity": { "id": "e" } },
        ] });
        let found = assigned(&answer, &["a", "b", "c", "d", "e"]);
        assert!(found[0].contains("500") && found[1].contains("403") && found[3].contains("rate"), "{found:?}");
        assert!(found[2].contains("without a contact") && found[4] == r#"{"id":"e"}"#, "{found:?}");
    }
}
