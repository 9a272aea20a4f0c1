//! Generated customers: the contact of customer number `n` before its first change.
//!
//! A contact is a pure function of its number, so a million of them cost nothing until they are read. Names come from a
//! list, phone numbers from the range reserved for fiction (555-01xx), e-mail addresses from `example.com` (RFC 2606).

use std::time::Duration;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::domain::Timestamp;

use super::contact::Contact;

/// The id of customer 0; the last twelve digits of an id are the number in decimal.
const FIRST: u128 = 0x0000_0000_0000_4000_8000_0000_0000_0000;
const DIGITS: u32 = 12;

/// 2024-01-01T00:00:00Z: the earliest creation date.
const EPOCH: Timestamp = Timestamp::from_millis(1_704_067_200_000);
const YEAR_MS: u64 = 365 * 24 * 3_600 * 1_000;

const FIRST_NAMES: [&str; 24] = [
    "Ada",
    "Alan",
    "Barbara",
    "Chen",
    "Claude",
    "Dorothy",
    "Edsger",
    "Emmy",
    "Frances",
    "Grace",
    "Hedy",
    "Ivan",
    "Joan",
    "Katherine",
    "Leslie",
    "Margaret",
    "Niklaus",
    "Olga",
    "Priya",
    "Radia",
    "Sofia",
    "Tariq",
    "Ursula",
    "Yuki",
];
const LAST_NAMES: [&str; 24] = [
    "Abbott", "Baker", "Castillo", "Dubois", "Eriksen", "Fischer", "Garcia", "Haddad", "Ito", "Jensen", "Kowalski",
    "Lindgren", "Moreau", "Nakamura", "Okafor", "Petrov", "Quinn", "Rossi", "Silva", "Tanaka", "Ueda", "Vargas",
    "Weber", "Young",
];
const CITIES: [(&str, &str, &str, &str); 6] = [
    ("Indianapolis", "IN", "46204", "317"),
    ("Raleigh", "NC", "27601", "919"),
    ("Denver", "CO", "80202", "303"),
    ("Austin", "TX", "78701", "512"),
    ("Seattle", "WA", "98101", "206"),
    ("Boston", "MA", "02108", "617"),
];
const TITLES: [&str; 4] = ["Ms", "Mr", "Dr", "Mx"];
const TIERS: [&str; 3] = ["bronze", "silver", "gold"];

/// Returns the id of customer `number`.
pub(super) fn id_of(number: u32) -> Uuid {
    let digits = (0..DIGITS)
        .fold((0, u128::from(number)), |(digits, rest), place| (digits | ((rest % 10) << (4 * place)), rest / 10));
    Uuid::from_u128(FIRST | digits.0)
}

/// Returns the customer number of an id, if the id has the form of one.
pub(super) fn number_of(id: Uuid) -> Option<u32> {
    let digits = id.as_u128().checked_sub(FIRST).filter(|rest| *rest < 1 << (4 * DIGITS))?;
    (0..DIGITS)
        .rev()
        .map(|place| (digits >> (4 * place)) & 0xf)
        .try_fold(0_u64, |number, digit| (digit < 10).then(|| number * 10 + digit as u64))
        .and_then(|number| u32::try_from(number).ok())
}

/// Generates customer `number`.
pub(super) fn person(number: u32) -> Contact {
    let mut random = SplitMix64(u64::from(number));
    let (first, last) = (random.one_of(&FIRST_NAMES), random.one_of(&LAST_NAMES));
    let (city, state, postal_code, area) = *random.one_of(&CITIES);
    let line = 100 + random.next() % 100;
    let phone = |line: u64| {
        json!({
            "display": format!("+1 {area}-555-0{line}"), "userInput": format!("({area}) 555-0{line}"),
            "e164": format!("+1{area}5550{line}"), "countryCode": "US", "acceptsSMS": true,
        })
    };
    let fields = json!({
        "firstName": first, "lastName": last, "title": random.one_of(&TITLES),
        "workPhone": phone(line), "cellPhone": phone(100 + (line + 1) % 100),
        "workEmail": format!("{}.{}.{number}@example.com", first.to_lowercase(), last.to_lowercase()),
        "address": {
            "address1": format!("{} Main St", 1 + random.next() % 999),
            "city": city, "state": state, "postalCode": postal_code, "countryCode": "US",
        },
        "externalIds": [{
            "externalSource": {
                "id": "5a4d0000-0000-4000-8000-0000000000e1", "name": "CRM", "active": true,
                "selfUri": "/api/v2/externalcontacts/externalsources/5a4d0000-0000-4000-8000-0000000000e1",
            },
            "value": format!("CUST-{number}"),
        }],
        "surveyOptOut": random.next().is_multiple_of(10),
        "schema": { "id": "5a4d0000-0000-4000-8000-0000000000c1", "version": 1 },
        "customFields": { "tier_text": random.one_of(&TIERS) },
    });
    let created = EPOCH.plus(Duration::from_millis(random.next() % YEAR_MS / 1_000 * 1_000));
    let modified = created.plus(Duration::from_millis(random.next() % YEAR_MS));
    Contact::new(id_of(number), object(fields), created, modified)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

/// A `SplitMix64` generator (Steele, Lea and Flood, 2014): the same sequence for the same seed, on every machine.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[(self.next() % choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn number_and_id_are_inverses(number: u32) {
            prop_assert_eq!(number_of(id_of(number)), Some(number));
        }

        #[test]
        fn an_id_ends_in_its_number_in_decimal(number: u32) {
            prop_assert_eq!(id_of(number).to_string(), format!("00000000-0000-4000-8000-{number:012}"));
        }
    }

    #[test]
    fn other_ids_have_no_number() {
        for id in ["00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8001-000000000001"] {
            assert_eq!(number_of(id.parse().unwrap()), None, "{id}");
        }
        assert_eq!(number_of(Uuid::nil()), None);
        assert_eq!(number_of(Uuid::max()), None);
    }

    #[test]
    fn a_generated_person_is_deterministic() {
        assert_eq!(person(7).fields, person(7).fields);
        assert_ne!(person(7).fields, person(8).fields);
        let phone = person(7).fields["workPhone"]["e164"].as_str().unwrap().to_owned();
        assert!(phone.len() == 12 && phone[5..].starts_with("55501"), "{phone}");
    }
}
