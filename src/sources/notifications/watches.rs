//! The watched contacts: which channel each belongs to, and since when all its changes are received.
//!
//! Their number is bounded. Above it, those that were not looked up for longest are no longer watched, some at a time: what
//! a channel is subscribed to can only be replaced as a whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::RwLock;
use tokio::sync::Notify;

use crate::domain::{CustomerId, Key, Timestamp};
use crate::upstream::notifications::MAX_TOPICS;

/// The value of `since` of a contact that is not watched yet, or not any more.
const NOT: i64 = i64::MAX;

/// Which part of all contacts is removed when there are too many.
const REMOVED_PART: usize = 20;

/// The contacts of one tenant.
#[derive(Debug)]
pub(super) struct Watches {
    contacts: RwLock<Contacts>,
    /// Wakes the task of each lane when its contacts have changed.
    changed: Vec<Notify>,
    /// Orders the uses of contacts.
    uses: AtomicU64,
}

#[derive(Debug)]
struct Contacts {
    by_key: HashMap<Key, Arc<Contact>>,
    /// How many each lane has.
    sizes: Vec<usize>,
}

/// One contact.
#[derive(Debug)]
pub(super) struct Contact {
    pub(super) customer: CustomerId,
    lane: usize,
    used: AtomicU64,
    since: AtomicI64,
}

impl Watches {
    /// Creates no contacts, for this many lanes.
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            contacts: RwLock::new(Contacts { by_key: HashMap::new(), sizes: vec![0; lanes] }),
            changed: (0..lanes).map(|_| Notify::new()).collect(),
            uses: AtomicU64::new(0),
        }
    }

    /// Returns since when the changes of a contact are received; this is a use of it.
    pub(super) fn since(&self, key: &Key) -> Option<Timestamp> {
        let contacts = self.contacts.read();
        let contact = contacts.by_key.get(key)?;
        self.touch(contact);
        contact.since()
    }

    /// Adds a contact; this is a use of it.
    pub(super) fn add(&self, key: Key, customer: &CustomerId) {
        if let Some(known) = self.contacts.read().by_key.get(&key) {
            return self.touch(known);
        }
        let mut contacts = self.contacts.write();
        if contacts.by_key.contains_key(&key) {
            return;
        }
        if contacts.by_key.len() >= self.changed.len() * MAX_TOPICS {
            self.make_room(&mut contacts);
        }
        let Some(lane) = contacts.sizes.iter().position(|size| *size < MAX_TOPICS) else { return };
        let used = self.uses.fetch_add(1, Ordering::Relaxed).into();
        let contact = Contact { customer: customer.clone(), lane, used, since: NOT.into() };
        contacts.by_key.insert(key, Arc::new(contact));
        contacts.sizes[lane] += 1;
        self.changed[lane].notify_one();
    }

    fn touch(&self, contact: &Contact) {
        contact.used.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Removes those that were not used for longest.
    fn make_room(&self, contacts: &mut Contacts) {
        let Contacts { by_key, sizes } = contacts;
        let mut uses: Vec<u64> = by_key.values().map(|contact| contact.used.load(Ordering::Relaxed)).collect();
        let last = (uses.len() / REMOVED_PART).saturating_sub(1);
        let (_, newest, _) = uses.select_nth_unstable(last);
        by_key.retain(|_, contact| {
            let stays = contact.used.load(Ordering::Relaxed) > *newest;
            if !stays {
                sizes[contact.lane] -= 1;
                self.changed[contact.lane].notify_one();
            }
            stays
        });
    }

    /// Waits until the contacts of a lane have changed. Cancel-safe.
    pub(super) async fn changed(&self, lane: usize) {
        self.changed[lane].notified().await;
    }

    /// Returns the contacts of a lane.
    pub(super) fn of(&self, lane: usize) -> Vec<Arc<Contact>> {
        self.contacts.read().by_key.values().filter(|contact| contact.lane == lane).map(Arc::clone).collect()
    }

    /// Returns how many contacts are watched.
    pub(super) fn watched(&self) -> usize {
        self.contacts.read().by_key.values().filter(|contact| contact.since().is_some()).count()
    }
}

impl Contact {
    /// Returns since when its changes are received.
    pub(super) fn since(&self) -> Option<Timestamp> {
        Some(self.since.load(Ordering::Acquire)).filter(|since| *since != NOT).map(Timestamp::from_millis)
    }

    /// Stores that its changes are received from now on, unless they are already.
    pub(super) fn watched_from(&self, now: Timestamp) {
        // Only the task of its lane writes, so a failure means that it is watched.
        let _ = self.since.compare_exchange(NOT, now.as_millis(), Ordering::AcqRel, Ordering::Acquire);
    }

    /// Stores that its changes are not received.
    pub(super) fn unwatched(&self) {
        self.since.store(NOT, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::KeyHasher;

    use super::*;

    fn contact(number: usize) -> (Key, CustomerId) {
        let customer: CustomerId = format!("c-{number}").parse().unwrap();
        (KeyHasher::Sha256.identify(&"t".parse().unwrap(), &customer).key(), customer)
    }

    #[test]
    fn the_contacts_that_were_not_used_for_longest_make_room() {
        let watches = Watches::new(2);
        for number in 0..2_000 {
            let (key, customer) = contact(number);
            watches.add(key, &customer);
        }
        assert_eq!([watches.of(0).len(), watches.of(1).len()], [1_000, 1_000]);
        watches.of(0).iter().chain(&watches.of(1)).for_each(|contact| contact.watched_from(Timestamp::from_millis(7)));
        assert_eq!(watches.since(&contact(0).0), Some(Timestamp::from_millis(7)), "a use");
        let (key, customer) = contact(2_000);
        watches.add(key.clone(), &customer);
        assert_eq!(watches.since(&key), None, "it is not subscribed yet");
        assert_eq!(watches.of(0).len() + watches.of(1).len(), 1_901);
        assert!(watches.since(&contact(0).0).is_some());
        assert!((1..=100).all(|number| watches.since(&contact(number).0).is_none()));
        assert!(watches.since(&contact(101).0).is_some());
    }

    #[test]
    fn a_watch_begins_once_until_it_is_lost() {
        let watches = Watches::new(1);
        let (key, customer) = contact(1);
        watches.add(key.clone(), &customer);
        for (now, since) in [(5, 5), (9, 5)] {
            watches.of(0)[0].watched_from(Timestamp::from_millis(now));
            assert_eq!(watches.since(&key), Some(Timestamp::from_millis(since)));
        }
        assert_eq!(watches.watched(), 1);
        watches.of(0)[0].unwatched();
        assert_eq!((watches.since(&key), watches.watched()), (None, 0));
    }
}
