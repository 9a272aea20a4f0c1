//! The audits of Genesys as the source of a replay: changes of contacts whose events did not arrive are found there.
//!
//! # What is read
//!
//! The time span is read in windows, oldest first. In each window all pages of one tenant are read, then those of the next. A
//! window that is full, or whose answer takes too long, is shortened; after nearly empty ones the windows grow. So neither two
//! quiet weeks nor the import of a million contacts needs an answer that Genesys cannot give. A shortened window is read
//! again from its first page: events that are published twice in one replay have one effect.
//!
//! # What it costs
//!
//! Each page is one request, from the part of the tenant's budget that lookups do not need (see
//! [`AuditReader`]). Without it, and while Genesys fails or limits the rate, the replay waits, at most [`PATIENCE`] for each
//! answer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::clock::SharedClock;
use crate::domain::{Event, TenantId, Timestamp};
use crate::ingest::audits::AuditEvents;
use crate::metrics::{Metrics, Outcome};
use crate::operate::actions::Error;
use crate::supervise::Backoff;
use crate::upstream;
use crate::upstream::audit_reader::AuditReader;
use crate::upstream::audits::{AuditPage, AuditQuery, PAGE_SIZE};

use super::progress::Progress;
use super::request::ReplayRequest;

/// How long one answer is waited for, with all attempts.
const PATIENCE: Duration = Duration::from_secs(600);

/// The first and the longest wait before another attempt, if Genesys names none.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The first window, the shortest and the longest one. Genesys is slow to answer about several days.
const FIRST_WINDOW: Duration = Duration::from_secs(3600);
const SHORTEST_WINDOW: Duration = Duration::from_secs(60);
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// A window with more audits is shortened: deep pages are slow to find.
const MAX_IN_WINDOW: u64 = 5_000;

/// The maximum number of pages of one window, so that a server that repeats a page does not keep the replay.
const MAX_PAGES: u32 = 100_000;

/// The next events of a replay.
#[derive(Debug)]
pub(super) struct Page {
    /// How many events or audits were read.
    pub(super) read: u64,
    /// How many audits name no customer in a readable way.
    pub(super) unreadable: u64,
    /// The events that the request selects.
    pub(super) events: Vec<Event>,
    /// With this page, all events before this time were returned.
    pub(super) complete_until: Option<Timestamp>,
}

/// Reads the audits of some tenants; see the module's head.
#[derive(Debug)]
pub(super) struct AuditTrail {
    reader: AuditReader,
    events: AuditEvents,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    /// At least one.
    tenants: Vec<TenantId>,
    window: Window,
    /// The tenant that is read, and its next page.
    tenant: usize,
    page: u32,
}

/// The part of the time span that is read at once.
#[derive(Debug)]
struct Window {
    from: Timestamp,
    length: Duration,
    /// The end of the time span.
    until: Timestamp,
    /// The most audits of one tenant in it.
    fullest: u64,
}

impl AuditTrail {
    /// Asks Genesys about the first window of each tenant, so that a refusal is known before the replay starts.
    pub(super) async fn open(
        reader: AuditReader,
        events: AuditEvents,
        clock: SharedClock,
        metrics: Arc<Metrics>,
        request: &ReplayRequest,
    ) -> Result<Self, Error> {
        let mut tenants = reader.tenants();
        tenants.retain(|tenant| request.tenant.as_ref().is_none_or(|wanted| wanted == tenant));
        if tenants.is_empty() {
            return Err(Error::NoGenesys);
        }
        let trail = Self {
            reader,
            events,
            clock,
            metrics,
            tenants,
            window: Window { from: request.since, length: FIRST_WINDOW, until: request.until, fullest: 0 },
            tenant: 0,
            page: 1,
        };
        let answers = join_all(trail.tenants.iter().map(|tenant| trail.ask(tenant))).await;
        for (tenant, answer) in trail.tenants.iter().zip(answers) {
            if let Err(error) = answer
                && wait(&error, &mut Backoff::new(FIRST_WAIT, LONGEST_WAIT)).is_none()
            {
                return Err(Error::Genesys { tenant: tenant.clone(), error });
            }
        }
        Ok(trail)
    }

    /// Returns the next page; `None` at the end of the time span.
    pub(super) async fn next(&mut self, progress: &watch::Sender<Progress>) -> Result<Option<Page>, Error> {
        let Some(tenant) = self.tenants.get(self.tenant).filter(|_| !self.window.is_over()).cloned() else {
            return Ok(None);
        };
        let answer = self.read(&tenant, progress).await;
        let answer = answer.map_err(|error| Error::Genesys { tenant: tenant.clone(), error })?;
        let mut page = self.events_of(&tenant, &answer);
        self.page += 1;
        if answer.is_last {
            (self.tenant, self.page) = (self.tenant + 1, 1);
        }
        if self.tenant == self.tenants.len() {
            self.tenant = 0;
            page.complete_until = Some(self.window.end());
            self.window.advance();
        }
        Ok(Some(page))
    }

