//! What operators do: [`actions`], [`dead_letters`] and [`replay`] inside the service, [`client`] on the command line.

pub mod actions;
pub mod client;
pub mod dead_letters;
pub mod replay;
pub mod trust;
