//! HTTP: the listeners, who may call, and what each route answers. `axum` is used here and nowhere else.
//!
//! A request goes through `server` (connections, limits, TLS), is authenticated by `auth`, read by `request`, handled by
//! a route of `routes`, and answered with the types of `response`.

pub mod auth;
pub mod request;
pub mod response;
pub mod routes;
pub mod server;
