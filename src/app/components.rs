//! The components of a running process, and how they are connected.

use std::sync::Arc;

use axum::Router;

use crate::audit::Audit;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::consumer::foreign::{ForeignConsumers, ForeignWatch};
use crate::consumer::losses::LossDetector;
use crate::consumer::refusals::Refusals;
use crate::consumer::worker::Worker;
use crate::doctor::policies;
use crate::domain::{KeyHasher, QueryHasher};
use crate::faults::Faults;
use crate::http::auth::agents::Agents;
use crate::http::auth::authenticate::CallerAuth;
use crate::http::auth::jwt::TokenSigner;
use crate::http::request::budget::BodyBudgets;
use crate::http::routes::admin::Operations;
use crate::http::routes::change_stream::RenderedChanges;
use crate::http::routes::changes::ChangesApi;
use crate::http::routes::lookup_api::LookupApi;
use crate::http::routes::{
    bulk_contacts, changes, contact, identifier, oauth_token, openapi, profile, profiles, webhook,
};
use crate::http::server::service::DirectRoute;
use crate::ingest::Ingest;
use crate::ingest::audits::AuditEvents;
use crate::lookup::prefetch::Prefetcher;
use crate::lookup::{self, Lookup};
use crate::metrics::Metrics;
use crate::operate::actions::Actions;
use crate::operate::replay::Replays;
use crate::queue::open::QueueKind;
use crate::readiness::Readiness;
use crate::shares::FairShares;
use crate::shutdown::Shutdown;
use crate::sources::{Sources, TenantSource};
use crate::upstream::agents::AgentVerifiers;
use crate::upstream::audit_reader::AuditReader;
use crate::{queue, store, upstream};

use super::Error;
use super::prewarm::prewarm;
use super::probe::Probe;
use super::reload::AccessControl;
use super::watches::watches;

/// The components of a running process.
pub(super) struct Components {
    pub(super) config: Config,
    pub(super) access: AccessControl,
    pub(super) hashers: Vec<KeyHasher>,
    pub(super) clock: SharedClock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) audit: Audit,
    pub(super) faults: Faults,
    pub(super) shutdown: Shutdown,
    pub(super) readiness: Arc<Readiness>,
    /// `None` if no role of this process uses it.
    pub(super) queue: Option<queue::open::OpenQueue>,
    pub(super) store: store::open::OpenStore,
    pub(super) clears: store::Clears,
    pub(super) foreign: ForeignConsumers,
}

impl Components {
    /// Creates the connection to Genesys.
    pub(super) fn upstream(&self) -> Result<upstream::open::OpenedUpstream, Error> {
        let tenants = self.config.tenants.iter();
        let upstreams = tenants.filter_map(|tenant| Some((tenant.id.clone(), tenant.upstream.as_ref()?)));
        Ok(upstream::open::open(&self.config.upstream, upstreams, &self.metrics, &self.shutdown)?)
    }

    /// Creates the lookup flow.
    pub(super) fn lookup(&self, upstream: Arc<dyn upstream::Upstream>, sources: &Sources) -> Lookup {
        let tenants = self.config.tenants.iter();
        Lookup::new(lookup::LookupDependencies {
            store: Arc::clone(&self.store.store),
            upstream,
            hasher: self.hasher(),
            identifiers: self.config.keys.identifier_hasher(),
            previous: self.hashers.get(1).cloned(),
            tenants: tenants.map(|tenant| (tenant.id.clone(), tenant.lookup.clone())).collect(),
            watches: watches(&self.config, sources),
            clears: self.clears.clone(),
            settle_window: self.config.consumer.settle_window,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            shutdown: self.shutdown.clone(),
            faults: self.faults.clone(),
        })
    }