    /// Reads the next page of a tenant. Waits as long as that makes sense.
    async fn read(
        &mut self,
        tenant: &TenantId,
        progress: &watch::Sender<Progress>,
    ) -> Result<AuditPage, upstream::Error> {
        let (mut backoff, give_up) = (Backoff::new(FIRST_WAIT, LONGEST_WAIT), Instant::now() + PATIENCE);
        loop {
            let error = match self.ask(tenant).await {
                Ok(page) if page.total.is_some_and(|total| total > MAX_IN_WINDOW) && self.shorten() => continue,
                Ok(page) => {
                    let seen = u64::from(self.page.saturating_sub(1)) * u64::from(PAGE_SIZE) + page.audits.len() as u64;
                    self.window.fullest = self.window.fullest.max(page.total.unwrap_or(seen));
                    progress.send_if_modified(|progress| progress.is_waiting(false));
                    return Ok(page);
                }
                Err(error) => error,
            };
            if matches!(error, upstream::Error::Timeout(_) | upstream::Error::Failed { status: 504, .. }) {
                self.shorten();
            }
            let Some(pause) = wait(&error, &mut backoff).filter(|pause| Instant::now() + *pause <= give_up) else {
                return Err(error);
            };
            tracing::debug!(%tenant, %error, ?pause, "a replay waits for genesys");
            progress.send_if_modified(|progress| progress.is_waiting(true));
            sleep(pause).await;
        }
    }

    /// Asks for the next page of a tenant, once.
    async fn ask(&self, tenant: &TenantId) -> Result<AuditPage, upstream::Error> {
        if self.page > MAX_PAGES {
            return Err(upstream::Error::Unusable { reason: "the pages of audits do not end" });
        }
        let query = AuditQuery { since: self.window.from, until: self.window.end(), page: self.page };
        let answer = self.reader.read(tenant, &query).await;
        let outcome = if answer.is_ok() { Outcome::Ok } else { Outcome::Error };
        self.metrics.replay_queries.with(outcome).increment(1);
        answer
    }

    /// Shortens the window, if it can be shorter; it is then read from its first page.
    fn shorten(&mut self) -> bool {
        let is_shorter = self.window.shorten();
        if is_shorter {
            self.page = 1;
        }
        is_shorter
    }

    fn events_of(&self, tenant: &TenantId, answer: &AuditPage) -> Page {
        let (now, mut events, mut malformed) = (self.clock.now(), Vec::new(), Vec::new());
        for audit in &answer.audits {
            match self.events.event(tenant, audit.get().as_bytes(), now) {
                Ok(event) => events.extend(event),
                Err(error) => malformed.push(error),
            }
        }
        if let Some(first) = malformed.first() {
            let unreadable = malformed.len();
            tracing::warn!(%tenant, unreadable, field = first.field, "audits of genesys name no customer in a readable way");
        }
        let (read, unreadable) = (answer.audits.len() as u64, malformed.len() as u64);
        Page { read, unreadable, events, complete_until: None }
    }
}

impl Window {
    fn end(&self) -> Timestamp {
        self.from.plus(self.length).min(self.until)
    }

    fn is_over(&self) -> bool {
        self.from >= self.until
    }

    /// Moves on to the next window, which is twice as long if there was at most one page for each tenant.
    fn advance(&mut self) {
        self.from = self.end();
        if self.fullest <= u64::from(PAGE_SIZE) {
            self.length = (self.length * 2).min(LONGEST_WINDOW);
        }
        self.fullest = 0;
    }

    /// Makes the window a quarter as long; returns whether it is shorter now.
    fn shorten(&mut self) -> bool {
        let before = self.length.min(self.until.since(self.from));
        self.length = (before / 4).max(SHORTEST_WINDOW).min(before);
        self.length < before
    }
}

/// Returns how long to wait after a failure; `None` if another attempt would fail too.
fn wait(error: &upstream::Error, backoff: &mut Backoff) -> Option<Duration> {
    match error {
        upstream::Error::Throttled { retry_after }
        | upstream::Error::BudgetSpent { retry_after }
        | upstream::Error::BreakerOpen { retry_after }
        | upstream::Error::Failed { retry_after: Some(retry_after), .. } => Some(*retry_after),
        upstream::Error::Failed { retry_after: None, .. }
        | upstream::Error::Unreachable(_)
        | upstream::Error::Timeout(_) => Some(backoff.next_delay()),
        upstream::Error::Unusable { .. } | upstream::Error::Denied { .. } | upstream::Error::Privileges { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(length: Duration) -> Window {
        let from = Timestamp::from_millis(1_741_064_767_500);
        Window { from, length: FIRST_WINDOW, until: from.plus(length), fullest: 0 }
    }

    #[test]
    fn windows_cover_the_time_span_and_grow_while_little_is_found() {
        let mut window = window(Duration::from_secs(14 * 24 * 3600));
        let (mut reached, mut count) = (window.from, 0);
        while !window.is_over() {
            assert_eq!(window.from, reached);
            assert!(window.length <= LONGEST_WINDOW);
            reached = window.end();
            window.advance();
            count += 1;
        }
        assert_eq!((reached, count), (window.until, 18));
    }

    #[test]
    fn a_full_window_is_shortened_to_a_minute_and_no_more() {
        let mut window = window(Duration::from_secs(14 * 24 * 3600));
        let mut shortened = 0;
        while window.shorten() {
            shortened += 1;
        }
        assert_eq!((shortened, window.length), (3, SHORTEST_WINDOW));
        window.fullest = 101;
        window.advance();
        assert_eq!(window.length, SHORTEST_WINDOW);
        let mut short = self::window(Duration::from_secs(30));
        assert!(!short.shorten() && short.length <= FIRST_WINDOW, "{short:?}");
        assert_eq!(short.end(), short.until);
    }
}
