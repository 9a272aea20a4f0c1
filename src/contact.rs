//! The identifiers in a contact of Genesys: its phone numbers, e-mail addresses and external ids.
//!
//! The API and the contact topic write them in the same fields. A field that cannot be read shows no identifier.

use serde_json::Value;

use crate::domain::{Identifier, MAX_IDENTIFIERS, PhoneRegion};

const PHONES: [&str; 4] = ["workPhone", "cellPhone", "homePhone", "otherPhone"];
const EMAILS: [&str; 3] = ["workEmail", "personalEmail", "otherEmail"];

/// Returns the identifiers in the JSON text of a contact, without repetitions: at most [`MAX_IDENTIFIERS`].
#[must_use]
pub fn identifiers(json: &[u8]) -> Vec<Identifier> {
    let contact: Value = serde_json::from_slice(json).unwrap_or_default();
    let phones = PHONES.iter().filter_map(|field| phone(&contact[field]));
    let emails = EMAILS.iter().filter_map(|field| Identifier::email(contact[field].as_str()?).ok());
    let whats_app = phone(&contact["whatsAppId"]["phoneNumber"]);
    let all = phones.chain(emails).chain(whats_app);
    let all = all.chain(list(&contact["externalIds"]).filter_map(external_id));
    let all = all.chain(list(&contact["identifiers"]).filter_map(claimed));
    let mut found = Vec::new();
    for identifier in all {
        if found.len() < MAX_IDENTIFIERS && !found.contains(&identifier) {
            found.push(identifier);
        }
    }
    found
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Parses a `PhoneNumber`: Genesys' own E.164 form, or what the user wrote, in the country that Genesys assumes.
fn phone(number: &Value) -> Option<Identifier> {
    let text = |field: &str| number[field].as_str().filter(|text| !text.is_empty());
    let region = text("countryCode").or(text("normalizationCountryCode"));
    let region: Option<PhoneRegion> = region.and_then(|region| region.parse().ok());
    let forms = [text("e164"), text("userInput"), text("display"), number.as_str()];
    forms.into_iter().flatten().find_map(|form| Identifier::phone(form, region).ok())
}

fn external_id(external: &Value) -> Option<Identifier> {
    let source = &external["externalSource"];
    let source = source["id"].as_str().or(source.as_str())?;
    Identifier::external_id(source, external["value"].as_str()?).ok()
}

/// Parses a `ContactIdentifier`.
fn claimed(identifier: &Value) -> Option<Identifier> {
    let value = identifier["value"].as_str()?;
    match identifier["type"].as_str()? {
        "Phone" | "SocialWhatsapp" => Identifier::phone(value, None).ok(),
        "Email" => Identifier::email(value).ok(),
        "ExternalId" => external_id(identifier),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(contact: &Value) -> Vec<String> {
        identifiers(contact.to_string().as_bytes()).iter().map(|found| found.expose().value.to_owned()).collect()
    }

    #[test]
    fn every_field_of_an_identifier_is_read_once() {
        let contact = json!({
            "workPhone": { "e164": "+13175550101", "display": "x" },
            "cellPhone": { "userInput": "(317) 555-0102", "countryCode": "US" },
            "homePhone": { "display": "+1 317-555-0101" },
            "otherPhone": "+13175550103",
            "workEmail": "Ada@Example.com", "personalEmail": "ada@example.com", "otherEmail": "",
            "whatsAppId": { "phoneNumber": { "e164": "+13175550104" } },
            "externalIds": [
                { "externalSource": { "id": "S" }, "value": "CUST-1" },
                { "externalSource": { "name": "CRM" }, "value": "CUST-2" },
            ],
            "identifiers": [
                { "type": "Phone", "value": "+13175550105" }, { "type": "Cookie", "value": "c" },
                { "type": "ExternalId", "value": "CUST-3", "externalSource": { "id": "S" } },
            ],
        });
        let expected = [
            "+13175550101",
            "+13175550102",
            "+13175550103",
            "ada@example.com",
            "+13175550104",
            "CUST-1",
            "+13175550105",
            "CUST-3",
        ];
        assert_eq!(values(&contact), expected);
    }

    #[test]
    fn what_cannot_be_read_shows_no_identifier_and_many_are_bounded() {
        for contact in [
            json!(null),
            json!([]),
            json!({ "workPhone": 7, "workEmail": [1], "externalIds": { "a": 1 }, "identifiers": "x", "whatsAppId": [] }),
            json!({ "workPhone": { "e164": "anonymous", "userInput": "ext 12" } }),
        ] {
            assert!(values(&contact).is_empty(), "{contact}");
        }
        assert!(identifiers(b"{").is_empty());
        let many: Vec<_> =
            (0..100).map(|n| json!({ "externalSource": { "id": "S" }, "value": n.to_string() })).collect();
        assert_eq!(values(&json!({ "externalIds": many })).len(), MAX_IDENTIFIERS);
    }
}
