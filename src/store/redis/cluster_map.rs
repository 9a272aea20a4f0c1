//! Which node of a cluster has which slots, as its nodes say it. Pure.

use std::fmt;

use redis::Value;

use super::reply::{bytes, list};
use super::slots::SLOTS;

/// The host and port of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeAddress {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl NodeAddress {
    /// Returns the address that this node names: an empty host is its own.
    pub(super) fn named(&self, host: &str, port: u16) -> Self {
        let host = if host.is_empty() { &self.host } else { host };
        Self { host: host.to_owned(), port }
    }
}

/// Slots in a row, and the primary that has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotRange {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) primary: NodeAddress,
}

/// Reads the answer of a node to `CLUSTER SLOTS`. A range whose primary it does not know is left out.
pub(super) fn parse(answer: Value, of: &NodeAddress) -> Vec<SlotRange> {
    let mut ranges: Vec<SlotRange> =
        list(answer).unwrap_or_default().into_iter().filter_map(|range| parse_range(range, of)).collect();
    ranges.sort_unstable_by_key(|range| range.first);
    ranges
}

fn parse_range(range: Value, of: &NodeAddress) -> Option<SlotRange> {
    let mut parts = list(range).ok()?.into_iter();
    let (first, last) = (parts.next().and_then(number)?, parts.next().and_then(number)?);
    let mut primary = list(parts.next()?).ok()?.into_iter();
    let host = match primary.next()? {
        Value::Nil => String::new(),
        host => String::from_utf8(bytes(host)?).ok()?,
    };
    let port = u16::try_from(primary.next().and_then(number)?).ok()?;
    // A node that listens on every address, or does not know its own, has that to which the question went.
    let host = if matches!(host.as_str(), "0.0.0.0" | "::") { "" } else { &host };
    let is_known = host != "?" && first <= last && last < SLOTS;
    is_known.then(|| SlotRange { first, last, primary: of.named(host, port) })
}

fn number(value: Value) -> Option<usize> {
    super::reply::number(&value).and_then(|number| usize::try_from(number).ok())
}

/// Returns what most nodes say of each slot: a node that is cut off from the others does not know of a failover, and while
/// slots move, each node knows something else.
pub(super) fn majority(views: &[Vec<SlotRange>]) -> Vec<SlotRange> {
    let mut bounds: Vec<usize> = views.iter().flatten().flat_map(|range| [range.first, range.last + 1]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let between = |bounds: &[usize]| {
        let &[first, end] = bounds else { return None };
        let of = |view: &Vec<SlotRange>| view.iter().find(|range| range.first <= first && first <= range.last).cloned();
        let said: Vec<NodeAddress> = views.iter().filter_map(of).map(|range| range.primary).collect();
        let votes = |primary: &&NodeAddress| said.iter().filter(|other| other == primary).count();
        // Of equals the last wins; any of them is good.
        let primary = said.iter().max_by_key(votes)?.clone();
        Some(SlotRange { first, last: end - 1, primary })
    };
    bounds.windows(2).filter_map(between).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: usize, last: usize, host: &str, port: u16) -> SlotRange {
        SlotRange { first, last, primary: NodeAddress { host: host.to_owned(), port } }
    }

    #[test]
    fn the_slots_of_a_node_are_read_from_its_answer() {
        let answer = "*4\r\n\
            *4\r\n:5461\r\n:10922\r\n*3\r\n$8\r\n10.0.0.2\r\n:7001\r\n$2\r\nid\r\n*2\r\n$8\r\n10.0.0.3\r\n:7002\r\n\
            *3\r\n:0\r\n:5460\r\n*2\r\n$0\r\n\r\n:7000\r\n\
            *3\r\n:10923\r\n:16000\r\n*2\r\n$-1\r\n:7003\r\n\
            *3\r\n:16001\r\n:16383\r\n*2\r\n$1\r\n?\r\n:7004\r\n";
        let asked = NodeAddress { host: "asked".to_owned(), port: 1 };
        let ranges = parse(redis::parse_redis_value(answer.as_bytes()).unwrap(), &asked);
        let expected =
            [range(0, 5460, "asked", 7000), range(5461, 10922, "10.0.0.2", 7001), range(10923, 16000, "asked", 7003)];
        assert_eq!(ranges, expected);
        for odd in [":1\r\n", "*1\r\n*1\r\n:1\r\n", "*1\r\n*3\r\n:5\r\n:16384\r\n*2\r\n$1\r\nh\r\n:1\r\n", "$-1\r\n"] {
            assert_eq!(parse(redis::parse_redis_value(odd.as_bytes()).unwrap(), &asked), [], "{odd}");
        }
    }

    #[test]
    fn what_most_nodes_say_of_a_slot_counts() {
        let old = vec![range(0, 99, "a", 1), range(100, 16383, "b", 1)];
        let new = vec![range(0, 99, "c", 1), range(100, 16383, "b", 1)];
        for views in [[new.clone(), old.clone(), new.clone()], [old.clone(), new.clone(), new.clone()]] {
            assert_eq!(majority(&views), new);
        }
        assert_eq!(majority(&[vec![], vec![], new.clone()]), new);
        assert_eq!(majority(&[vec![]]), []);
        // Slot 100 moves from b to c, and each node has heard of something else.
        let moved = vec![range(0, 100, "c", 1), range(101, 16383, "b", 1)];
        let expected = [range(0, 99, "c", 1), range(100, 100, "b", 1), range(101, 16383, "b", 1)];
        assert_eq!(majority(&[old.clone(), moved, new]), expected);
        let part = vec![range(0, 99, "a", 1), range(200, 16383, "b", 1)];
        assert_eq!(majority(std::slice::from_ref(&part)), part, "slots that no node has");
    }
}
