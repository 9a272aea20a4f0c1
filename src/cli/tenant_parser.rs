//! The id of a tenant as an argument.

use std::ffi::OsStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};

use crate::domain::TenantId;

/// Parses the id of a tenant. The library's own parsers repeat a wrong value, and who confuses the arguments may have typed a
/// customer's name or address.
#[derive(Clone, Copy, Debug)]
pub(super) struct TenantParser;

impl TypedValueParser for TenantParser {
    type Value = TenantId;

    fn parse_ref(&self, command: &Command, _: Option<&Arg>, value: &OsStr) -> Result<TenantId, clap::Error> {
        value.to_string_lossy().parse().map_err(|error| {
            clap::Error::raw(ErrorKind::ValueValidation, format!("--tenant: {error}\n")).with_cmd(command)
        })
    }
}
