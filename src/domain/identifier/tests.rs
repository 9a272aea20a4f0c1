use proptest::prelude::*;

use super::*;

fn phone(text: &str) -> Result<String, InvalidIdentifier> {
    Identifier::phone(text, None).map(|phone| phone.expose().value.to_owned())
}

#[test]
fn all_spellings_of_a_phone_number_are_one_identifier() {
    for text in [
        "+13175550101",
        "tel:+13175550101",
        "TEL:+1-317-555-0101;ext=12",
        " +1 (317) 555-0101 ",
        "+1.317.555.0101",
        "+1 317/555 0101",
    ] {
        assert_eq!(phone(text).as_deref(), Ok("+13175550101"), "{text}");
    }
    assert_eq!(phone("+49 (0)30 901820").as_deref(), Ok("+4930901820"));
    assert_eq!(phone("+39 06 698 12345").as_deref(), Ok("+390669812345"));
}

#[test]
fn a_number_without_country_code_needs_the_region_of_the_tenant() {
    assert_eq!(phone("030 901820"), Err(InvalidIdentifier::NoRegion));
    let of = |text: &str, region: &str| {
        let region: PhoneRegion = region.parse().unwrap();
        Identifier::phone(text, Some(region)).map(|phone| phone.expose().value.to_owned())
    };
    assert_eq!(of("030 901820", "DE").as_deref(), Ok("+4930901820"));
    assert_eq!(of("(317) 555-0101", "us").as_deref(), Ok("+13175550101"));
    assert_eq!(of("+13175550101", "DE").as_deref(), Ok("+13175550101"));
    assert!("XX".parse::<PhoneRegion>().is_err() && "".parse::<PhoneRegion>().is_err());
}

#[test]
fn what_is_no_phone_number_is_refused() {
    assert_eq!(phone("sip:ada@example.com"), Err(InvalidIdentifier::Sip));
    assert_eq!(phone("SIPS:+13175550101@example.com"), Err(InvalidIdentifier::Sip));
    for text in ["", "+", "+1", "tel:", "+1800FLOWERS", "+1317555010112345678", "anonymous", "+1317\u{0}5550101"] {
        assert!(phone(text).is_err(), "{text:?}");
    }
}

#[test]
fn an_email_is_lower_case_and_an_external_id_keeps_its_case() {
    let email = Identifier::email(" Ada@Example.COM ").unwrap();
    assert_eq!(email.expose().value, "ada@example.com");
    for text in ["", "ada", "@example.com", "ada@", "a b@example.com", &format!("{}@a", "x".repeat(256))] {
        assert_eq!(Identifier::email(text), Err(InvalidIdentifier::Email), "{text}");
    }
    let external = Identifier::external_id("5A4D-E1", " CUST-42 ").unwrap();
    assert_eq!((external.expose().source, external.expose().value), (Some("5a4d-e1"), "CUST-42"));
    assert!(Identifier::external_id("", "x").is_err() && Identifier::external_id("x", "a\nb").is_err());
}

#[test]
fn exactly_one_parameter_names_the_customer() {
    let none = QueryFields::default();
    let parse = |fields: QueryFields<'_>| CustomerQuery::parse(&fields, None);
    let field = |fields| parse(fields).unwrap_err().field;
    assert_eq!(field(none), "customerId");
    assert_eq!(field(QueryFields { customer_id: Some("a"), phone: Some("+13175550101"), ..none }), "phone");
    assert_eq!(field(QueryFields { external_id: Some("a"), ..none }), "externalSource");
    assert_eq!(field(QueryFields { email: Some("a@b"), external_source: Some("s"), ..none }), "externalSource");
    assert_eq!(field(QueryFields { phone: Some("x"), ..none }), "phone");
    let by = |fields| parse(fields).unwrap().by();
    assert_eq!(by(QueryFields { customer_id: Some("a"), ..none }), LookupBy::CustomerId);
    assert_eq!(by(QueryFields { email: Some("a@b"), ..none }), LookupBy::Email);
    assert_eq!(by(QueryFields { external_id: Some("a"), external_source: Some("s"), ..none }), LookupBy::ExternalId);
}

proptest! {
    #[test]
    fn no_text_of_a_phone_breaks_the_parser_or_is_shown(text in "\\PC{0,40}") {
        if let Ok(phone) = Identifier::phone(&text, None) {
            let value = phone.expose().value.to_owned();
            prop_assert_eq!(Identifier::phone(&value, None), Ok(phone.clone()));
            let shown = format!("{:?}{:?}", phone, phone.expose());
            prop_assert!(!shown.contains(&value));
        }
    }
}
