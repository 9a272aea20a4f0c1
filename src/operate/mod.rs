//! What operators do: [`actions`] inside the service, [`client`] on the command line.

pub mod actions;
pub mod client;
pub mod trust;
