//! `profile-edge dead-letters`.

use std::io::{IsTerminal, Write};

use serde_json::Value;

use crate::operate::client::{self, Client};

use super::args::DeadLettersCommand;
use super::{Exit, client_of, complain, finish, first_line, json_line};

/// Runs a command about dead letters.
pub(super) async fn run(command: DeadLettersCommand) -> Exit {
    if matches!(&command, DeadLettersCommand::Redrive { ids, all: false, .. } if ids.is_empty()) {
        complain("dead-letters redrive: name one ID or more (see `dead-letters list`), or use --all");
        return Exit::Usage;
    }
    let service = command.service().clone();
    let json = service.json;
    let client = match client_of(service) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    finish(match command {
        DeadLettersCommand::List { limit, .. } => {
            let form = if json { json_line } else { client::line };
            let letters = client.dead_letters(limit).await;
            if !json && letters.as_ref().is_ok_and(Vec::is_empty) {
                complain("no dead letters");
            }
            letters.map(|letters| letters.iter().map(form).collect())
        }
        DeadLettersCommand::Show { id, .. } => {
            let form = if json { json_line } else { client::lines };
            client.dead_letter(&id).await.map(|letter| form(&letter))
        }
        DeadLettersCommand::Redrive { ids, .. } => {
            let form = if json { json_line } else { redriven };
            client.redrive(&ids).await.map(|answer| form(&answer))
        }
        DeadLettersCommand::Purge { ids, yes, .. } => {
            if !yes && let Some(exit) = ask(&client, &ids).await {
                return exit;
            }
            let form = if json { json_line } else { purged };
            client.purge(&ids).await.map(|answer| form(&answer))
        }
    })
}

/// Asks for confirmation at a terminal; returns how the command ends without it.
async fn ask(client: &Client, ids: &[String]) -> Option<Exit> {
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        complain(
            "nothing was removed: there is no terminal to ask for confirmation, use --yes to remove without asking",
        );
        return Some(Exit::Usage);
    }
    let which = match (ids, client.dead_letters(1).await) {
        ([], Ok(letters)) if letters.is_empty() => return None,
        ([], _) => "all dead letters".to_owned(),
        (ids, _) => format!("dead letters {}", ids.join(", ")),
    };
    let _ = write!(std::io::stderr().lock(), "Remove {which} permanently? They cannot be put back afterwards. [y/N] ");
    if first_line().is_ok_and(|answer| matches!(answer.trim(), "y" | "Y" | "yes")) {
        return None;
    }
    complain("nothing was removed");
    Some(Exit::Ok)
}

fn redriven(answer: &Value) -> String {
    let count = |name: &str| answer[name].as_u64().unwrap_or_default();
    let kept = match count("kept") {
        0 => String::new(),
        kept => format!(", {kept} kept because they hold no event (see `dead-letters list`)"),
    };
    format!("{} put back{kept}\n", count("redriven"))
}

fn purged(answer: &Value) -> String {
    format!("{} removed\n", answer["purged"].as_u64().unwrap_or_default())
}