    /// Starts the sources of events, if this process both looks up, so that it knows which customers to watch, and ingests.
    pub(super) fn sources(&self, upstream: &upstream::open::OpenedUpstream) -> Sources {
        let roles = self.config.roles;
        let Some(queue) = self.queue.as_ref().filter(|_| roles.ingest && roles.lookup) else {
            return Sources::default();
        };
        let sources = self.config.tenants.iter().filter_map(|tenant| {
            Some(TenantSource {
                tenant: tenant.id.clone(),
                config: tenant.sources.first()?,
                notifications: upstream.notifications(&tenant.id),
                requests_per_minute: tenant.upstream.as_ref()?.requests_per_minute,
                unwatched_ttl: tenant.lookup.unwatched_ttl,
            })
        });
        // A slot of its own, so that neither an operator nor a gap waits for the other.
        let (ingest, replays) = (Arc::new(self.ingest(queue)), Arc::new(self.replays(upstream.audits.clone())));
        Sources::start(sources, &ingest, (&replays, &self.audit), &self.clock, &self.metrics, &self.shutdown)
    }

    fn ingest(&self, queue: &queue::open::OpenQueue) -> Ingest {
        Ingest::new(
            self.access.sources.clone(),
            (self.hashers.clone(), self.config.keys.identifier_hashers()),
            self.config.ingest.limits(self.config.consumer.dedup_window),
            Arc::clone(&queue.publisher),
            Arc::clone(&self.clock),
            Arc::clone(&self.metrics),
        )
    }

    /// Creates the public routes, and the handler of lookups, if this process has the role.
    pub(super) fn public_routes(
        &self,
        lookup: Lookup,
        verifiers: AgentVerifiers,
    ) -> Result<(Router, Option<Arc<dyn DirectRoute>>), Error> {
        let roles = self.config.roles;
        let max_body = usize::try_from(self.config.http.max_body.as_u64()).unwrap_or(usize::MAX);
        let budget = self.config.http.body_budget();
        let bodies = BodyBudgets::new(budget);
        let mut routes = openapi::routes();
        let prefetcher = roles.lookup.then(|| Arc::new(Prefetcher::new(&lookup)));
        if let Some(queue) = self.queue.as_ref().filter(|_| roles.ingest) {
            let ingest = self.ingest(queue).with_prewarm(
                prefetcher.as_ref().map(|prefetcher| prewarm(&self.config, &self.access.callers, prefetcher)),
            );
            routes = routes.merge(webhook::routes(Arc::new(ingest), self.audit.clone(), max_body, bodies.clone()));
        }
        let mut lookups: Option<Arc<dyn DirectRoute>> = None;
        if let Some(prefetcher) = prefetcher {
            let auth = self.caller_auth(verifiers)?;
            let api = Arc::new(LookupApi {
                lookup,
                prefetcher,
                auth: Arc::clone(&auth),
                audit: self.audit.clone(),
                hasher: QueryHasher { customers: self.hasher(), identifiers: self.config.keys.identifier_hasher() },
                clock: Arc::clone(&self.clock),
                max_body,
                bodies: bodies.proven.clone(),
                answers: FairShares::new(budget),
                slow: self.config.log.slow_lookup,
            });
            routes = routes.merge(profile::routes(Arc::clone(&api))).merge(profiles::routes(Arc::clone(&api)));
            routes = routes.merge(bulk_contacts::routes(Arc::clone(&api))).merge(contact::routes(Arc::clone(&api)));
            routes = routes.merge(identifier::routes(Arc::clone(&api)));
            let changes = ChangesApi {
                lookups: Arc::clone(&api),
                feed: self.store.changes.clone(),
                rendered: Arc::new(RenderedChanges::new(Arc::clone(&auth))),
                streams: FairShares::new(self.config.http.change_streams()),
                metrics: Arc::clone(&self.metrics),
                shutdown: self.shutdown.clone(),
            };
            routes = routes.merge(changes::routes(Arc::new(changes)));
            routes = routes.merge(oauth_token::routes(auth, self.audit.clone(), bodies.unproven));
            lookups = Some(api);
        }
        Ok((routes, lookups))
    }

