//! The contact directory: all contacts with their changes, merges and deletions, and what reads show of them.
//!
//! A contact is generated when it is first requested and stored only once it changes. A stored contact has its last few
//! versions, so that reads can lag behind a change: a read shows a version `read_lag` after the change, with the lag at
//! the time of the change or the current lag, whichever is shorter. So lowering the lag immediately shows what was held
//! back, and raising it never hides what was shown. Writes always see the newest version.
//!
//! A merge creates a new canonical contact; its ancestors stay and point to it, and requests for an ancestor are
//! redirected. `modifyDate` strictly increases with each change of a contact, and the one of a canonical contact is above
//! those of its ancestors, whatever the clock does.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::domain::Timestamp;

use super::contact::{Contact, ContactView, MergeResult};
use super::errors::ApiError;
use super::fields::{Fields, fits, patch, writable};
use super::people;
use super::search::Wanted;

/// The default limit of a merge set at Genesys.
const MAX_MERGE_SET: usize = 52;
/// The limit of changed contacts, which bounds memory; more changes are refused.
const MAX_CHANGED: usize = 1_000_000;
/// The limit of stored versions of a contact.
const MAX_VERSIONS: usize = 32;

const MILLISECOND: Duration = Duration::from_millis(1);

/// All contacts of the sandbox.
pub(super) struct ContactDirectory {
    customers: u32,
    clock: SharedClock,
    stored: Mutex<HashMap<Uuid, ContactHistory>>,
}

/// The last versions of a contact, oldest first; never empty. A version without a contact was deleted or does not exist
/// yet.
struct ContactHistory(VecDeque<ContactVersion>);

struct ContactVersion {
    contact: Option<Arc<Contact>>,
    since: Timestamp,
    lag: Duration,
}

impl ContactDirectory {
    /// Creates a directory of `customers` generated contacts.
    pub(super) fn new(customers: u32, clock: SharedClock) -> Self {
        Self { customers, clock, stored: Mutex::default() }
    }

    /// Returns the canonical contact of `id`, as reads show it.
    pub(super) fn read(&self, id: Uuid, lag: Duration) -> Result<ContactView, ApiError> {
        let (id, contact) = self.resolve(&self.stored.lock(), id, lag)?;
        Ok(ContactView::of_canonical(id, contact))
    }

    /// Returns the contact `id` itself, even if it was merged.
    pub(super) fn read_unresolved(&self, id: Uuid, lag: Duration) -> Result<ContactView, ApiError> {
        let stored = self.stored.lock();
        let contact = self.visible(&stored, id, lag, self.clock.now()).ok_or(ApiError::not_found())?;
        let (canonical, root) = self.resolve(&stored, id, lag)?;
        Ok(ContactView { id, contact, canonical, merge_set: root.merge_set.clone() })
    }

    /// Returns the canonical contact that a search finds.
    pub(super) fn find(&self, wanted: &Wanted, lag: Duration) -> Result<ContactView, ApiError> {
        let (stored, now) = (self.stored.lock(), self.clock.now());
        let shown = stored.iter().filter_map(|(id, history)| Some((*id, history.visible(now, lag)?)));
        let changed = shown.filter(|(_, contact)| contact.merged_to.is_none() && wanted.is_in(&contact.fields));
        let changed = changed.max_by_key(|(id, contact)| (contact.modified, *id));
        let unchanged = || {
            let customers = if wanted.may_be_generated() { self.customers } else { 0 };
            let ids = (1..=customers).map(people::id_of).filter(|id| !stored.contains_key(id));
            ids.filter_map(|id| Some((id, self.generated(id)?))).find(|(_, contact)| wanted.is_in(&contact.fields))
        };
        let (id, contact) = changed.or_else(unchanged).ok_or(ApiError::not_found())?;
        Ok(ContactView::of_canonical(id, contact))
    }

    /// Creates a contact.
    pub(super) fn create(&self, fields: Fields, lag: Duration) -> Result<ContactView, ApiError> {
        let fields = fits(writable(fields))?;
        let mut stored = self.stored.lock();
        has_room(&stored, 1)?;
        let (id, now) = (Uuid::new_v4(), self.clock.now());
        let contact = Arc::new(Contact::new(id, fields, now, now));
        self.put(&mut stored, id, Some(Arc::clone(&contact)), lag);
        Ok(ContactView::of_canonical(id, contact))
    }

