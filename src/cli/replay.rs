//! `profile-edge replay`: asks for it, shows how far it is, says how it ended. An interrupt stops it.

use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::args::ReplayArgs;
use super::{Exit, client_of, complain, exit_of, json_line, print};

/// The length of the bar, which shows a part of the time.
const WHOLE: u64 = 1_000;

/// Runs a replay.
pub(super) async fn run(args: ReplayArgs) -> Exit {
    let ReplayArgs { since, until, tenant, rate, dry_run, service } = args;
    let as_json = service.json;
    let client = match client_of(service) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let order = json!({ "since": since, "until": until, "tenantId": tenant, "rate": rate, "dryRun": dry_run });
    let bar = if as_json { ProgressBar::hidden() } else { bar() };
    let mut last = Value::Null;
    let replaying = client.replay(&order, |progress| {
        if as_json {
            print(&json_line(progress));
        }
        show(&bar, progress);
        last.clone_from(progress);
    });
    // Going away stops it.
    let ended = tokio::select! {
        ended = replaying => Some(ended),
        _ = tokio::signal::ctrl_c() => None,
    };
    bar.finish_and_clear();
    let end = match ended {
        Some(Ok(end)) => end,
        Some(Err(error)) => {
            go_on(&error.to_string(), &last);
            return exit_of(&error);
        }
        None => {
            go_on("interrupted", &last);
            return Exit::Interrupted;
        }
    };
    if !as_json {
        print(&summary(&end));
    }
    if end["status"] == "done" {
        return Exit::Ok;
    }
    go_on(&format!("it ended early: {}", end["reason"].as_str().unwrap_or("unknown")), &end);
    Exit::Unavailable
}

/// Says what went wrong, and where to go on as far as that is known.
fn go_on(problem: &str, last: &Value) {
    match last["resumeSince"].as_str() {
        Some(since) => complain(&format!("{problem}; {}; go on with --since {since}", counts(last))),
        None => complain(problem),
    }
}

/// Makes a bar on standard error; it shows nothing where that is no terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(WHOLE), ProgressDrawTarget::stderr());
    // The template is a constant, and one.
    let style = ProgressStyle::with_template("{bar:32} {percent:>3}%  {msg}  {elapsed}").expect("a template");
    bar.set_style(style);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

fn show(bar: &ProgressBar, progress: &Value) {
    let part = progress["fraction"].as_f64().unwrap_or_default().clamp(0.0, 1.0);
    bar.set_position((part * WHOLE as f64) as u64);
    let waits = if progress["status"] == "waiting" { ", giving way to what waits in the queue" } else { "" };
    bar.set_message(format!("{}{waits}", counts(progress)));
}

/// Says how many events were meant, and how many replayed.
fn counts(progress: &Value) -> String {
    let count = |name: &str| HumanCount(progress[name].as_u64().unwrap_or_default());
    if progress["dryRun"] == true {
        format!("{} of {} events would be replayed", count("matched"), count("read"))
    } else {
        format!("{} of {} events replayed", count("replayed"), count("read"))
    }
}

fn summary(end: &Value) -> String {
    let text = |name: &str| end[name].as_str().unwrap_or_default();
    let kinds = end["kinds"].as_object().into_iter().flatten();
    let kinds: Vec<String> = kinds.map(|(kind, count)| format!("{count} {kind}")).collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    let span = format!("received from {} up to {}", text("since"), text("until"));
    format!("{}{kinds}, {span}; replay {}\n", counts(end), text("replayId"))
}
