//! Connections of this process that must lead to the same server.
//!
//! Reads, the scripts of lookups, and events have a connection each. Where a name leads to the server, each of them is made
//! at another time, and the name may have moved in between, while the old server still answers. Then events would take
//! effect at one server, and lookups read from the other.
//!
//! So the connections are made in *rounds*. One that is made again by the name, because it was broken or had reached its
//! [`MaxAge`], begins a round, and the others [follow](Member::follow) at once: to the address of that connection, where it is
//! known. A connection that has another address than the round is not used until it has followed. One with the same
//! address stays in use until it is replaced, because only a load balancer could lead elsewhere.
//!
//! The algorithm needs no order: whichever connection is made last decides, and the others follow it. If one cannot follow, it
//! is made by the name, and the others follow that one.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::max_age::MaxAge;

/// Connections that must lead to the same server; cloning shares them. Where no name leads to the server, there is nothing
/// to do.
#[derive(Clone, Debug)]
pub struct SameServer {
    max_age: MaxAge,
    latest: Arc<watch::Sender<Round>>,
}

/// The connections that were made since the name was last resolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Round {
    number: u64,
    /// The address of its first connection; `None` where connections do not know theirs.
    address: Option<SocketAddr>,
}

/// One of the connections.
#[derive(Debug)]
pub struct Member {
    all: SameServer,
    /// The round of the present connection.
    own: Round,
}

/// An attempt to connect.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The latest round when it began.
    began_in: Round,
    follows: bool,
}

/// Why a connection is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It has reached its age.
    Aged,
    /// Another one was made, to the same address as far as is known.
    Behind,
    /// Another one was made to another address: this connection must not be used any longer.
    Elsewhere,
}

impl SameServer {
    /// Creates the set of connections that `max_age` limits in time.
    #[must_use]
    pub fn new(max_age: MaxAge) -> Self {
        Self { max_age, latest: Arc::default() }
    }

    /// Returns the age at which connections are replaced.
    #[must_use]
    pub const fn max_age(&self) -> MaxAge {
        self.max_age
    }

    /// Adds a connection.
    #[must_use]
    pub fn member(&self) -> Member {
        Member { all: self.clone(), own: Round::default() }
    }
}

impl Member {
    /// Begins an attempt to connect: to the address of the others, if they are ahead; otherwise by the name.
    pub fn attempt(&self) -> Attempt {
        let latest = self.latest();
        Attempt { began_in: latest, follows: latest.number > self.own.number && latest.address.is_some() }
    }

    /// Begins an attempt to connect as the others did.
    pub fn follow(&self) -> Attempt {
        Attempt { began_in: self.latest(), follows: true }
    }

    /// Takes note that an attempt succeeded, and with which address. Call this before the connection is used.
    pub fn connected(&mut self, attempt: Attempt, address: Option<SocketAddr>) {
        if !self.all.max_age.is_limited() {
            return;
        }
        if attempt.follows {
            self.own = Round { address, ..attempt.began_in };
            return;
        }
        self.all.latest.send_if_modified(|latest| {
            // Two that are made at the same time, such as those of the start, need not follow each other.
            let is_joined = latest.number > attempt.began_in.number && latest.address == address;
            if !is_joined {
                *latest = Round { number: latest.number + 1, address };
            }
            self.own = *latest;
            !is_joined
        });
    }

    /// Takes note that an attempt failed. Returns whether the present connection may stay in use: not if it should have followed
    /// the others. The next one is made by the name then.
    #[must_use]
    pub fn failed(&mut self, attempt: Attempt) -> bool {
        if attempt.follows {
            self.own.number = attempt.began_in.number;
        }
        !attempt.follows
    }

    /// Waits until the present connection is to be replaced. Cancel-safe, but each call starts from the beginning.
    pub async fn due(&self) -> Due {
        let mut latest = self.all.latest.subscribe();
        let behind = async {
            // The sender lives as long as `self`, so this cannot fail.
            let latest = latest.wait_for(|latest| latest.number > self.own.number).await;
            latest.map_or(Due::Behind, |latest| self.due_by(*latest))
        };
        tokio::select! {
            () = self.all.max_age.reached() => Due::Aged,
            due = behind => due,
        }
    }

    fn due_by(&self, latest: Round) -> Due {
        if latest.address == self.own.address { Due::Behind } else { Due::Elsewhere }
    }

    fn latest(&self) -> Round {
        *self.all.latest.borrow()
    }
}

