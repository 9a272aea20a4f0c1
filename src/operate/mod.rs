//! Operators' commands: [`actions`], [`dead_letters`], [`outbox`] and [`replay`] in the service, [`client`] on the command line.

pub mod actions;
mod answer_text;
pub mod client;
pub mod client_error;
pub mod dead_letters;
pub mod outbox;
pub mod replay;
pub mod trust;
