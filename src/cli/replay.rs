//! `profile-edge replay`: requests a replay, shows its progress, prints its result. An interrupt stops it.

use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::clock::SystemClock;
use crate::domain::TenantId;
use crate::operate::replay::request::{Origin, ReplayRequest};

use super::args::ReplayArgs;
use super::{Exit, client_of, complain, exit_of, json_line, print};

/// The length of the bar, which shows the share of the period.
const WHOLE: u64 = 1_000;

/// Runs a replay.
pub(super) async fn run(args: ReplayArgs) -> Exit {
    let ReplayArgs { since, until, tenant, rate, dry_run, from_genesys, service } = args;
    // The service checks it too, by its own clock.
    let origin = if from_genesys { Origin::Genesys } else { Origin::Journal };
    let now = SystemClock::shared().now();
    let request = ReplayRequest::parse(origin, &since, until.as_deref(), tenant.clone(), rate, dry_run, now);
    if let Err(invalid) = request {
        complain(&format!("--{invalid}"));
        return Exit::Usage;
    }
    let as_json = service.json;
    let client = match client_of(service) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let order = json!({
        "since": since, "until": until, "tenantId": tenant.as_ref().map(TenantId::as_str), "rate": rate, "dryRun": dry_run, "fromGenesys": from_genesys,
    });
    let bar = if as_json || is_dumb() { ProgressBar::hidden() } else { bar() };
    let mut last = Value::Null;
    let replaying = client.replay(&order, |progress| {
        if as_json {
            print(&json_line(progress));
        }
        show(&bar, progress);
        last.clone_from(progress);
    });
    // The service stops the replay when the connection closes.
    let ended = tokio::select! {
        ended = replaying => Some(ended),
        _ = tokio::signal::ctrl_c() => None,
    };
    bar.finish_and_clear();
    let end = match ended {
        Some(Ok(end)) => end,
        Some(Err(error)) => {
            stopped_early(&error.to_string(), &last);
            return exit_of(&error);
        }
        None => {
            stopped_early("interrupted", &last);
            return Exit::Interrupted;
        }
    };
    if !as_json {
        print(&summary(&end));
    }
    if end["status"] == "done" {
        return Exit::Ok;
    }
    stopped_early(&format!("it ended early: {}", end["reason"].as_str().unwrap_or("unknown")), &end);
    Exit::Unavailable
}

/// Prints what went wrong, and how to continue if that is known.
fn stopped_early(problem: &str, last: &Value) {
    match last["resumeSince"].as_str() {
        Some(since) => {
            let origin = if last["fromGenesys"] == true { " --from-genesys" } else { "" };
            complain(&format!("{problem}; {}; continue with --since {since}{origin}", counts(last)));
        }
        None => complain(problem),
    }
}

/// Returns whether the terminal cannot move its cursor, which a progress bar needs.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Creates a bar without colours on standard error; it shows nothing if that is not a terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(WHOLE), ProgressDrawTarget::stderr());
    // The template is a constant and valid.
    let style = ProgressStyle::with_template("{bar:32} {percent:>3}%  {msg}  {elapsed}").expect("a template");
    bar.set_style(style);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

fn show(bar: &ProgressBar, progress: &Value) {
    let part = progress["fraction"].as_f64().unwrap_or_default().clamp(0.0, 1.0);
    bar.set_position((part * WHOLE as f64) as u64);
    let waits = match (progress["status"] == "waiting", progress["fromGenesys"] == true) {
        (false, _) => "",
        (true, false) => "; waiting for the queue to become shorter",
        (true, true) => "; waiting for Genesys, or for the queue to become shorter",
    };
    bar.set_message(format!("{}{waits}", counts(progress)));
}

/// Returns how many events of the replay were published.
fn counts(progress: &Value) -> String {
    let count = |name: &str| HumanCount(progress[name].as_u64().unwrap_or_default());
    if progress["dryRun"] == true {
        format!("{} events would be replayed", count("matched"))
    } else {
        format!("{} of {} events replayed", count("replayed"), count("matched"))
    }
}

fn summary(end: &Value) -> String {
    let text = |name: &str| end[name].as_str().unwrap_or_default();
    let kinds = end["kinds"].as_object().into_iter().flatten();
    let kinds: Vec<String> = kinds.map(|(kind, count)| format!("{count} {kind}")).collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    let done = if end["fromGenesys"] == true { "changed" } else { "received" };
    let span = format!("{done} from {} up to {}", text("since"), text("until"));
    let unreadable = match end["unreadable"].as_u64().unwrap_or_default() {
        0 => String::new(),
        count => format!("; {} audits name no customer in a readable way", HumanCount(count)),
    };
    format!("{}{kinds}, {span}{unreadable}; replay {}\n", counts(end), text("replayId"))
}
