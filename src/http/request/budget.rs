//! The memory of request bodies: a number of bytes for all bodies in progress.
//!
//! A client needs no credential to send a body where the body proves the sender. Those bodies have a share of their own,
//! so that they cannot use up the memory of clients that are authenticated already.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The part of the budget for bodies of clients that are not authenticated yet: one quarter.
const UNPROVEN_PART: usize = 4;

/// The budgets of bodies. Clones share them.
#[derive(Clone, Debug)]
pub struct BodyBudgets {
    /// The budget for bodies of authenticated clients.
    pub proven: ByteBudget,
    /// The budget for all other bodies, which is part of the first.
    pub unproven: ByteBudget,
}

/// A number of bytes that may be in use at once.
#[derive(Clone, Debug)]
pub struct ByteBudget(Arc<[Account]>);

#[derive(Debug)]
struct Account {
    limit: usize,
    used: Arc<AtomicUsize>,
}

/// Bytes of a budget in use, until this is dropped.
#[derive(Debug)]
pub struct ReservedBytes {
    budget: ByteBudget,
    bytes: usize,
}

impl BodyBudgets {
    /// Creates the budgets; `limit` is the number of bytes for all bodies.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let account = |limit, used: &Arc<AtomicUsize>| Account { limit, used: Arc::clone(used) };
        let (all, unproven) = (Arc::default(), Arc::default());
        Self {
            proven: ByteBudget([account(limit, &all)].into()),
            unproven: ByteBudget([account(limit / UNPROVEN_PART, &unproven), account(limit, &all)].into()),
        }
    }
}

impl ByteBudget {
    /// Creates a budget of its own.
    #[must_use]
    pub fn of(limit: usize) -> Self {
        Self([Account { limit, used: Arc::default() }].into())
    }

    /// Starts with no bytes.
    #[must_use]
    pub fn reserve(&self) -> ReservedBytes {
        ReservedBytes { budget: self.clone(), bytes: 0 }
    }
}

impl ReservedBytes {
    /// Adds bytes; returns whether the budget has them.
    pub fn add(&mut self, bytes: usize) -> bool {
        for (index, account) in self.budget.0.iter().enumerate() {
            if account.used.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes) > account.limit {
                for account in &self.budget.0[..=index] {
                    account.used.fetch_sub(bytes, Ordering::AcqRel);
                }
                return false;
            }
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        for account in &*self.budget.0 {
            account.used.fetch_sub(self.bytes, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unproven_bodies_leave_three_quarters_to_the_others() {
        let budgets = BodyBudgets::new(100);
        let (mut unproven, mut proven) = (budgets.unproven.reserve(), budgets.proven.reserve());
        assert!(unproven.add(25) && !unproven.add(1));
        assert!(proven.add(75) && !proven.add(1));
        drop(unproven);
        assert!(proven.add(25));
        assert!(!budgets.unproven.reserve().add(1), "the budget of all is in use");
        drop(proven);
        assert!(budgets.unproven.reserve().add(25));
    }
}
