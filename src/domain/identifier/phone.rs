//! Phone numbers in the form of E.164, by the numbering plans that Google's libphonenumber knows.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use moka::sync::Cache;
use phonenumber::{Mode, country};
use serde::{Deserialize, Deserializer};

use super::invalid::InvalidIdentifier;

/// The E.164 forms of the last numbers, each with the region that it needs: a call is often looked up several times, and the
/// numbering plans, which are regular expressions behind a lock, cost a hit by phone a tenth of its time.
static RECENT: LazyLock<Cache<(String, Option<country::Id>), String>> = LazyLock::new(|| Cache::new(10_000));

/// The country of phone numbers without a country code, as two letters (ISO 3166-1), such as `DE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhoneRegion(country::Id);

/// The text is not a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a country of two letters such as \"US\" or \"DE\"")]
pub struct InvalidRegion;

impl FromStr for PhoneRegion {
    type Err = InvalidRegion;

    fn from_str(text: &str) -> Result<Self, InvalidRegion> {
        text.to_ascii_uppercase().parse().map(Self).map_err(|_| InvalidRegion)
    }
}

impl<'de> Deserialize<'de> for PhoneRegion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for PhoneRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref())
    }
}

/// Returns the E.164 form of a phone number, with the `+`.
pub(super) fn e164(text: &str, region: Option<PhoneRegion>) -> Result<String, InvalidIdentifier> {
    let text = text.trim();
    let scheme = |name: &str| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    if scheme("sip:") || scheme("sips:") {
        return Err(InvalidIdentifier::Sip);
    }
    let number = if scheme("tel:") { &text["tel:".len()..] } else { text };
    // The parameters of a tel URI, such as an extension, are not part of the number.
    let number = number.split(';').next().unwrap_or_default().trim();
    let is_usual = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | '(' | ')' | '/' | ' ' | '\u{a0}');
    if number.len() > 64 || !number.chars().all(is_usual) || !number.contains(|c: char| c.is_ascii_digit()) {
        return Err(InvalidIdentifier::Phone);
    }
    if !number.starts_with('+') && region.is_none() {
        return Err(InvalidIdentifier::NoRegion);
    }
    // "+49 (0)30" is a usual way to write both forms in one.
    let (number, region) = match region {
        Some(region) if !number.starts_with('+') => (number.to_owned(), Some(region.0)),
        Some(_) | None => (number.replacen("(0)", "", 1), None),
    };
    let asked = (number, region);
    if let Some(e164) = RECENT.get(&asked) {
        return Ok(e164);
    }
    let parsed = phonenumber::parse(region, &asked.0).map_err(|_| InvalidIdentifier::Phone)?;
    let e164 = parsed.format().mode(Mode::E164).to_string();
    let digits = e164.strip_prefix('+').unwrap_or_default();
    if !(7..=15).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidIdentifier::Phone);
    }
    RECENT.insert(asked, e164.clone());
    Ok(e164)
}
