//! What a customer's entry says about the pointer of an identifier.

use std::time::Duration;

#[cfg(feature = "faults")]
use crate::faults::Fault;
use crate::metrics::RefreshCause;
use crate::spans::{self, Cause};
use crate::store::{Base, Content, Record, Token};
use crate::upstream::Requester;

use super::freshness::{self, Freshness};
use super::hint::Hint;
use super::identifier::{ContactView, IdentifierReader, ReadPointer};
use super::{AnswerSource, ForwardReason, LookupAnswer};

impl IdentifierReader<'_> {
    pub(super) fn view(&mut self, mut record: Record, read: &ReadPointer) -> ContactView {
        let pointer = &read.pointer;
        let base = record.token;
        let hint = |base, known| ContactView::Hint(Hint::over(pointer.to.clone(), base, known));
        if record.identity != pointer.to {
            return hint(Base::Dead(base), None);
        }
        let (shows, known) = match &record.content {
            Content::Found(found) => {
                let shows = pointer.filled_with == Some(base) || found.identifiers.contains(&self.identity);
                #[cfg(feature = "faults")]
                let shows = shows || self.context.deps.faults.is_armed(Fault::BelieveEveryPointer);
                (shows, found.modified)
            }
            Content::Negative | Content::Pointer(_) | Content::IdentifierPointer(_) | Content::Sealed(_) => {
                (false, None)
            }
        };
        let (now, cleared) = (self.context.deps.clock.now(), self.context.deps.clears.of(self.identity.tenant()));
        let freshness = self.context.judge(&mut record, self.config, now);
        // What was fetched with the pointer was fetched while this lookup waited for the pointer.
        let has_waited = self.demand.has_waited_at(&pointer.to)
            || (pointer.filled_with == Some(base) && self.demand.has_waited_at(&self.identity));
        match (freshness, &record.content) {
            (Freshness::Expired, _) | (_, Content::Sealed(_) | Content::IdentifierPointer(_)) => {
                hint(Base::Dead(base), None)
            }
            (_, Content::Pointer(_)) => ContactView::Gone,
            // The pointer is believed because of this record, so the answer is as old as the record.
            (Freshness::Fresh { .. }, Content::Found(_)) if shows && self.demand.refuses(&record, has_waited, now) => {
                hint(Base::Token(base), known)
            }
            (Freshness::Fresh { remaining }, Content::Found(_)) if shows => {
                let is_due = || record.settled && (read.is_due || freshness::is_due_by_chance(&record, remaining));
                let cause = if record.generation.min(read.generation) < cleared.soft {
                    Some(RefreshCause::Cleared)
                } else {
                    is_due().then_some(RefreshCause::Early)
                };
                let over = || Hint::over(pointer.to.clone(), Base::Token(base), known);
                let refreshing = cause.is_some_and(|cause| self.refresh(Some(over()), read.token, cause));
                let how = self.hit(remaining, refreshing);
                LookupAnswer::of(&record, how).map_or_else(|| hint(Base::Dead(base), None), ContactView::Serve)
            }
            (Freshness::Stale { since }, Content::Found(_)) if shows => {
                self.stale = Some((record, since));
                hint(Base::Token(base), known)
            }
            (Freshness::Fresh { .. } | Freshness::Stale { .. }, Content::Found(_) | Content::Negative) => {
                hint(Base::Token(base), known)
            }
        }
    }

    pub(super) fn hit(&self, remaining: Duration, refreshing: bool) -> AnswerSource {
        if self.has_waited {
            AnswerSource::Collapsed { over: ForwardReason::of(self.stale.is_some(), self.demand) }
        } else {
            AnswerSource::Hit { remaining: Some(remaining), refreshing }
        }
    }

    /// Notes how long the first read of the store took, which was not all.
    pub(super) fn end_first_read(&mut self) {
        if self.phases.store.is_zero() {
            self.phases.store = (self.deadline - self.config.deadline).elapsed();
        }
    }

    /// Asks again in the background, before the pointer or the profile expires or after a clear; returns whether that is
    /// under way. After a clear everything is due at once, so such refreshes start at a limited rate.
    pub(super) fn refresh(&self, hint: Option<Hint>, token: Token, cause: RefreshCause) -> bool {
        let deps = &self.context.deps;
        if deps.shutdown.is_requested() {
            return false;
        }
        if self.context.refreshing.contains_key(&self.key) {
            return true;
        }
        if matches!(cause, RefreshCause::Cleared) && !self.context.may_refresh_cleared(self.identity.tenant()) {
            return false;
        }
        if self.context.refreshing.entry(self.key.clone()).or_insert(()).is_fresh() {
            deps.metrics.refreshes.with(cause).increment(1);
            let run = self.task(Requester::Background).run(Base::Token(token), hint);
            deps.shutdown.spawn(spans::lead(&self.key, Cause::Refresh, async move { drop(run.await) }));
        }
        true
    }
}
