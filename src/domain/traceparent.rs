//! `traceparent`: the position of an event or a request in a trace (W3C Trace Context, section 3.2).
//!
//! It consists of hex digits, so a queue and a log may contain it. The related header `tracestate` contains free text
//! of its sender, and is not propagated.

use std::fmt;
use std::str::FromStr;

/// A position in a trace: the trace, the parent span, and whether the parent span is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Traceparent {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
}

/// The text is not a `traceparent`; the receiver starts a new trace (section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a traceparent of W3C Trace Context")]
pub struct InvalidTraceparent;

impl Traceparent {
    /// The flag of a recorded parent span.
    const SAMPLED: u8 = 1;

    /// The length of version 00, in bytes; later versions may be longer.
    const LEN: usize = 55;

    /// Creates a position; `None` if an id is all zeros, which is invalid.
    #[must_use]
    pub fn new(trace_id: [u8; 16], parent_id: [u8; 8], is_sampled: bool) -> Option<Self> {
        let valid = trace_id != [0; 16] && parent_id != [0; 8];
        valid.then_some(Self { trace_id, parent_id, flags: if is_sampled { Self::SAMPLED } else { 0 } })
    }

    /// Returns the id of the trace.
    #[must_use]
    pub const fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// Returns the id of the parent span.
    #[must_use]
    pub const fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Returns whether the parent span is recorded.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & Self::SAMPLED != 0
    }
}

impl FromStr for Traceparent {
    type Err = InvalidTraceparent;

    /// Parses all versions except `ff`. Of a later version it uses the fields of version 00; it drops unknown flags.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        let (known, rest) = bytes.split_at_checked(Self::LEN).ok_or(InvalidTraceparent)?;
        let version = read::<1>(&known[..2]).ok_or(InvalidTraceparent)?;
        let ends = match version {
            [0] => rest.is_empty(),
            [0xff] => false,
            [_] => rest.is_empty() || rest.starts_with(b"-"),
        };
        if !ends || [known[2], known[35], known[52]] != *b"---" {
            return Err(InvalidTraceparent);
        }
        let ids = read(&known[3..35]).zip(read(&known[36..52])).zip(read::<1>(&known[53..]));
        let ((trace_id, parent_id), [flags]) = ids.ok_or(InvalidTraceparent)?;
        Self::new(trace_id, parent_id, flags & Self::SAMPLED != 0).ok_or(InvalidTraceparent)
    }
}

/// Decodes hex digits; upper case is invalid.
fn read<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let lower = !digits.iter().any(u8::is_ascii_uppercase);
    (lower && hex::decode_to_slice(digits, &mut bytes).is_ok()).then_some(bytes)
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", hex::encode(self.trace_id), hex::encode(self.parent_id), self.flags)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_standard_is_parsed() {
        let read: Traceparent = EXAMPLE.parse().unwrap();
        assert_eq!(hex::encode(read.trace_id()), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(hex::encode(read.parent_id()), "00f067aa0ba902b7");
        assert!(read.is_sampled());
        assert_eq!(read.to_string(), EXAMPLE);
    }

    #[test]
    fn later_versions_are_parsed_and_unknown_flags_dropped() {
        for later in [EXAMPLE.replacen("00", "cc", 1), format!("{}-what-comes", EXAMPLE.replacen("00", "cc", 1))] {
            assert_eq!(later.parse::<Traceparent>().unwrap().to_string(), EXAMPLE);
        }
        let flags = EXAMPLE.replace("-01", "-fe").parse::<Traceparent>().unwrap();
        assert_eq!(flags.to_string(), EXAMPLE.replace("-01", "-00"));
    }

    #[test]
    fn anything_else_is_refused() {
        let bad = [
            String::new(),
            EXAMPLE[..54].to_owned(),
            format!("{EXAMPLE}-"),
            format!("{EXAMPLE}0"),
            EXAMPLE.replacen("00", "ff", 1),
            EXAMPLE.replacen("00", "0g", 1),
            EXAMPLE.to_uppercase(),
            EXAMPLE.replace('-', "_"),
            EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            EXAMPLE.replace("00f067aa0ba902b7", &"0".repeat(16)),
            format!(" {}", &EXAMPLE[..54]),
            "é".repeat(28),
            format!("{}.what-comes", EXAMPLE.replacen("00", "cc", 1)),
        ];
        for text in bad {
            assert_eq!(text.parse::<Traceparent>(), Err(InvalidTraceparent), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parse_and_format_are_inverses(trace_id in any::<[u8; 16]>(), parent_id in any::<[u8; 8]>(), sampled: bool) {
            if let Some(made) = Traceparent::new(trace_id, parent_id, sampled) {
                prop_assert_eq!(made.to_string().parse(), Ok(made));
            }
        }

        #[test]
        fn parsing_never_panics(text in ".{0,60}") {
            let _ = text.parse::<Traceparent>();
        }
    }
}
