//! `profile-edge outbox`.

use serde_json::Value;

use crate::operate::client;

use super::args::OutboxCommand;
use super::{Exit, client_of, complain, finish, json_line};

/// Runs a command about the outbox.
pub(super) async fn run(command: OutboxCommand) -> Exit {
    let (OutboxCommand::Status { service } | OutboxCommand::Drain { service, .. }) = &command;
    let form = if service.json { json_line } else { client::lines };
    let client = match client_of(service.clone()) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    match command {
        OutboxCommand::Status { .. } => finish(client.outbox().await.map(|answer| form(&answer))),
        OutboxCommand::Drain { timeout, .. } => {
            let answer = client.drain_outbox(timeout).await;
            let left = answer.as_ref().ok().and_then(events_left);
            match (finish(answer.map(|answer| form(&answer))), left) {
                (Exit::Ok, Some(left)) => {
                    complain(&format!("{left} events are still in the outbox: the broker does not take them"));
                    Exit::Unavailable
                }
                (exit, _) => exit,
            }
        }
    }
}

fn events_left(answer: &Value) -> Option<u64> {
    answer["events"].as_u64().filter(|left| *left > 0)
}
