//! The replication histories of a store's servers.

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;

use super::error::Error;

/// The replication histories of a store's data: one opaque name for each primary. All processes that use a store read the
/// same names, and no other store has them.
///
/// When a name is gone, the last writes under it may be lost, even acknowledged ones:
/// [`rules::failover`](crate::rules#failover).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicationHistory {
    answered: BTreeSet<String>,
    /// The last known names of primaries that do not answer: they may go on.
    silent: BTreeSet<String>,
}

impl ReplicationHistory {
    /// Returns whether a history goes on, or may go on.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.answered.contains(name) || self.silent.contains(name)
    }

    /// Returns the names of the primaries that answered.
    pub fn answered(&self) -> impl Iterator<Item = &String> {
        self.answered.iter()
    }
}

impl FromIterator<String> for ReplicationHistory {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        Self { answered: names.into_iter().collect(), silent: BTreeSet::new() }
    }
}

/// The last known history of each server in use, by the server's name.
#[derive(Debug, Default)]
pub(super) struct KnownHistories(Mutex<HashMap<String, String>>);

impl KnownHistories {
    /// Completes what the servers in use answered now with what is known of those that did not answer.
    ///
    /// # Errors
    ///
    /// The first failure, if no server answered.
    pub(super) fn complete(&self, answers: Vec<(String, Result<String, Error>)>) -> Result<ReplicationHistory, Error> {
        let mut known = self.0.lock();
        let (mut history, mut failure, mut in_use) = (ReplicationHistory::default(), None, HashMap::new());
        for (server, answer) in answers {
            let last = match answer {
                Ok(name) => {
                    history.answered.insert(name.clone());
                    Some(name)
                }
                Err(error) => {
                    failure.get_or_insert(error);
                    let last = known.get(&server).cloned();
                    history.silent.extend(last.clone());
                    last
                }
            };
            in_use.extend(last.map(|name| (server, name)));
        }
        // A server that was replaced is forgotten.
        *known = in_use;
        match failure {
            Some(error) if history.answered.is_empty() => Err(error),
            Some(_) | None => Ok(history),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_hides_nothing_of_the_others() {
        let known = KnownHistories::default();
        let silent = || Err(Error::Unavailable { reason: "silent".to_owned() });
        let ask = |a: Result<String, Error>, b: Result<String, Error>| {
            known.complete(vec![("a".to_owned(), a), ("b".to_owned(), b)])
        };
        let first = ask(Ok("a1".to_owned()), Ok("b1".to_owned())).unwrap();
        assert!(first.has("a1") && first.has("b1"));
        assert!(ask(silent(), silent()).is_err());
        let restarted = ask(silent(), Ok("b2".to_owned())).unwrap();
        assert!(restarted.has("a1"), "it may go on");
        assert!(!restarted.has("b1") && restarted.has("b2"));
        assert_eq!(restarted.answered().collect::<Vec<_>>(), ["b2"]);

        // Another server takes over from `a`.
        let replaced = known.complete(vec![("c".to_owned(), Ok("c1".to_owned())), ("b".to_owned(), silent())]).unwrap();
        assert!(!replaced.has("a1") && replaced.has("b2") && replaced.has("c1"));
    }
}