    /// Replaces all writable fields.
    pub(super) fn replace(&self, id: Uuid, fields: Fields, lag: Duration) -> Result<ContactView, ApiError> {
        self.change(id, lag, |present| *present = writable(fields))
    }

    /// Changes the given fields (RFC 7396: objects are merged, null removes).
    pub(super) fn amend(&self, id: Uuid, fields: Fields, lag: Duration) -> Result<ContactView, ApiError> {
        self.change(id, lag, |present| patch(present, writable(fields)))
    }

    /// Deletes the canonical contact of `id`; returns its last version.
    pub(super) fn delete(&self, id: Uuid, lag: Duration) -> Result<ContactView, ApiError> {
        let mut stored = self.stored.lock();
        let (id, contact) = self.resolve(&stored, id, Duration::ZERO)?;
        has_room(&stored, 1)?;
        self.put(&mut stored, id, None, lag);
        Ok(ContactView::of_canonical(id, contact))
    }

    /// Merges contacts into a new one. The fields of an earlier contact win over those of a later one; `overriding` wins
    /// over all.
    pub(super) fn merge(&self, ids: &[Uuid], overriding: Fields, lag: Duration) -> Result<MergeResult, ApiError> {
        let mut stored = self.stored.lock();
        let mut parts: Vec<(Uuid, Arc<Contact>)> = Vec::new();
        for id in ids {
            let part = self.resolve(&stored, *id, Duration::ZERO)?;
            if parts.iter().all(|(known, _)| *known != part.0) {
                parts.push(part);
            }
        }
        let id = Uuid::new_v4();
        let merge_set: Vec<_> =
            [id].into_iter().chain(parts.iter().flat_map(|(_, part)| part.merge_set.iter().copied())).collect();
        if parts.len() < 2 {
            return Err(ApiError::bad_request("contactIds must name at least two contacts that are not merged yet"));
        } else if merge_set.len() > MAX_MERGE_SET {
            return Err(ApiError::bad_request("a merge set may have 52 contacts"));
        }
        let mut fields = Fields::new();
        for (_, part) in parts.iter().rev() {
            fields.extend(part.fields.clone());
        }
        patch(&mut fields, writable(overriding));
        let fields = fits(fields)?;
        has_room(&stored, parts.len() + 1)?;

        let mut ancestors = Vec::with_capacity(parts.len());
        // One instant for the whole merge, so that reads show it at once.
        let now = self.clock.now();
        let mut modified = now;
        for (part, contact) in &parts {
            let mut contact = Contact::clone(contact);
            contact.merged_to = Some(id);
            contact.modified = self.stamp_after(contact.modified);
            modified = modified.max(contact.modified.plus(MILLISECOND));
            let contact = Arc::new(contact);
            self.put_at(now, &mut stored, *part, Some(Arc::clone(&contact)), lag);
            ancestors.push(ContactView { id: *part, contact, canonical: id, merge_set: merge_set.clone() });
        }
        let merged_from = parts.iter().map(|(part, _)| *part).collect();
        let contact = Contact { merged_from, merge_set, ..Contact::new(id, fields, now, modified) };
        let contact = Arc::new(contact);
        self.put_at(now, &mut stored, id, Some(Arc::clone(&contact)), lag);
        Ok(MergeResult { canonical: ContactView::of_canonical(id, contact), ancestors })
    }

    fn change(&self, id: Uuid, lag: Duration, edit: impl FnOnce(&mut Fields)) -> Result<ContactView, ApiError> {
        let mut stored = self.stored.lock();
        let (id, before) = self.resolve(&stored, id, Duration::ZERO)?;
        has_room(&stored, 1)?;
        let mut contact = Contact::clone(&before);
        edit(&mut contact.fields);
        contact.fields = fits(contact.fields)?;
        contact.modified = self.stamp_after(before.modified);
        let contact = Arc::new(contact);
        self.put(&mut stored, id, Some(Arc::clone(&contact)), lag);
        Ok(ContactView::of_canonical(id, contact))
    }