    fn caller_auth(&self, verifiers: AgentVerifiers) -> Result<Arc<CallerAuth>, Error> {
        let http = &self.config.http;
        let tokens = TokenSigner::new(http.token_secret.as_ref(), http.token_lifetime, Arc::clone(&self.clock))?;
        let tenants = self.config.tenants.iter().filter_map(|tenant| Some((&tenant.id, tenant.agents.as_ref()?)));
        let key = tokens.derive_key("tokens of agents");
        let agents = Agents::new(tenants, verifiers, &key, self.shutdown.clone())
            .map_err(|error| error.within("tenant.agents"))?;
        Ok(Arc::new(CallerAuth::new(self.access.callers.clone(), agents, tokens, Arc::clone(&self.metrics))))
    }

    /// Creates what operators' commands use.
    pub(super) fn operations(&self, audits: AuditReader) -> Operations {
        Operations {
            actions: Actions {
                tenants: self.config.tenants.iter().map(|tenant| tenant.id.clone()).collect(),
                hashers: self.hashers.clone(),
                store: Arc::clone(&self.store.inspect),
                publisher: self.queue.as_ref().map(|queue| Arc::clone(&queue.publisher)),
                outbox: self.queue.as_ref().and_then(|queue| queue.outbox.clone()),
                dead_letters: self.queue.as_ref().map(|queue| Arc::clone(&queue.dead_letters)),
                clock: Arc::clone(&self.clock),
            },
            replays: self.replays(audits),
        }
    }

    /// Creates replays, of which one may run at a time.
    fn replays(&self, audits: AuditReader) -> Replays {
        let times = self.config.ingest.limits(self.config.consumer.dedup_window);
        Replays {
            queue: self.queue.as_ref().map(|queue| Arc::clone(&queue.queue)),
            publisher: self.queue.as_ref().map(|queue| Arc::clone(&queue.direct)),
            audits,
            audit_events: AuditEvents::new(self.hashers.clone(), times),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            shutdown: self.shutdown.clone(),
            slot: Arc::default(),
        }
    }

    /// Starts to consume events, if this process has the role.
    pub(super) fn consume(&self) {
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
            refusals: Refusals::default(),
            probed: tokio::sync::Mutex::default(),
        };
        self.shutdown.spawn(worker.run());
        let losses = LossDetector {
            store: Arc::clone(&self.store.inspect),
            queue: Arc::clone(&queue.queue),
            clock: Arc::clone(&self.clock),
            shutdown: self.shutdown.clone(),
        };
        self.shutdown.spawn(losses.run());
        if self.config.queue.kind == QueueKind::Amqp {
            self.shutdown.spawn(policies::watch(self.config.queue.amqp.clone(), self.shutdown.clone()));
        }
        let watch = ForeignWatch {
            found: self.foreign.clone(),
            queue: Arc::clone(&queue.queue),
            store: Arc::clone(&self.store.inspect),
            metrics: Arc::clone(&self.metrics),
            shutdown: self.shutdown.clone(),
        };
        self.shutdown.spawn(watch.run());
    }

    /// Reads the generations of the tenants' records once, then at an interval until shutdown, if this process looks up.
    pub(super) async fn follow_clears(&self) {
        if self.config.roles.lookup {
            self.clears.read(&*self.store.inspect).await;
            self.shutdown.spawn(self.clears.clone().follow(Arc::clone(&self.store.inspect), self.shutdown.clone()));
        }
    }

    /// Checks the dependencies once, then at an interval until shutdown.
    pub(super) async fn probe(&self, refused: upstream::tenants::TenantHealth, sources: Sources) {
        let probe = Probe {
            refused,
            sources,
            readiness: Arc::clone(&self.readiness),
            metrics: Arc::clone(&self.metrics),
            clock: Arc::clone(&self.clock),
            audit: self.audit.clone(),
            store: Arc::clone(&self.store.inspect),
            queue: self.queue.as_ref().map(|queue| Arc::clone(&queue.queue)),
            outbox: self.queue.as_ref().and_then(|queue| queue.outbox.clone()),
            foreign: self.foreign.clone(),
        };
        probe.check().await;
        self.shutdown.spawn(probe.run(self.shutdown.clone()));
    }

    /// Returns the key scheme of lookups, which is the current one.
    fn hasher(&self) -> KeyHasher {
        self.hashers.first().cloned().unwrap_or(KeyHasher::Sha256)
    }
}
