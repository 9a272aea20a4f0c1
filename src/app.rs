//! The composition root: creates every component, bottom-up, starts them, and returns what stops them.
//!
//! # Order
//!
//! Start: bind every listener, so that a port in use is an error before anything has happened → queue, store, upstream →
//! flows → serve → consume events → ready. Stop, within one deadline (`shutdown.deadline`): not ready → accept nothing
//! more → finish work in progress, including applied events and fetches → close the queue, so that every settled delivery
//! stays settled → write the last audit record. In between, [`App::reload`] changes access without a restart.

mod components;
mod dependencies;
mod error;
mod probe;
mod reload;
mod sandboxed;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::audit::{self, Audit};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::faults::Faults;
use crate::http::routes::admin;
use crate::http::server;
use crate::metrics::{Listener, Metrics};
use crate::queue;
use crate::readiness::{Phase, Readiness};
use crate::shutdown::{Controller, Shutdown};

use components::Components;
use probe::PROBE_EVERY;
use reload::AccessControl;
use sandboxed::{bind_sandbox_webhook, start_sandbox};

pub use error::Error;

/// A running profile-edge.
#[derive(Debug)]
pub struct App {
    /// The address of the public listener.
    pub public: SocketAddr,
    /// The address of the admin listener.
    pub admin: SocketAddr,
    /// The address of the sandbox, if it runs.
    pub sandbox: Option<SocketAddr>,
    readiness: Arc<Readiness>,
    flows: Controller,
    queue: Option<queue::open::OpenQueue>,
    queue_tasks: Controller,
    audit: Audit,
    audit_tasks: Controller,
    access: AccessControl,
    /// The metrics of this process.
    pub metrics: Arc<Metrics>,
    /// The configuration at the start.
    config: Config,
}

impl App {
    /// Starts everything that the configuration enables; returns when the process is ready.
    ///
    /// # Errors
    ///
    /// A port is in use, the queue or the store cannot be opened within `startup_timeout`, or a component cannot use its
    /// configuration.
    pub async fn start(mut config: Config, faults: Faults) -> Result<Self, Error> {
        let started = Instant::now();
        let public = server::config::bind(config.http.listen, "http.listen").await?;
        let admin = server::config::bind(config.admin.listen, "admin.listen").await?;
        let (flows, shutdown) = Shutdown::new();
        let (queue_tasks, queue_shutdown) = Shutdown::new();
        let (audit_tasks, audit_shutdown) = Shutdown::new();
        let (metrics, clock) = (Metrics::of(config.roles), SystemClock::shared());
        let (public_addr, admin_addr) = (addr(&public), addr(&admin));
        let sandbox_webhook = bind_sandbox_webhook(&config).await?;
        let posts_to = sandbox_webhook.as_ref().map_or(public_addr, addr);
        let sandbox = start_sandbox(&mut config, posts_to, &clock, &shutdown).await?;
        let access = AccessControl::of(&config)?;
        let until = started + config.startup_timeout;
        let components = Components {
            hashers: config.keys.hashers(),
            queue: dependencies::queue(&config, &clock, &queue_shutdown, &metrics, until).await?,
            store: dependencies::store(&config, &access, &clock, &metrics, &shutdown, until).await?,
            access,
            readiness: Arc::new(Readiness::starting(config.roles)),
            audit: audit::open::open(&config.audit, &clock, &metrics, &audit_shutdown)?,
            config,
            clock,
            metrics,
            faults,
            shutdown,
        };
        let (lookup, refused) = components.lookup()?;
        let (routes, lookups) = components.public_routes(lookup)?;
        let public_service =
            |tls: &Option<_>| components.service(routes.clone(), tls.is_some()).with_direct_route(lookups.clone());
        if let Some(socket) = sandbox_webhook {
            components.serve(socket, Listener::Public, public_service(&None), None);
        }
        let AccessControl { public_tls, admin_tls, .. } = components.access.clone();
        components.serve(public, Listener::Public, public_service(&public_tls), public_tls);
        let operators = components.service(admin::routes(components.ops()), admin_tls.is_some());
        components.serve(admin, Listener::Admin, operators, admin_tls);
        components.consume();
        components.probe(refused).await;
        components.readiness.enter(Phase::Running);
        let ready_after = started.elapsed();
        let shown = sandbox.map(tracing::field::display);
        tracing::info!(public = %public_addr, admin = %admin_addr, sandbox = shown, ?ready_after, "ready");
        Ok(Self {
            public: public_addr,
            admin: admin_addr,
            sandbox,
            readiness: components.readiness,
            flows,
            queue: components.queue,
            queue_tasks,
            audit: components.audit,
            audit_tasks,
            access: components.access,
            metrics: components.metrics,
            config: components.config,
        })
    }

    /// Stops within `shutdown.deadline`; returns whether all work was finished.
    ///
    /// Unfinished events are not lost: they are redelivered after the next start.
    pub async fn stop(self) -> bool {
        let deadline = self.config.shutdown.deadline;
        tracing::info!(?deadline, "draining");
        let until = Instant::now() + deadline;
        self.readiness.enter(Phase::Draining);
        let flows_ended = self.flows.drain(deadline).await;
        let closed = match &self.queue {
            Some(queue) => queue.closer.close().await,
            None => Ok(()),
        };
        if let Err(error) = &closed {
            tracing::error!(%error, "the queue was not closed cleanly");
        }
        // Closing has a deadline of its own. Its tasks get a moment even if the flows took all of the time.
        let left = until.saturating_duration_since(Instant::now()).max(PROBE_EVERY);
        let queue_ended = self.queue_tasks.drain(left).await;
        self.audit.close();
        let left = until.saturating_duration_since(Instant::now()).max(PROBE_EVERY);
        let audit_ended = self.audit_tasks.drain(left).await;
        if !audit_ended {
            tracing::error!("the audit sink does not accept records, the last ones may be lost");
        }
        let finished = flows_ended && closed.is_ok() && queue_ended && audit_ended;
        tracing::info!(finished, "stopped");
        finished
    }
}

/// Returns the address of a bound listener.
fn addr(listener: &TcpListener) -> SocketAddr {
    // Only an unbound socket has no address.
    listener.local_addr().expect("a bound listener has an address")
}
