//! The composition root: creates every component, bottom-up, starts them, and returns what stops them.
//!
//! # Order
//!
//! Start: bind every listener, so that a port in use is an error before anything has happened → serve operators and probes
//! (`starting`) → queue, store, upstream → flows → serve → consume events → ready. Stop: not ready, and still accepting for
//! `shutdown.delay` → then, within one deadline (`shutdown.deadline`): accept nothing more → finish work in progress,
//! including applied events and fetches → hand the outbox on → close the queue, so that every settled delivery stays settled
//! → stop serving operators and probes → write the last audit record. In between, [`App::reload`] changes access without a restart.

mod components;
mod dependencies;
mod error;
mod listeners;
mod prewarm;
mod probe;
mod reload;
mod sandboxed;
mod watches;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::audit::{self, Audit};
use crate::clock;
use crate::config::Config;
use crate::consumer::foreign::ForeignConsumers;
use crate::faults::Faults;
use crate::http::routes::admin::{self, AdminApi};
use crate::http::server;
use crate::http::server::cors::AllowedOrigins;
use crate::metrics::{Listener, Metrics};
use crate::queue;
use crate::readiness::{Phase, Readiness};
use crate::shutdown::{Controller, Shutdown};
use crate::store::Clears;

use components::Components;
use listeners::{Listeners, addr};
use probe::PROBE_EVERY;
use reload::AccessControl;
use sandboxed::{bind_sandbox_webhook, start_sandbox};

pub use error::Error;

/// How much of the drain's deadline is left for closing the queue while the outbox waits for the broker.
const CLOSING: Duration = Duration::from_secs(2);

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
    admin_tasks: Controller,
    audit: Audit,
    audit_tasks: Controller,
    access: AccessControl,
    /// The metrics of this process.
    pub metrics: Arc<Metrics>,
    /// The configuration at the start.
    config: Arc<Config>,
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
        let public = server::config::bind(config.http.listen, "http.listen")?;
        let admin = server::config::bind(config.admin.listen, "admin.listen")?;
        let (flows, shutdown) = Shutdown::new();
        let (queue_tasks, queue_shutdown) = Shutdown::new();
        let (admin_tasks, admin_shutdown) = Shutdown::new();
        let (audit_tasks, audit_shutdown) = Shutdown::new();
        let (metrics, clock) = (Metrics::of(config.roles), clock::of_the_program());
        let (public_addr, admin_addr) = (addr(&public), addr(&admin));
        let access = AccessControl::of(&config)?;
        let audit = audit::open::open(&config.audit, &clock, &metrics, &audit_shutdown)?;
        let readiness = Arc::new(Readiness::starting(config.roles));
        let operators = Arc::new(AdminApi {
            operations: OnceLock::new(),
            audit: audit.clone(),
            readiness: Arc::clone(&readiness),
            metrics: Arc::clone(&metrics),
            shutdown: shutdown.clone(),
            key: access.admin_key.clone(),
            is_loopback: config.admin.listen.ip().is_loopback(),
        });
        let AccessControl { public_tls, admin_tls, .. } = access.clone();
        let (http, listener_metrics) = (config.http.clone(), Arc::clone(&metrics));
        let listeners = Listeners { config: &http, metrics: &listener_metrics };
        let admin_service = listeners.service(admin::routes(Arc::clone(&operators)), admin_tls.is_some());
        listeners.serve(admin, Listener::Admin, admin_service, admin_tls, &admin_shutdown);
        let sandbox_webhook = bind_sandbox_webhook(&config)?;
        let posts_to = sandbox_webhook.as_ref().map_or(public_addr, addr);
        let sandbox = start_sandbox(&mut config, posts_to, &clock, &shutdown).await?;
        let until = started + config.startup_timeout;
        let (queue, store) = tokio::try_join!(
            readiness.awaiting("queue", dependencies::queue(&config, &clock, &queue_shutdown, &metrics, until)),
            readiness.awaiting("store", dependencies::store(&config, &access, &clock, &metrics, &shutdown, until)),
        )?;
        let (hashers, clears) = (config.keys.hashers(), Clears::default());
        let components = Components {
            hashers,
            queue,
            store,
            clears,
            foreign: ForeignConsumers::default(),
            access,
            readiness,
            audit,
            config,
            clock,
            metrics,
            faults,
            shutdown,
        };
        components.follow_clears().await;
        let upstream = components.upstream()?;
        let sources = components.sources(&upstream);
        let lookup = components.lookup(upstream.upstream, &sources);
        let (routes, lookups) = components.public_routes(lookup, upstream.agents)?;
        let origins =
            AllowedOrigins::parse(&components.config.http.cors_origins).map_err(|error| error.within("http"))?;
        // It is set once: here.
        let _ = operators.operations.set(components.operations(upstream.audits));
        let public_service = |tls: &Option<_>| {
            let service = listeners.service(routes.clone(), tls.is_some()).with_direct_route(lookups.clone());
            service.with_origins(origins.clone())
        };
        if let Some(socket) = sandbox_webhook {
            listeners.serve(socket, Listener::Public, public_service(&None), None, &components.shutdown);
        }
        listeners.serve(public, Listener::Public, public_service(&public_tls), public_tls, &components.shutdown);
        components.consume();
        components.probe(upstream.tenant_health, sources).await;
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
            admin_tasks,
            audit: components.audit,
            audit_tasks,
            access: components.access,
            metrics: components.metrics,
            config: Arc::new(components.config),
        })
    }

    /// Stops after `shutdown.delay`, within `shutdown.deadline`; returns whether all work was finished.
    ///
    /// Unfinished events are not lost: they are redelivered after the next start.
    pub async fn stop(self) -> bool {
        let (delay, deadline) = (self.config.shutdown.delay(), self.config.shutdown.deadline);
        self.readiness.enter(Phase::Draining);
        tracing::info!(
            ?delay,
            ?deadline,
            "draining: not ready, new connections are accepted until the delay has passed"
        );
        sleep(delay).await;
        let until = Instant::now() + deadline;
        let flows_ended = self.flows.drain(deadline).await;
        if let Some(outbox) = self.queue.as_ref().and_then(|queue| queue.outbox.as_ref()) {
            outbox.drain(until - CLOSING.min(deadline)).await;
        }
        let closed = match &self.queue {
            Some(queue) => queue.closer.close().await,
            None => Ok(()),
        };
        if let Err(error) = &closed {
            tracing::error!(%error, "the queue was not closed cleanly");
        }
        // Closing has a deadline of its own. Its tasks get a moment even if the flows took all of the time.
        let left = || until.saturating_duration_since(Instant::now()).max(PROBE_EVERY);
        let queue_ended = self.queue_tasks.drain(left()).await;
        let admin_ended = self.admin_tasks.drain(left()).await;
        self.audit.close();
        let audit_ended = self.audit_tasks.drain(left()).await;
        if !audit_ended {
            tracing::error!("the audit sink does not accept records, the last ones may be lost");
        }
        let finished = flows_ended && closed.is_ok() && queue_ended && admin_ended && audit_ended;
        tracing::info!(finished, "stopped");
        finished
    }
}
