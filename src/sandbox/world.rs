//! The contacts: who there is, who was changed, deleted or merged, and what the read side shows.
//!
//! A contact is invented when it is first asked for and kept only once it is changed. Each kept
//! contact has its last few versions, so that the read side can lag behind a change: a version is
//! shown `read_lag` after it came to be, by the lag of that time or the present one, whichever is
//! shorter. Lowering the lag therefore shows at once what was held back, and raising it never takes
//! back what was shown. Writers always see the newest version.
//!
//! A merge makes a new canonical contact; its ancestors stay, point to it, and every request for an
//! ancestor is redirected. `modifyDate` rises strictly with each change of a contact, and a
//! canonical contact's is above its ancestors', whatever the clock does.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::domain::Timestamp;

use super::errors::Refusal;
use super::fields::{Fields, fits, patch, writable};
use super::people;

/// Genesys' default limit of a merge set.
const MAX_MERGE_SET: usize = 52;
/// How many contacts may be changed; more are refused, so that memory is bounded.
const MAX_CHANGED: usize = 1_000_000;
/// How many versions of a contact are kept for a lagging read side.
const MAX_VERSIONS: usize = 32;

const MILLISECOND: Duration = Duration::from_millis(1);

/// One version of a contact.
#[derive(Clone)]
pub(super) struct Contact {
    /// What writers may set.
    pub(super) fields: Fields,
    pub(super) created: Timestamp,
    pub(super) modified: Timestamp,
    /// The contacts whose merge made this one.
    pub(super) merged_from: Vec<Uuid>,
    /// The contact that a merge made of this one; set on an ancestor.
    pub(super) merged_to: Option<Uuid>,
    /// This contact and all its ancestors.
    pub(super) merge_set: Vec<Uuid>,
}

/// A contact as it is shown: with the canonical contact that it belongs to.
pub(super) struct View {
    pub(super) id: Uuid,
    pub(super) contact: Arc<Contact>,
    pub(super) canonical: Uuid,
    pub(super) merge_set: Vec<Uuid>,
}

/// What a merge made: the new canonical contact, and those that became its ancestors.
pub(super) struct Merge {
    pub(super) canonical: View,
    pub(super) ancestors: Vec<View>,
}

/// All contacts.
pub(super) struct World {
    customers: u32,
    clock: SharedClock,
    kept: Mutex<HashMap<Uuid, History>>,
}

/// The last versions of a contact, oldest first; never empty. A version without a contact: it was
/// deleted, or is not there yet.
struct History(VecDeque<Version>);

struct Version {
    contact: Option<Arc<Contact>>,
    since: Timestamp,
    lag: Duration,
}

impl Contact {
    /// Makes a contact that was never merged.
    pub(super) fn new(id: Uuid, fields: Fields, created: Timestamp, modified: Timestamp) -> Self {
        Self { fields, created, modified, merged_from: Vec::new(), merged_to: None, merge_set: vec![id] }
    }
}

impl View {
    fn of_canonical(id: Uuid, contact: Arc<Contact>) -> Self {
        Self { id, canonical: id, merge_set: contact.merge_set.clone(), contact }
    }
}

impl World {
    /// Makes a world of `customers` invented people.
    pub(super) fn new(customers: u32, clock: SharedClock) -> Self {
        Self { customers, clock, kept: Mutex::default() }
    }

    /// Reads the canonical contact that `id` belongs to, as the read side shows it.
    pub(super) fn read(&self, id: Uuid, lag: Duration) -> Result<View, Refusal> {
        let (id, contact) = self.resolve(&self.kept.lock(), id, lag)?;
        Ok(View::of_canonical(id, contact))
    }

    /// Reads the very contact `id`, also when it became an ancestor.
    pub(super) fn read_unresolved(&self, id: Uuid, lag: Duration) -> Result<View, Refusal> {
        let kept = self.kept.lock();
        let contact = self.seen(&kept, id, lag, self.clock.now()).ok_or(Refusal::not_found())?;
        let (canonical, root) = self.resolve(&kept, id, lag)?;
        Ok(View { id, contact, canonical, merge_set: root.merge_set.clone() })
    }

