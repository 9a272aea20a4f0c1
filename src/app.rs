//! The composition root: the one page that wires everything, bottom-up, starts last, and returns what
//! stops it.
//!
//! # Order
//!
//! Start: bind every listener (a port in use is found before anything has happened) → queue, store,
//! upstream → flows → serve → take events → ready. Stop, under one deadline (`shutdown.deadline`):
//! unready → accept nothing more → finish what is under way, applied events and fetches included → close
//! the queue, so that everything that was settled stays settled → write the last audit record. In between,
//! [`App::reload`] changes who may come in, without a stop.

mod error;
mod probe;
mod reload;
mod sandboxed;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::audit::{self, Audit};
use crate::clock::{SharedClock, SystemClock};
use crate::config::Config;
use crate::consumer::losses::Losses;
use crate::consumer::worker::Worker;
use crate::domain::KeyHasher;
use crate::faults::Faults;
use crate::http::auth::authenticate::CallerAuth;
use crate::http::auth::jwt::TokenSigner;
use crate::http::routes::admin::{self, AdminApi};
use crate::http::routes::lookup_api::LookupApi;
use crate::http::routes::{contact, oauth_token, openapi, profile, webhook};
use crate::http::server::service::{DirectRoute, HttpService};
use crate::http::server::{self, limits};
use crate::ingest::Ingest;
use crate::lookup::{self, Lookup};
use crate::metrics::{Listener, Metrics};
use crate::operate::actions::Actions;
use crate::operate::replay::Replays;
use crate::readiness::{Phase, Readiness};
use crate::reload::Reloadable;
use crate::shutdown::{Controller, Shutdown};
use crate::store::Lifetimes;
use crate::{queue, store, upstream};

use probe::{PROBE_EVERY, Probe};
use reload::Doors;
use sandboxed::{open_backstage, start_sandbox};

pub use error::Error;

/// How many connections the admin listener may have open: operators, scrapers and probes are few.
const ADMIN_CONNECTIONS: usize = 512;

/// A running profile-edge.
#[derive(Debug)]
pub struct App {
    /// Where the public listener listens.
    pub public: SocketAddr,
    /// Where the admin listener listens.
    pub admin: SocketAddr,
    /// Where the sandbox listens, if it runs.
    pub sandbox: Option<SocketAddr>,
    readiness: Arc<Readiness>,
    flows: Controller,
    queue: Option<queue::open::Opened>,
    queue_tasks: Controller,
    audit: Audit,
    audit_tasks: Controller,
    doors: Doors,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// What it was started with.
    config: Config,
}

/// What the flows are made of.
struct Ground {
    config: Config,
    doors: Doors,
    hashers: Vec<KeyHasher>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    audit: Audit,
    faults: Faults,
    shutdown: Shutdown,
    readiness: Arc<Readiness>,
    /// `None` where no role uses it.
    queue: Option<queue::open::Opened>,
    store: store::open::Opened,
}

impl App {
    /// Starts everything that the configuration asks for; returns once it is ready.
    ///
    /// # Errors
    ///
    /// A port is in use, the queue or store cannot be opened, or a part refuses its configuration.
    pub async fn start(mut config: Config, faults: Faults) -> Result<Self, Error> {
        let started = Instant::now();
        let public = server::config::bind(config.http.listen, "http.listen").await?;
        let admin = server::config::bind(config.admin.listen, "admin.listen").await?;
        let (flows, shutdown) = Shutdown::new();
        let (queue_tasks, queue_shutdown) = Shutdown::new();
        let (audit_tasks, audit_shutdown) = Shutdown::new();
        let (metrics, clock) = (Metrics::of(config.roles), SystemClock::shared());
        let (public_addr, admin_addr) = (addr(&public), addr(&admin));
        let backstage = open_backstage(&config).await?;
        let posts_to = backstage.as_ref().map_or(public_addr, addr);
        let sandbox = start_sandbox(&mut config, posts_to, &clock, &shutdown).await?;
        let doors = Doors::of(&config)?;
        let ground = Ground {
            hashers: config.keys.hashers(),
            queue: open_queue(&config, &clock, &queue_shutdown, &metrics).await?,
            store: open_store(&config, &doors, &clock, &metrics, &shutdown).await?,
            doors,
            readiness: Arc::new(Readiness::starting(config.roles)),
            audit: audit::open::open(&config.audit, &clock, &metrics, &audit_shutdown)?,
            config,
            clock,
            metrics,
            faults,
            shutdown,
        };
        let (lookup, standing) = ground.lookup()?;
        let (routes, lookups) = ground.public_routes(lookup)?;
        let public_front =
            |tls: &Option<_>| ground.front(routes.clone(), tls.is_some()).with_direct_route(lookups.clone());
        if let Some(backstage) = backstage {
            ground.serve(backstage, Listener::Public, public_front(&None), None);
        }
        let Doors { public_tls, admin_tls, .. } = ground.doors.clone();
        ground.serve(public, Listener::Public, public_front(&public_tls), public_tls);
        let operators = ground.front(admin::routes(ground.ops()), admin_tls.is_some());
        ground.serve(admin, Listener::Admin, operators, admin_tls);
        ground.consume();
        ground.watch(standing).await;
        ground.readiness.enter(Phase::Running);
        let ready_after = started.elapsed();
        let shown = sandbox.map(tracing::field::display);
        tracing::info!(public = %public_addr, admin = %admin_addr, sandbox = shown, ?ready_after, "ready");
        Ok(Self {
            public: public_addr,
            admin: admin_addr,
            sandbox,
            readiness: ground.readiness,
            flows,
            queue: ground.queue,
            queue_tasks,
            audit: ground.audit,
            audit_tasks,
            doors: ground.doors,
            metrics: ground.metrics,
            config: ground.config,
        })
    }