    /// Follows merges to the canonical contact. Each merge points to a newer contact, so the loop ends.
    fn resolve(
        &self,
        stored: &HashMap<Uuid, ContactHistory>,
        mut id: Uuid,
        lag: Duration,
    ) -> Result<(Uuid, Arc<Contact>), ApiError> {
        // One instant for all steps: a merge that became visible between two steps would point to a missing contact.
        let now = self.clock.now();
        loop {
            let contact = self.visible(stored, id, lag, now).ok_or(ApiError::not_found())?;
            match contact.merged_to {
                Some(next) => id = next,
                None => return Ok((id, contact)),
            }
        }
    }

    fn visible(
        &self,
        stored: &HashMap<Uuid, ContactHistory>,
        id: Uuid,
        lag: Duration,
        now: Timestamp,
    ) -> Option<Arc<Contact>> {
        match stored.get(&id) {
            Some(history) => history.visible(now, lag),
            None => self.generated(id),
        }
    }

    fn put(&self, stored: &mut HashMap<Uuid, ContactHistory>, id: Uuid, contact: Option<Arc<Contact>>, lag: Duration) {
        self.put_at(self.clock.now(), stored, id, contact, lag);
    }

    fn put_at(
        &self,
        since: Timestamp,
        stored: &mut HashMap<Uuid, ContactHistory>,
        id: Uuid,
        contact: Option<Arc<Contact>>,
        lag: Duration,
    ) {
        let history = stored.entry(id).or_insert_with(|| ContactHistory::new(self.generated(id)));
        history.push(ContactVersion { contact, since, lag });
    }

    fn generated(&self, id: Uuid) -> Option<Arc<Contact>> {
        let number = people::number_of(id).filter(|number| (1..=self.customers).contains(number))?;
        Some(Arc::new(people::person(number)))
    }

    fn stamp_after(&self, before: Timestamp) -> Timestamp {
        self.clock.now().max(before.plus(MILLISECOND))
    }
}

impl ContactHistory {
    fn new(contact: Option<Arc<Contact>>) -> Self {
        Self(VecDeque::from([ContactVersion { contact, since: Timestamp::from_millis(0), lag: Duration::ZERO }]))
    }

    fn visible(&self, now: Timestamp, lag: Duration) -> Option<Arc<Contact>> {
        let shown = if lag.is_zero() {
            self.0.back()
        } else {
            let shows = |version: &&ContactVersion| version.since.plus(version.lag.min(lag)) <= now;
            self.0.iter().rev().find(shows).or(self.0.front())
        };
        shown.and_then(|version| version.contact.clone())
    }

    /// Adds the newest version, and removes the versions that no read can show any more.
    fn push(&mut self, version: ContactVersion) {
        while self.0.len() >= MAX_VERSIONS
            || self.0.get(1).is_some_and(|next| next.since.plus(next.lag) <= version.since)
        {
            self.0.pop_front();
        }
        self.0.push_back(version);
    }
}

fn has_room(stored: &HashMap<Uuid, ContactHistory>, more: usize) -> Result<(), ApiError> {
    if stored.len() + more <= MAX_CHANGED {
        Ok(())
    } else {
        Err(ApiError::unavailable("The sandbox has reached its limit of a million changed contacts."))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn removing_old_versions_never_changes_reads(
            writes in prop::collection::vec((0_u64..20, 0_u64..20), 1..MAX_VERSIONS),
            (wait, lag) in (0_u64..40, 0_u64..40),
        ) {
            let ms = Duration::from_millis;
            let mut now = Timestamp::from_millis(1_000);
            let mut history = ContactHistory::new(None);
            let mut all = Vec::new();
            for (number, (pause, lag)) in (0..).zip(writes) {
                now = now.plus(ms(pause));
                let contact = Contact::new(people::id_of(number), Fields::new(), now, now);
                all.push((number, now, lag));
                history.push(ContactVersion { contact: Some(Arc::new(contact)), since: now, lag: ms(lag) });
            }
            now = now.plus(ms(wait));
            let newest = all.iter().rev().find(|(_, since, of_write)| since.plus(ms(lag.min(*of_write))) <= now);
            let shown = history.visible(now, ms(lag)).map(|contact| contact.merge_set[0]);
            prop_assert_eq!(shown, newest.map(|(number, ..)| people::id_of(*number)));
        }
    }
}
