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
use super::config::{Config, Sink};
use super::file::{self, Opened};
use super::recent::Recent;
use super::record::Note;
use super::shared::Shared;
use super::sinks::{self, Stdout};
use super::writer::Writer;
use super::{Audit, AuditHandle};

/// The audit cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] file::Error),
    /// Standard output is closed.
    #[error("audit.sink: standard output cannot be used: {0}")]
    Stdout(io::Error),
    /// There is no thread for the writer.
    #[error("no thread for the audit: {0}")]
    Thread(io::Error),
}

/// What the writer begins with.
pub(super) struct Beginning {
    pub(super) sink: Box<dyn sinks::Sink>,
    pub(super) chain: Chain,
    pub(super) notes: Vec<Note>,
    pub(super) recent: Recent,
}

/// Opens the sink and starts the writer, which `tasks` tracks until [`Audit::close`] ends it.
///
/// # Errors
///
/// The sink cannot be used, or another process has the file.
pub fn open(config: &Config, clock: &SharedClock, metrics: &Arc<Metrics>, tasks: &Shutdown) -> Result<Audit, Error> {
    let hasher = config.hasher();
    let beginning = match config.sink {
        Sink::None => return Ok(Audit::off()),
        Sink::Stdout => Beginning {
            sink: Box::new(Stdout::new().map_err(Error::Stdout)?),
            chain: Chain::begin(hasher),
            notes: vec![Note::Began { mistrusted: None }],
            recent: Recent::default(),
        },
        Sink::File => {
            let Opened { sink, head, notes, recent } = file::open(config, &hasher)?;
            let chain = head.map_or_else(|| Chain::begin(hasher.clone()), |head| Chain::resume(hasher.clone(), head));
            Beginning { sink: Box::new(sink), chain, notes, recent }
        }
    };
    start(config, beginning, clock, metrics, tasks)
}

pub(super) fn start(
    config: &Config,
    beginning: Beginning,
    clock: &SharedClock,
    metrics: &Arc<Metrics>,
    tasks: &Shutdown,
) -> Result<Audit, Error> {
    let (entries, receiver) = sync_channel(config.buffer);
    let shared = Arc::new(Shared::new(Arc::clone(metrics)));
    let Beginning { sink, chain, notes, recent } = beginning;
    let writer = Writer {
        entries: receiver,
        sink,
        chain,
        recent,
        fsync: config.fsync,
        clock: Arc::clone(clock),
        shared: Arc::clone(&shared),
        pending: Vec::new(),
        pending_records: 0,
        waiting: Vec::new(),
        unsynced_since: None,
        told: (Instant::now(), 0),
    };
    let (running, ended) = oneshot::channel::<()>();
    let thread = move || {
        let _running = running;
        writer.run(&notes);
    };
    let thread = std::thread::Builder::new().name("audit-writer".to_owned()).spawn(thread).map_err(Error::Thread)?;
    tasks.spawn(async move {
        // Nothing is ever sent: it ends when the thread drops its side.
        let _ = ended.await;
    });
    Ok(Audit(Some(Arc::new(AuditHandle {
        entries,
        writer: thread.thread().clone(),
        shared,
        clock: Arc::clone(clock),
        lookups: config.lookups,
        strict: config.strict,
    }))))
}