    /// Creates a contact.
    pub(super) fn create(&self, fields: Fields, lag: Duration) -> Result<View, Refusal> {
        let fields = fits(writable(fields))?;
        let mut kept = self.kept.lock();
        has_room(&kept, 1)?;
        let (id, now) = (Uuid::new_v4(), self.clock.now());
        let contact = Arc::new(Contact::new(id, fields, now, now));
        self.put(&mut kept, id, Some(Arc::clone(&contact)), lag);
        Ok(View::of_canonical(id, contact))
    }

    /// Replaces all writable fields.
    pub(super) fn replace(&self, id: Uuid, fields: Fields, lag: Duration) -> Result<View, Refusal> {
        self.change(id, lag, |present| *present = writable(fields))
    }

    /// Changes the given fields (RFC 7396: objects are merged, null removes).
    pub(super) fn amend(&self, id: Uuid, fields: Fields, lag: Duration) -> Result<View, Refusal> {
        self.change(id, lag, |present| patch(present, writable(fields)))
    }

    /// Deletes the canonical contact that `id` belongs to; returns what it was.
    pub(super) fn delete(&self, id: Uuid, lag: Duration) -> Result<View, Refusal> {
        let mut kept = self.kept.lock();
        let (id, contact) = self.resolve(&kept, id, Duration::ZERO)?;
        has_room(&kept, 1)?;
        self.put(&mut kept, id, None, lag);
        Ok(View::of_canonical(id, contact))
    }

    /// Merges contacts into a new one. Fields of contacts named earlier win over those of later
    /// ones, `overriding` wins over all.
    pub(super) fn merge(&self, ids: &[Uuid], overriding: Fields, lag: Duration) -> Result<Merge, Refusal> {
        let mut kept = self.kept.lock();
        let mut parts: Vec<(Uuid, Arc<Contact>)> = Vec::new();
        for id in ids {
            let part = self.resolve(&kept, *id, Duration::ZERO)?;
            if parts.iter().all(|(known, _)| *known != part.0) {
                parts.push(part);
            }
        }
        let id = Uuid::new_v4();
        let merge_set: Vec<_> =
            [id].into_iter().chain(parts.iter().flat_map(|(_, part)| part.merge_set.iter().copied())).collect();
        if parts.len() < 2 {
            return Err(Refusal::bad_request("contactIds must name at least two contacts that are not merged yet"));
        } else if merge_set.len() > MAX_MERGE_SET {
            return Err(Refusal::bad_request("a merge set may have 52 contacts"));
        }
        let mut fields = Fields::new();
        for (_, part) in parts.iter().rev() {
            fields.extend(part.fields.clone());
        }
        patch(&mut fields, writable(overriding));
        let fields = fits(fields)?;
        has_room(&kept, parts.len() + 1)?;

        let mut ancestors = Vec::with_capacity(parts.len());
        // One instant for all of it, so that the read side shows all of it at once.
        let now = self.clock.now();
        let mut modified = now;
        for (part, contact) in &parts {
            let mut contact = Contact::clone(contact);
            contact.merged_to = Some(id);
            contact.modified = self.stamp_after(contact.modified);
            modified = modified.max(contact.modified.plus(MILLISECOND));
            let contact = Arc::new(contact);
            self.put_at(now, &mut kept, *part, Some(Arc::clone(&contact)), lag);
            ancestors.push(View { id: *part, contact, canonical: id, merge_set: merge_set.clone() });
        }
        let merged_from = parts.iter().map(|(part, _)| *part).collect();
        let contact = Contact { merged_from, merge_set, ..Contact::new(id, fields, now, modified) };
        let contact = Arc::new(contact);
        self.put_at(now, &mut kept, id, Some(Arc::clone(&contact)), lag);
        Ok(Merge { canonical: View::of_canonical(id, contact), ancestors })
    }

    fn change(&self, id: Uuid, lag: Duration, edit: impl FnOnce(&mut Fields)) -> Result<View, Refusal> {
        let mut kept = self.kept.lock();
        let (id, before) = self.resolve(&kept, id, Duration::ZERO)?;
        has_room(&kept, 1)?;
        let mut contact = Contact::clone(&before);
        edit(&mut contact.fields);
        contact.fields = fits(contact.fields)?;
        contact.modified = self.stamp_after(before.modified);
        let contact = Arc::new(contact);
        self.put(&mut kept, id, Some(Arc::clone(&contact)), lag);
        Ok(View::of_canonical(id, contact))
    }

