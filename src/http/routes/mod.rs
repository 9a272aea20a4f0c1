//! The routes: one file for each resource.

pub mod admin;
pub mod changes;
pub mod contact;
pub mod identifier;
pub mod lookup_api;
mod lookup_audit;
mod lookup_timing;
pub mod oauth_token;
pub mod openapi;
pub mod profile;
mod profile_query;
pub mod webhook;