    /// Stops in good order, within `shutdown.deadline`; returns whether everything was finished.
    ///
    /// What was not finished is not lost: events are redelivered at the next start.
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
            tracing::error!(%error, "the queue was not closed in good order");
        }
        // Closing is bounded by itself; its tasks get a moment even when the flows took all of the time.
        let left = until.saturating_duration_since(Instant::now()).max(PROBE_EVERY);
        let queue_ended = self.queue_tasks.drain(left).await;
        self.audit.close();
        let left = until.saturating_duration_since(Instant::now()).max(PROBE_EVERY);
        let audit_ended = self.audit_tasks.drain(left).await;
        if !audit_ended {
            tracing::error!("the audit's sink takes nothing: its last records may be lost");
        }
        let finished = flows_ended && closed.is_ok() && queue_ended && audit_ended;
        tracing::info!(finished, "stopped");
        finished
    }
}

impl Ground {
    fn lookup(&self) -> Result<(Lookup, upstream::open::Standing), Error> {
        let tenants = self.config.tenants.iter();
        let upstreams = tenants.clone().filter_map(|tenant| Some((tenant.id.clone(), tenant.upstream.as_ref()?)));
        let upstream = upstream::open::open(&self.config.upstream, upstreams, &self.metrics, &self.shutdown)?;
        let lookup = Lookup::new(lookup::Parts {
            store: Arc::clone(&self.store.store),
            upstream: upstream.upstream,
            hasher: self.hasher(),
            previous: self.hashers.get(1).cloned(),
            tenants: tenants.map(|tenant| (tenant.id.clone(), tenant.lookup.clone())).collect(),
            settle_window: self.config.consumer.settle_window,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            shutdown: self.shutdown.clone(),
            faults: self.faults.clone(),
        });
        Ok((lookup, upstream.standing))
    }

    /// Returns the public routes, and the one of lookups that bypasses the router, if this process answers lookups.
    fn public_routes(&self, lookup: Lookup) -> Result<(Router, Option<Arc<dyn DirectRoute>>), Error> {
        let roles = self.config.roles;
        let max_body = usize::try_from(self.config.http.max_body.as_u64()).unwrap_or(usize::MAX);
        let mut routes = openapi::routes();
        if let Some(queue) = self.queue.as_ref().filter(|_| roles.ingest) {
            let ingest = Ingest::new(
                self.doors.sources.clone(),
                self.hashers.clone(),
                Arc::clone(&queue.publisher),
                Arc::clone(&self.clock),
                Arc::clone(&self.metrics),
            );
            routes = routes.merge(webhook::routes(Arc::new(ingest), self.audit.clone(), max_body));
        }
        let mut lookups: Option<Arc<dyn DirectRoute>> = None;
        if roles.lookup {
            let door = self.door()?;
            let api = Arc::new(LookupApi {
                lookup,
                auth: Arc::clone(&door),
                audit: self.audit.clone(),
                hasher: self.hasher(),
                clock: Arc::clone(&self.clock),
                max_body,
            });
            routes = routes.merge(profile::routes(Arc::clone(&api)));
            routes = routes.merge(contact::routes(Arc::clone(&api))).merge(oauth_token::routes(door));
            lookups = Some(api);
        }
        Ok((routes, lookups))
    }

    fn door(&self) -> Result<Arc<CallerAuth>, Error> {
        let http = &self.config.http;
        let tokens = TokenSigner::new(http.token_secret.as_ref(), http.token_lifetime, Arc::clone(&self.clock))?;
        Ok(Arc::new(CallerAuth::new(self.doors.callers.clone(), tokens, Arc::clone(&self.metrics))))
    }

