//! Why a text is not an identifier.

/// Why a text is not an identifier. The error never contains the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentifier {
    /// The text is not a phone number.
    #[error("must be a phone number with + and country code, such as +13175550101 or tel:+13175550101")]
    Phone,
    /// A number without a country code, of a tenant without a region.
    #[error("has no country code: write it with +, or configure phone_region for the tenant")]
    NoRegion,
    /// The text is an address of SIP.
    #[error("must be a phone number; a SIP address is none")]
    Sip,
    /// The text is not an e-mail address.
    #[error("must be an e-mail address of at most 256 bytes")]
    Email,
    /// The text is not an id.
    #[error("must be 1 to 256 bytes without control characters")]
    Text,
}
