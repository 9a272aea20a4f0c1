//! Logs: structured, on standard error.
//!
//! The format is text on a terminal, else JSON. Our log statements never contain personal data. Libraries can log headers,
//! bodies and frames at detailed levels, so all libraries, also future ones, are limited to warnings, whatever `RUST_LOG`
//! says.
//!
//! Whoever logs never waits for the reader of standard error: see `line_queue.rs`. What waits at the end of the process is
//! written by [`flush`], within half a second.

mod line_queue;
mod line_writer;

use std::io::{IsTerminal, Write};
use std::panic;
use std::time::Duration;

use serde::Deserialize;
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, Targets};
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::spans;

use line_queue::LineQueue;
use line_writer::LineWriter;

/// The lines of this process.
static LINES: LineQueue = LineQueue::new();

/// How long the end of the process may wait for the reader of standard error.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// A library that logs every refusal of the broker as an error, even an expected one. The caller logs the relevant ones.
const SILENT: &str = "lapin";

/// `[log]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The level of our own log lines; libraries are limited to warnings.
    pub level: LogLevel,
    /// The format of the log lines.
    pub format: Format,
    /// From which duration on a lookup is logged with its phases; zero: never.
    #[serde(with = "humantime_serde")]
    pub slow_lookup: Duration,
}

/// A log level; each level includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Failures that need an operator.
    Error,
    /// Failures that were handled.
    Warn,
    /// Changes of state.
    Info,
    /// Single events.
    Debug,
    /// All details.
    Trace,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One JSON object per line.
    Json,
    /// Text for people.
    Text,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// A layer of the subscriber with its own filter.
pub type LogLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts logging for the process; a second call does nothing.
pub fn init(config: &Config) {
    init_with(config, None);
}

/// Starts logging, and passes the spans of traces to `traces`; log lines do not contain them.
pub fn init_with(config: &Config, traces: Option<LogLayer>) {
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
    let lines = fmt::layer().with_writer(move || LineWriter { queue: &LINES, is_json: !as_text });
    let lines = if as_text {
        lines.with_ansi(std::io::stderr().is_terminal() && !is_plain()).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    };
    let layers: Vec<LogLayer> = traces.into_iter().chain([lines.with_filter(filter.and(cap())).boxed()]).collect();
    if tracing_subscriber::registry().with(layers).try_init().is_ok() {
        panic::set_hook(Box::new(log_panic));
        if let Err(error) = std::thread::Builder::new().name("log-writer".to_owned()).spawn(write_lines) {
            let _ = writeln!(std::io::stderr().lock(), "profile-edge: cannot create the thread of the log: {error}");
        }
    }
}

/// Writes a text for people to standard error, in order with the log lines.
pub fn print(text: &str) {
    LINES.push(text.as_bytes());
}

/// Returns how many log lines of this process were dropped because standard error did not accept them.
#[must_use]
pub fn dropped_lines() -> u64 {
    LINES.dropped()
}

/// Waits until all log lines are written, for at most half a second. To be called at the end of the process.
pub fn flush() {
    LINES.flush(FLUSH_LIMIT);
}

/// Writes the lines to standard error until the end of the process.
fn write_lines() {
    loop {
        if let Some(lines) = LINES.write_next(&mut std::io::stderr()) {
            tracing::warn!(lines, "log lines were dropped: standard error did not accept them in time");
        }
    }
}

/// Returns whether the environment asks for text without colours (<https://no-color.org>).
fn is_plain() -> bool {
    let var = |name| std::env::var_os(name).unwrap_or_default();
    !var("NO_COLOR").is_empty() || var("TERM") == "dumb"
}

/// Returns the upper limit of each target.
fn cap() -> Targets {
    let warnings = Targets::new().with_default(LevelFilter::WARN);
    // The spans of traces are not log lines.
    let none = [SILENT, spans::TARGET].map(|target| (target, LevelFilter::OFF));
    warnings.with_target("profile_edge", LevelFilter::TRACE).with_targets(none)
}

/// Logs the location of a panic, and its message only if that is a constant: other messages may contain data.
fn log_panic(info: &panic::PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload().downcast_ref::<&'static str>().copied().unwrap_or("(not shown)");
    tracing::error!(location, message, "panicked");
}

#[cfg(test)]
mod tests {
    use super::cap;

    #[test]
    fn libraries_log_warnings_at_most() {
        let cap = cap();
        for library in
            ["hyper", "h2", "reqwest::connect", "rustls::client", "redis", "log", "tokio_util", "not_there_yet"]
        {
            assert!(!cap.would_enable(library, &tracing::Level::INFO), "{library}");
            assert!(cap.would_enable(library, &tracing::Level::WARN), "{library}");
        }
        assert!(!cap.would_enable("lapin::channel", &tracing::Level::ERROR));
        assert!(cap.would_enable("profile_edge::http", &tracing::Level::TRACE));
    }
}