    /// Follows merges. Every merge points to a contact that is newer than all before it, so this ends.
    fn resolve(
        &self,
        kept: &HashMap<Uuid, History>,
        mut id: Uuid,
        lag: Duration,
    ) -> Result<(Uuid, Arc<Contact>), Refusal> {
        // One instant for all steps: a merge that shows in between would lead to nobody.
        let now = self.clock.now();
        loop {
            let contact = self.seen(kept, id, lag, now).ok_or(Refusal::not_found())?;
            match contact.merged_to {
                Some(next) => id = next,
                None => return Ok((id, contact)),
            }
        }
    }

    fn seen(&self, kept: &HashMap<Uuid, History>, id: Uuid, lag: Duration, now: Timestamp) -> Option<Arc<Contact>> {
        match kept.get(&id) {
            Some(history) => history.seen(now, lag),
            None => self.invented(id),
        }
    }

    fn put(&self, kept: &mut HashMap<Uuid, History>, id: Uuid, contact: Option<Arc<Contact>>, lag: Duration) {
        self.put_at(self.clock.now(), kept, id, contact, lag);
    }

    fn put_at(
        &self,
        since: Timestamp,
        kept: &mut HashMap<Uuid, History>,
        id: Uuid,
        contact: Option<Arc<Contact>>,
        lag: Duration,
    ) {
        let history = kept.entry(id).or_insert_with(|| History::new(self.invented(id)));
        history.push(Version { contact, since, lag });
    }

    fn invented(&self, id: Uuid) -> Option<Arc<Contact>> {
        let number = people::number_of(id).filter(|number| (1..=self.customers).contains(number))?;
        Some(Arc::new(people::person(number)))
    }

    fn stamp_after(&self, before: Timestamp) -> Timestamp {
        self.clock.now().max(before.plus(MILLISECOND))
    }
}

impl History {
    fn new(contact: Option<Arc<Contact>>) -> Self {
        Self(VecDeque::from([Version { contact, since: Timestamp::from_millis(0), lag: Duration::ZERO }]))
    }

    fn seen(&self, now: Timestamp, lag: Duration) -> Option<Arc<Contact>> {
        let shown = if lag.is_zero() {
            self.0.back()
        } else {
            let shows = |version: &&Version| version.since.plus(version.lag.min(lag)) <= now;
            self.0.iter().rev().find(shows).or(self.0.front())
        };
        shown.and_then(|version| version.contact.clone())
    }

    /// Adds the newest version, and forgets those that nobody can be shown any more.
    fn push(&mut self, version: Version) {
        while self.0.len() >= MAX_VERSIONS
            || self.0.get(1).is_some_and(|next| next.since.plus(next.lag) <= version.since)
        {
            self.0.pop_front();
        }
        self.0.push_back(version);
    }
}

fn has_room(kept: &HashMap<Uuid, History>, more: usize) -> Result<(), Refusal> {
    if kept.len() + more <= MAX_CHANGED {
        Ok(())
    } else {
        Err(Refusal::unavailable("The sandbox keeps a million changed contacts, and has them."))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn forgetting_versions_never_changes_what_is_shown(
            writes in prop::collection::vec((0_u64..20, 0_u64..20), 1..MAX_VERSIONS),
            (wait, lag) in (0_u64..40, 0_u64..40),
        ) {
            let ms = Duration::from_millis;
            let mut now = Timestamp::from_millis(1_000);
            let mut history = History::new(None);
            let mut all = Vec::new();
            for (number, (pause, lag)) in (0..).zip(writes) {
                now = now.plus(ms(pause));
                let contact = Contact::new(people::id_of(number), Fields::new(), now, now);
                all.push((number, now, lag));
                history.push(Version { contact: Some(Arc::new(contact)), since: now, lag: ms(lag) });
            }
            now = now.plus(ms(wait));
            let newest = all.iter().rev().find(|(_, since, of_write)| since.plus(ms(lag.min(*of_write))) <= now);
            let shown = history.seen(now, ms(lag)).map(|contact| contact.merge_set[0]);
            prop_assert_eq!(shown, newest.map(|(number, ..)| people::id_of(*number)));
        }
    }
}
