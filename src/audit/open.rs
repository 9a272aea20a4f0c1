//! Opens the sink that the configuration names, and starts the writer.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

use super::chain::Chain;
use super::config::{Config, SinkKind};
use super::file::{self, OpenedFile};
use super::recent_events::RecentEvents;
use super::refusals::Refusals;
use super::sink_state::SinkState;
use super::sinks::{Sink, Stdout};
use super::system_record::SystemRecord;
use super::writer::Writer;
use super::{Audit, AuditHandle};

/// The audit cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] file::Error),
    /// Standard output is closed.
    #[error("audit.sink: standard output cannot be used: {0}")]
    Stdout(io::Error),
    /// The thread of the writer cannot be created.
    #[error("cannot create the thread of the audit writer: {0}")]
    Thread(io::Error),
}

/// An open sink and the chain that the writer continues there.
pub(super) struct OpenSink {
    pub(super) sink: Box<dyn Sink>,
    pub(super) chain: Chain,
    /// What the writer records first.
    pub(super) first: Vec<SystemRecord>,
    pub(super) recent: RecentEvents,
}

/// Opens the sink and starts the writer. `tasks` tracks the writer until [`Audit::close`] stops it.
///
/// # Errors
///
/// The sink cannot be used, or another process uses the file.
pub fn open(config: &Config, clock: &SharedClock, metrics: &Arc<Metrics>, tasks: &Shutdown) -> Result<Audit, Error> {
    let hasher = config.hasher();
    let open = match config.sink {
        SinkKind::None => return Ok(Audit::off()),
        SinkKind::Stdout => OpenSink {
            sink: Box::new(Stdout::new().map_err(Error::Stdout)?),
            first: vec![SystemRecord::began(hasher.as_str(), None)],
            chain: Chain::start(hasher),
            recent: RecentEvents::default(),
        },
        SinkKind::File => {
            let OpenedFile { sink, head, first, recent } = file::open(config, &hasher)?;
            let chain = head.map_or_else(|| Chain::start(hasher.clone()), |head| Chain::resume(hasher.clone(), head));
            OpenSink { sink: Box::new(sink), chain, first, recent }
        }
    };
    start(config, open, clock, metrics, tasks)
}

pub(super) fn start(
    config: &Config,
    open: OpenSink,
    clock: &SharedClock,
    metrics: &Arc<Metrics>,
    tasks: &Shutdown,
) -> Result<Audit, Error> {
    let (commands, receiver) = sync_channel(config.buffer);
    let state = Arc::new(SinkState::new(Arc::clone(metrics)));
    let refusals = Arc::<Refusals>::default();
    let OpenSink { sink, chain, first, recent } = open;
    let writer = Writer {
        commands: receiver,
        sink,
        chain,
        recent,
        fsync: config.fsync,
        clock: Arc::clone(clock),
        state: Arc::clone(&state),
        refusals: Arc::clone(&refusals),
        recorded_refusals: None,
        pending: Vec::new(),
        pending_records: 0,
        waiting: Vec::new(),
        unsynced_since: None,
        logged_head: (Instant::now(), 0),
    };
    let (running, ended) = oneshot::channel::<()>();
    let thread = move || {
        let _running = running;
        writer.run(&first);
    };
    let thread = std::thread::Builder::new().name("audit-writer".to_owned()).spawn(thread).map_err(Error::Thread)?;
    tasks.spawn(async move {
        // Nothing is ever sent: the wait ends when the thread drops its side.
        let _ = ended.await;
    });
    Ok(Audit(Some(Arc::new(AuditHandle {
        commands,
        writer: thread.thread().clone(),
        state,
        refusals,
        clock: Arc::clone(clock),
        lookups: config.lookups,
        strict: config.strict,
    }))))
}