impl Attempt {
    /// Returns the address to connect to; `None`: that of the name.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.began_in.address.filter(|_| self.follows)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn named() -> SameServer {
        SameServer::new(MaxAge::new(Duration::from_secs(300), ["cache.example"]))
    }

    fn address(number: u8) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 0, 0, number], 11_211)))
    }

    /// Connects by the name, which leads to this address, or follows.
    fn connect(member: &mut Member, name: Option<SocketAddr>) -> Option<SocketAddr> {
        let attempt = member.attempt();
        let address = attempt.address().or(name);
        member.connected(attempt, address);
        address
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_made_anew_is_followed_by_the_others() {
        let all = named();
        let (mut lookups, mut events) = (all.member(), all.member());
        let both = [lookups.attempt(), events.attempt()];
        lookups.connected(both[0], address(1));
        events.connected(both[1], address(1));
        assert_eq!([lookups.due().now_or_never(), events.due().now_or_never()], [None, None], "they are alike");

        // The name moves, and one of them is broken.
        assert_eq!(connect(&mut events, address(2)), address(2));
        assert_eq!(lookups.due().await, Due::Elsewhere);
        assert_eq!(connect(&mut lookups, address(1)), address(2), "it follows whatever the name says");
        assert_eq!([lookups.due().now_or_never(), events.due().now_or_never()], [None, None]);

        // To the same address again, as through a load balancer.
        connect(&mut lookups, address(2));
        assert_eq!(events.due().await, Due::Behind);
        let attempt = events.follow();
        assert_eq!(attempt.address(), address(2));
        events.connected(attempt, address(2));
        assert_eq!(lookups.due().now_or_never(), None);
        assert_eq!(events.due().await, Due::Aged);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_are_made_at_the_same_time_to_two_servers_agree() {
        let all = named();
        let (mut lookups, mut events) = (all.member(), all.member());
        let both = [lookups.attempt(), events.attempt()];
        lookups.connected(both[0], address(1));
        events.connected(both[1], address(2));
        assert_eq!(events.due().now_or_never(), None);
        assert_eq!(lookups.due().await, Due::Elsewhere);
        assert_eq!(connect(&mut lookups, address(1)), address(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_follow_is_made_by_the_name_and_followed() {
        let all = named();
        let (mut lookups, mut events) = (all.member(), all.member());
        connect(&mut lookups, address(1));
        let attempt = events.attempt();
        assert_eq!(attempt.address(), address(1));
        assert!(!events.failed(attempt));
        assert_eq!(connect(&mut events, address(2)), address(2));
        assert_eq!(lookups.due().now_or_never(), Some(Due::Elsewhere));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_without_known_addresses_follow_once() {
        let all = named();
        let (mut lookups, mut events) = (all.member(), all.member());
        connect(&mut lookups, None);
        connect(&mut events, None);
        assert_eq!(lookups.due().await, Due::Behind);
        let attempt = lookups.follow();
        lookups.connected(attempt, None);
        assert_eq!([lookups.due().now_or_never(), events.due().now_or_never()], [None, None]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_follows_where_only_addresses_are_configured() {
        let all = SameServer::new(MaxAge::new(Duration::from_secs(300), ["10.0.0.1"]));
        let (mut lookups, mut events) = (all.member(), all.member());
        connect(&mut lookups, address(1));
        connect(&mut events, address(1));
        assert_eq!([lookups.due().now_or_never(), events.due().now_or_never()], [None, None]);
    }

    proptest! {
        /// Whatever the name says in between: when nothing is due any more, all connections have one address.
        #[test]
        fn all_connections_end_at_one_address(
            steps in prop::collection::vec((0..3_usize, 0..4_u8, any::<bool>()), 1..40)
        ) {
            let all = named();
            let mut members = [all.member(), all.member(), all.member()];
            let mut begun: [Option<Attempt>; 3] = [None; 3];
            let mut at = [None; 3];
            for (index, name, succeeds) in steps {
                let member = &mut members[index];
                match begun[index].take() {
                    None => begun[index] = Some(member.attempt()),
                    Some(attempt) if succeeds => {
                        at[index] = attempt.address().or(address(name));
                        member.connected(attempt, at[index]);
                    }
                    Some(attempt) => if !member.failed(attempt) {
                        at[index] = None;
                    },
                }
            }
            for (member, at) in members.iter_mut().zip(&mut at).filter(|(_, at)| at.is_none()) {
                *at = connect(member, address(9));
            }
            for _ in 0..3 {
                for (member, at) in members.iter_mut().zip(&mut at) {
                    if member.latest().number > member.own.number {
                        *at = connect(member, address(9));
                    }
                }
            }
            prop_assert!(at.iter().all(|one| *one == at[0]), "{:?}", at);
        }
    }
}
