//! `profile-edge clear`.

use crate::operate::client;

use super::listener::ServiceArgs;
use super::{Exit, client_of, finish, json_line};

/// Runs the command.
pub(super) async fn run(service: ServiceArgs, tenant: &str, hard: bool) -> Exit {
    let form = if service.json { json_line } else { client::lines };
    match client_of(service) {
        Ok(client) => finish(client.clear(tenant, hard).await.map(|answer| form(&answer))),
        Err(exit) => exit,
    }
}
