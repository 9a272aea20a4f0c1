//! HTTP: the listeners, the authentication of callers, and the routes. Except for the sandbox, only this module uses
//! `axum`.
//!
//! `server` accepts connections and enforces limits and TLS. `auth` authenticates the caller, `request` reads the
//! request, `routes` handles it, and `response` holds the types of the answers.

pub mod auth;
pub mod request;
pub mod response;
pub mod routes;
pub mod server;
