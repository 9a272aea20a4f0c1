//! The routes: one file for each resource.

pub mod admin;
mod batch_query;
pub mod bulk_contacts;
pub mod change_stream;
pub mod changes;
pub mod contact;
mod event_id;
pub mod identifier;
pub mod lookup_api;
mod lookup_audit;
mod lookup_timing;
mod many_answers;
pub mod oauth_token;
pub mod openapi;
pub mod profile;
mod profile_query;
pub mod profiles;
pub mod webhook;
