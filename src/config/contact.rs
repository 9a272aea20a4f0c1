//! The fields of the contact model of Genesys Cloud External Contacts (`ExternalContact` of the Platform API).

use super::nearest::nearest;

/// Fields without an object below them, and fields whose contents are free or belong to another model.
const FIELDS: [&str; 33] = [
    "id",
    "type",
    "firstName",
    "middleName",
    "lastName",
    "salutation",
    "title",
    "workEmail",
    "personalEmail",
    "otherEmail",
    "twitterId",
    "lineId",
    "whatsAppId",
    "facebookId",
    "instagramId",
    "appleOpaqueIds",
    "externalIds",
    "identifiers",
    "externalOrganization",
    "externalSystemUrl",
    "externalDataSources",
    "surveyOptOut",
    "customFields",
    "schema",
    "division",
    "canonicalContact",
    "mergeSet",
    "mergedFrom",
    "mergedTo",
    "mergeOperation",
    "createDate",
    "modifyDate",
    "selfUri",
];

/// Fields that hold a phone number.
const PHONES: [&str; 4] = ["workPhone", "cellPhone", "homePhone", "otherPhone"];

/// The parts of a phone number.
const PHONE_PARTS: [&str; 7] =
    ["display", "extension", "acceptsSMS", "normalizationCountryCode", "userInput", "e164", "countryCode"];

/// The parts of `address`.
const ADDRESS_PARTS: [&str; 6] = ["address1", "address2", "city", "state", "postalCode", "countryCode"];

/// Returns whether a contact can have the field at this path; `*` means all fields.
pub(super) fn has_field(path: &str) -> bool {
    let (field, part) = path.split_once('.').map_or((path, None), |(field, part)| (field, Some(part)));
    let is_one_of = |parts: &[&str]| part.is_none_or(|part| parts.contains(&part));
    match field {
        "*" => true,
        "address" => is_one_of(&ADDRESS_PARTS),
        phone if PHONES.contains(&phone) => is_one_of(&PHONE_PARTS),
        other => FIELDS.contains(&other),
    }
}

/// Returns the path of the field that was probably meant.
pub(super) fn nearest_field(path: &str) -> Option<String> {
    let parts = |field: &str, parts: &[&str]| parts.iter().map(|part| format!("{field}.{part}")).collect::<Vec<_>>();
    let mut known: Vec<String> = FIELDS.iter().chain(&PHONES).map(|&field| field.to_owned()).collect();
    known.push("address".to_owned());
    // A part is proposed for a part only, so that "workphone" is answered with "workPhone".
    if path.contains('.') {
        known.extend(PHONES.iter().flat_map(|phone| parts(phone, &PHONE_PARTS)));
        known.extend(parts("address", &ADDRESS_PARTS));
    }
    nearest(path, known.iter().map(String::as_str)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_model_are_known_and_free_parts_are_not_checked() {
        for path in
            ["*", "firstName", "workPhone.e164", "address.city", "customFields.tier_text", "externalOrganization.name"]
        {
            assert!(has_field(path), "{path}");
        }
        for path in ["email", "workPhone.number", "address.zip", "firstname"] {
            assert!(!has_field(path), "{path}");
        }
    }

    #[test]
    fn an_unknown_field_is_answered_with_the_nearest() {
        for (path, near) in [
            ("firstname", "firstName"),
            ("frstName", "firstName"),
            ("workphone", "workPhone"),
            ("workPhone.e146", "workPhone.e164"),
            ("workemail", "workEmail"),
        ] {
            assert_eq!(nearest_field(path).as_deref(), Some(near));
        }
    }
}
