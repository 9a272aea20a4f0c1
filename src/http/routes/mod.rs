//! The routes: one file for each resource.

pub mod admin;
mod batch_query;
pub mod bulk_contacts;
pub mod changes;
pub mod contact;
pub mod lookup_api;
mod lookup_audit;
mod lookup_timing;
pub mod oauth_token;
pub mod openapi;
pub mod profile;
pub mod profiles;
pub mod webhook;
