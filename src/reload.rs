//! What a running process can be given anew: a value behind a handle.
//!
//! Whoever uses the value takes it at the start of its work (a request, a handshake) and keeps that one to the end, so
//! nothing ever sees half of an old and half of a new value, nobody waits for a change, and nothing under way is
//! cut off by it. Whoever changes it makes the new value first, whole and checked: [`Reloadable::replace`]
//! cannot fail.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

/// A handle to a value that can be replaced; cloning shares it.
pub struct Reloadable<T>(Arc<ArcSwap<T>>);

impl<T> Reloadable<T> {
    /// Makes a handle to its first value.
    #[must_use]
    pub fn new(value: impl Into<Arc<T>>) -> Self {
        Self(Arc::new(ArcSwap::new(value.into())))
    }

    /// Returns the present value, for a moment: not to be held across an await.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<T>> {
        self.0.load()
    }

    /// Returns the present value, to keep.
    #[must_use]
    pub fn keep(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// Puts another value in its place: whoever asks from now on gets that one.
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
    /// Shows nothing of the value, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reloadable")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_stays_and_what_is_taken_next_is_new() {
        let handle = Reloadable::new(1);
        let other = handle.clone();
        let taken = handle.keep();
        other.replace(2);
        assert_eq!((*taken, **handle.load(), *other.keep()), (1, 2, 2));
    }
}
