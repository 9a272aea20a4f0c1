//! Stripes: each serializes the steps on its keys and notifies their waiters.

use std::hash::{BuildHasher, RandomState};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::domain::Key;

/// How many stripes there are.
const STRIPES: usize = 1024;

/// All stripes.
#[derive(Debug)]
pub(super) struct Stripes {
    stripes: Vec<Stripe>,
    hasher: RandomState,
}

/// The stripe of some keys.
#[derive(Debug, Default)]
pub(super) struct Stripe {
    lock: Mutex<()>,
    /// Notified when the entry of one of its keys changes.
    pub(super) changed: Notify,
}

impl Stripes {
    pub(super) fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Stripe::default()).collect(), hasher: RandomState::new() }
    }

    /// Returns the stripe of a key.
    pub(super) fn of(&self, key: &Key) -> &Stripe {
        let index = self.hasher.hash_one(key) % STRIPES as u64;
        // The remainder is below STRIPES, so it fits.
        &self.stripes[usize::try_from(index).unwrap_or_default()]
    }
}

impl Stripe {
    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock()
    }
}
