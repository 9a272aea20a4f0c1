//! A value that can be replaced at run time, behind a shared handle.
//!
//! A user loads the value at the start of its work (a request, a handshake) and keeps it to the end. So no work sees a mix
//! of old and new values, and a change neither blocks nor interrupts work in progress. The new value is built and checked
//! before the change: [`Reloadable::replace`] cannot fail.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

/// A handle to a replaceable value; clones share the value.
pub struct Reloadable<T>(Arc<ArcSwap<T>>);

impl<T> Reloadable<T> {
    /// Creates a handle with its first value.
    #[must_use]
    pub fn new(value: impl Into<Arc<T>>) -> Self {
        Self(Arc::new(ArcSwap::new(value.into())))
    }

    /// Returns the current value for a short use; do not hold the guard across an await.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<T>> {
        self.0.load()
    }

    /// Returns the current value, to keep.
    #[must_use]
    pub fn keep(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// Replaces the value; later calls of [`Self::load`] and [`Self::keep`] return the new one.
    pub fn replace(&self, value: impl Into<Arc<T>>) {
        self.0.store(value.into());
    }
}

impl<T> Clone for Reloadable<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Reloadable<T> {
    /// Hides the value, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reloadable")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_value_stays_and_the_next_load_is_new() {
        let handle = Reloadable::new(1);
        let other = handle.clone();
        let taken = handle.keep();
        other.replace(2);
        assert_eq!((*taken, **handle.load(), *other.keep()), (1, 2, 2));
    }
}
