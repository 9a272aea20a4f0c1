//! What a customer's entry says about the pointer of an identifier.

use std::time::Duration;

use crate::metrics::RefreshCause;
use crate::spans::{self, Cause};
use crate::store::{Base, Content, Record, Token};
use crate::upstream::Requester;

use super::freshness::{self, Freshness};
use super::identifier::{ContactView, IdentifierReader, ReadPointer};
use super::identify::Hint;
use super::{AnswerSource, ForwardReason, LookupAnswer};

impl IdentifierReader<'_> {
    pub(super) fn view(&mut self, record: Record, read: &ReadPointer) -> ContactView {
        let pointer = &read.pointer;
        let base = record.token;
        let hint = |base, known| ContactView::Hint(Hint::over(pointer.to.clone(), base, known));
        if record.identity != pointer.to {
            return hint(Base::Dead(base), None);
        }
        let (shows, known) = match &record.content {
            Content::Found(found) => {
                let shows = pointer.filled_with == Some(base) || found.identifiers.contains(&self.identity);
                (shows, found.modified)
            }
            Content::Negative | Content::Pointer(_) | Content::IdentifierPointer(_) | Content::Sealed(_) => {
                (false, None)
            }
        };
        match (freshness::judge(&record, self.context.deps.clock.now()), &record.content) {
            (Freshness::Expired, _) | (_, Content::Sealed(_) | Content::IdentifierPointer(_)) => {
                hint(Base::Dead(base), None)
            }
            (_, Content::Pointer(_)) => ContactView::Gone,
            (Freshness::Fresh { remaining }, Content::Found(_)) if shows => {
                let refreshing = record.settled && (read.is_due || freshness::is_due_by_chance(&record, remaining));
                let refreshing =
                    refreshing && self.refresh(Hint::over(pointer.to.clone(), Base::Token(base), known), read.token);
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
            AnswerSource::Collapsed { over: ForwardReason::Miss }
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

    /// Asks again in the background before the pointer or the profile expires; returns whether that is under way.
    fn refresh(&self, hint: Hint, token: Token) -> bool {
        let deps = &self.context.deps;
        if deps.shutdown.is_requested() {
            return false;
        }
        if self.context.refreshing.entry(self.key.clone()).or_insert(()).is_fresh() {
            deps.metrics.refreshes.with(RefreshCause::Early).increment(1);
            let run = self.task(Requester::Background).run(Base::Token(token), Some(hint));
            deps.shutdown.spawn(spans::lead(&self.key, Cause::Refresh, async move { drop(run.await) }));
        }
        true
    }
}
