//! Identifiers in their normal form.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use super::invalid::InvalidIdentifier;
use super::phone::{self, PhoneRegion};

/// The most identifiers of one contact that an event or a record shows.
pub const MAX_IDENTIFIERS: usize = 64;

/// The longest e-mail address and external id, in bytes, as at Genesys.
const MAX_LEN: usize = 256;

/// What a customer is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LookupBy {
    /// Genesys' id of the contact.
    CustomerId,
    /// A phone number.
    Phone,
    /// An e-mail address.
    Email,
    /// An id in another system, with its source.
    ExternalId,
}

impl LookupBy {
    /// Returns the name of its parameter.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CustomerId => "customerId",
            Self::Phone => "phone",
            Self::Email => "email",
            Self::ExternalId => "externalId",
        }
    }
}

/// A phone number, an e-mail address or an external id in its normal form: two texts for the same identifier are equal.
///
/// There is no `Display`, and `Debug` shows only its kind. [`Identifier::expose`] returns its parts for hashing, for a
/// request to Genesys and for the sandbox.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identifier(NormalForm);

#[derive(Clone, PartialEq, Eq, Hash)]
enum NormalForm {
    /// E.164 (ITU-T), with the `+`.
    Phone(Arc<str>),
    /// In lower case.
    Email(Arc<str>),
    ExternalId {
        /// The id of the source at Genesys, in lower case.
        source: Arc<str>,
        value: Arc<str>,
    },
}

/// The parts of an identifier.
#[derive(Clone, Copy)]
pub struct ExposedIdentifier<'a> {
    /// Its kind.
    pub by: LookupBy,
    /// The source of an external id.
    pub source: Option<&'a str>,
    /// Its normal form.
    pub value: &'a str,
}

impl Identifier {
    /// Parses a phone number: E.164 with any usual punctuation, or a `tel:` URI (RFC 3966). A number without a country
    /// code is one of `region`.
    ///
    /// # Errors
    ///
    /// The text is no phone number, or needs a region.
    pub fn phone(text: &str, region: Option<PhoneRegion>) -> Result<Self, InvalidIdentifier> {
        phone::e164(text, region).map(|number| Self(NormalForm::Phone(number.into())))
    }

    /// Parses an e-mail address; case and surrounding blanks do not matter.
    ///
    /// # Errors
    ///
    /// The text has not the form `local@domain`, or is longer than 256 bytes.
    pub fn email(text: &str) -> Result<Self, InvalidIdentifier> {
        let text = text.trim();
        let is_plain = text.len() <= MAX_LEN && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        match text.rsplit_once('@') {
            Some((local, domain)) if is_plain && !local.is_empty() && !domain.is_empty() => {
                Ok(Self(NormalForm::Email(text.to_lowercase().into())))
            }
            Some(_) | None => Err(InvalidIdentifier::Email),
        }
    }

    /// Parses an id of another system; `source` is the id of that system's external source at Genesys.
    ///
    /// # Errors
    ///
    /// One of the two is not 1 to 256 bytes long, or has control characters.
    pub fn external_id(source: &str, value: &str) -> Result<Self, InvalidIdentifier> {
        let text = |text: &str| {
            let text = text.trim();
            let is_valid = (1..=MAX_LEN).contains(&text.len()) && !text.chars().any(char::is_control);
            is_valid.then(|| text.to_owned()).ok_or(InvalidIdentifier::Text)
        };
        let source = text(source)?.to_ascii_lowercase().into();
        Ok(Self(NormalForm::ExternalId { source, value: text(value)?.into() }))
    }

    /// Returns its kind.
    #[must_use]
    pub const fn by(&self) -> LookupBy {
        match self.0 {
            NormalForm::Phone(_) => LookupBy::Phone,
            NormalForm::Email(_) => LookupBy::Email,
            NormalForm::ExternalId { .. } => LookupBy::ExternalId,
        }
    }

    /// Returns its parts; never for printing.
    #[must_use]
    pub fn expose(&self) -> ExposedIdentifier<'_> {
        let (source, value) = match &self.0 {
            NormalForm::Phone(value) | NormalForm::Email(value) => (None, value),
            NormalForm::ExternalId { source, value } => (Some(&**source), value),
        };
        ExposedIdentifier { by: self.by(), source, value }
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identifier({}, [redacted])", self.by().as_str())
    }
}

impl fmt::Debug for ExposedIdentifier<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExposedIdentifier({}, [redacted])", self.by.as_str())
    }
}
