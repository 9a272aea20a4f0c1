//! Logs: structured, on standard error.
//!
//! Text on a terminal, JSON otherwise. Nothing personal is ever handed to a log statement of ours. Libraries print what
//! passes through them (headers, bodies, frames) when they are asked for details, so of none more than warnings is
//! written, whatever `RUST_LOG` says: also of those that come with the next dependency.

use std::io::IsTerminal;
use std::panic;

use serde::Deserialize;
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, Targets};
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::spans;

/// A library that calls every refusal of the broker an error, also those that answer a question of ours; what
/// matters of it is logged where it is handled.
const SILENT: &str = "lapin";

/// `[log]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How much of ours is logged; of libraries, warnings only.
    pub level: Level,
    /// In which form.
    pub format: Format,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// What needs someone to act.
    Error,
    /// And what went wrong but was handled.
    Warn,
    /// And what changed.
    Info,
    /// And what happened.
    Debug,
    /// And everything else.
    Trace,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One JSON object on a line.
    Json,
    /// For people.
    Text,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
            Level::Trace => Self::TRACE,
        }
    }
}

/// A part of the subscriber, with a filter of its own.
pub type Part = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts logging, for the whole process; a second call does nothing.
pub fn init(config: &Config) {
    init_with(config, None);
}

/// Starts logging, and gives the spans of traces, which are no part of log lines, to `traces`.
pub fn init_with(config: &Config, traces: Option<Part>) {
    // RUST_LOG may ask for single spans and fields, which costs a lock whenever a span is entered or left; what
    // is configured asks for levels only.
    let filter: Box<dyn Filter<Registry> + Send + Sync> = match EnvFilter::try_from_default_env() {
        Ok(precise) => Box::new(precise),
        Err(_) => {
            let ours = LevelFilter::from(config.level);
            Box::new(Targets::new().with_default(LevelFilter::WARN).with_target("profile_edge", ours))
        }
    };
    let as_text = match config.format {
        Format::Text => true,
        Format::Json => false,
        Format::Auto => std::io::stderr().is_terminal(),
    };
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = if as_text {
        lines.with_ansi(std::io::stderr().is_terminal() && !is_plain()).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    };
    let layers: Vec<Part> = traces.into_iter().chain([lines.with_filter(filter.and(cap())).boxed()]).collect();
    if tracing_subscriber::registry().with(layers).try_init().is_ok() {
        panic::set_hook(Box::new(log_panic));
    }
}

/// Returns whether the environment asks for text without colours (<https://no-color.org>).
fn is_plain() -> bool {
    let var = |name| std::env::var_os(name).unwrap_or_default();
    !var("NO_COLOR").is_empty() || var("TERM") == "dumb"
}

/// The most that is written of anything.
fn cap() -> Targets {
    let warnings = Targets::new().with_default(LevelFilter::WARN);
    // The spans of traces are no log lines.
    let none = [SILENT, spans::TARGET].map(|target| (target, LevelFilter::OFF));
    warnings.with_target("profile_edge", LevelFilter::TRACE).with_targets(none)
}

/// Logs where a panic happened; what it said only if that was a constant, for it may hold data.
fn log_panic(info: &panic::PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload().downcast_ref::<&'static str>().copied().unwrap_or("(not shown)");
    tracing::error!(location, message, "panicked");
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::cap;

    #[test]
    fn libraries_are_kept_from_details_and_we_are_not() {
        let cap = cap();
        for library in
            ["hyper", "h2", "reqwest::connect", "rustls::client", "redis", "log", "tokio_util", "not_there_yet"]
        {
            assert!(!cap.would_enable(library, &Level::INFO), "{library}");
            assert!(cap.would_enable(library, &Level::WARN), "{library}");
        }
        assert!(!cap.would_enable("lapin::channel", &Level::ERROR));
        assert!(cap.would_enable("profile_edge::http", &Level::TRACE));
    }
}
