//! A limited resource that its users share without a configured part for each: streams, bytes, places of a queue.
//!
//! A user gets more only while more is free than it holds then. So a user that is alone gets half, *n* users that want all
//! get an equal part each, and whatever they hold, a part of that size is left for the next one (dynamic thresholds, Choudhury
//! and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// A resource of a number of units.
#[derive(Debug)]
pub struct FairShares {
    total: usize,
    held: Mutex<Held>,
}

/// What is held, of all and by each user that holds something.
#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_user: HashMap<Arc<str>, usize>,
}

/// Units that a user holds until this is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<FairShares>,
    user: Arc<str>,
    units: usize,
}

/// Why a user gets nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoShare {
    /// Too little is free.
    #[error("all of it is in use")]
    AllInUse,
    /// The user has its part.
    #[error("the user has its part")]
    OwnPart,
}

impl FairShares {
    /// Creates a resource of which nothing is held.
    #[must_use]
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { total, held: Mutex::default() })
    }

    /// Takes units for a user.
    ///
    /// # Errors
    ///
    /// Too little is free, or less than the user would hold.
    pub fn take(self: &Arc<Self>, user: &Arc<str>, units: usize) -> Result<Share, NoShare> {
        let mut held = self.held.lock();
        let free = self.total - held.all;
        let own = held.by_user.get(user).copied().unwrap_or(0).saturating_add(units);
        if units > free {
            return Err(NoShare::AllInUse);
        }
        if own > free {
            return Err(NoShare::OwnPart);
        }
        held.all += units;
        held.by_user.insert(Arc::clone(user), own);
        Ok(Share { shares: Arc::clone(self), user: Arc::clone(user), units })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        held.all -= self.units;
        if let Some(own) = held.by_user.get_mut(&self.user) {
            *own -= self.units;
            if *own == 0 {
                held.by_user.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_that(shares: &Arc<FairShares>, user: &str) -> Vec<Share> {
        let user = user.into();
        std::iter::from_fn(|| shares.take(&user, 1).ok()).collect()
    }

    #[test]
    fn a_user_alone_gets_half_and_the_next_ones_always_something() {
        let shares = FairShares::new(120);
        let first = all_that(&shares, "a");
        assert_eq!((first.len(), shares.take(&"a".into(), 1).err()), (60, Some(NoShare::OwnPart)));
        let second = all_that(&shares, "b");
        assert_eq!((second.len(), all_that(&shares, "c").len()), (30, 15));
        drop((first, second));
        assert_eq!(all_that(&shares, "b").len(), 60);
        assert_eq!(shares.take(&"d".into(), 121).err(), Some(NoShare::AllInUse));
        assert!(shares.held.lock().by_user.is_empty(), "who holds nothing is forgotten");
    }

    #[test]
    fn a_single_unit_can_be_taken() {
        let shares = FairShares::new(1);
        let only = shares.take(&"a".into(), 1);
        assert!(only.is_ok());
        assert_eq!(shares.take(&"b".into(), 1).err(), Some(NoShare::AllInUse));
    }
}