    fn ops(&self) -> Arc<AdminApi> {
        Arc::new(AdminApi {
            actions: Actions {
                tenants: self.config.tenants.iter().map(|tenant| tenant.id.clone()).collect(),
                hashers: self.hashers.clone(),
                store: Arc::clone(&self.store.inspect),
                publisher: self.queue.as_ref().map(|queue| Arc::clone(&queue.publisher)),
                dead_letters: self.queue.as_ref().map(|queue| Arc::clone(&queue.dead_letters)),
                clock: Arc::clone(&self.clock),
            },
            replays: Replays {
                queue: self.queue.as_ref().map(|queue| Arc::clone(&queue.queue)),
                publisher: self.queue.as_ref().map(|queue| Arc::clone(&queue.publisher)),
                clock: Arc::clone(&self.clock),
                metrics: Arc::clone(&self.metrics),
                shutdown: self.shutdown.clone(),
                place: Arc::default(),
            },
            audit: self.audit.clone(),
            readiness: Arc::clone(&self.readiness),
            metrics: Arc::clone(&self.metrics),
            shutdown: self.shutdown.clone(),
            key: self.doors.admin_key.clone(),
        })
    }

    fn front(&self, routes: Router, is_tls: bool) -> HttpService {
        HttpService::new(routes, self.config.http.max_in_flight, is_tls, Arc::clone(&self.metrics))
    }

    fn serve(
        &self,
        socket: TcpListener,
        listener: Listener,
        front: HttpService,
        tls: Option<Reloadable<ServerConfig>>,
    ) {
        let http = &self.config.http;
        let wanted = match listener {
            Listener::Public => http.limits.max_connections,
            Listener::Admin => http.limits.max_connections.min(ADMIN_CONNECTIONS),
        };
        let options = server::ServerOptions {
            listener,
            connections: limits::connections_that_fit(wanted),
            limits: http.limits.clone(),
            tls,
            metrics: Arc::clone(&self.metrics),
        };
        self.shutdown.spawn(server::serve(socket, front, options, self.shutdown.clone()));
    }

    fn consume(&self) {
        let Some(queue) = self.queue.as_ref().filter(|_| self.config.roles.consumer) else { return };
        let worker = Worker {
            queue: Arc::clone(&queue.queue),
            store: Arc::clone(&self.store.store),
            probe: Arc::clone(&self.store.inspect),
            audit: self.audit.clone(),
            concurrency: self.config.consumer.concurrency,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            shutdown: self.shutdown.clone(),
            faults: self.faults.clone(),
        };
        self.shutdown.spawn(worker.run());
        let losses = Losses {
            store: Arc::clone(&self.store.inspect),
            queue: Arc::clone(&queue.queue),
            clock: Arc::clone(&self.clock),
            shutdown: self.shutdown.clone(),
        };
        self.shutdown.spawn(losses.run());
    }

    /// Probes the dependencies once, then goes on doing so until shutdown.
    async fn watch(&self, standing: upstream::open::Standing) {
        let probe = Probe {
            standing,
            readiness: Arc::clone(&self.readiness),
            metrics: Arc::clone(&self.metrics),
            audit: self.audit.clone(),
            store: Arc::clone(&self.store.inspect),
            queue: self.queue.as_ref().map(|queue| Arc::clone(&queue.queue)),
        };
        probe.ask().await;
        self.shutdown.spawn(probe.run(self.shutdown.clone()));
    }

    /// The scheme that lookups use: the present one.
    fn hasher(&self) -> KeyHasher {
        self.hashers.first().cloned().unwrap_or(KeyHasher::Sha256)
    }
}

/// Opens the queue, unless this process only answers lookups.
async fn open_queue(
    config: &Config,
    clock: &SharedClock,
    tasks: &Shutdown,
    metrics: &Arc<Metrics>,
) -> Result<Option<queue::open::Opened>, queue::Error> {
    if !config.roles.use_the_queue() {
        return Ok(None);
    }
    let opened = queue::open::open(&config.queue, Arc::clone(clock), tasks, Arc::clone(metrics)).await?;
    Ok(Some(opened))
}

/// Opens the store; it is waited for where a role uses it.
async fn open_store(
    config: &Config,
    doors: &Doors,
    clock: &SharedClock,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
) -> Result<store::open::Opened, store::Error> {
    let needed = config.roles.use_the_store();
    store::open::open(&config.store, &doors.keyring, lifetimes(config), clock, metrics, shutdown, needed).await
}

fn lifetimes(config: &Config) -> Lifetimes {
    Lifetimes { dedup_window: config.consumer.dedup_window, tombstone_ttl: config.consumer.tombstone_ttl }
}

/// Returns where a bound listener listens.
fn addr(listener: &TcpListener) -> SocketAddr {
    // Only an unbound socket has no address.
    listener.local_addr().expect("a bound listener has an address")
}
