//! Ingest.

pub mod authenticate;
pub mod shapes;
