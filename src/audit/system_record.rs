//! Records about the audit and the process themselves.

use serde::Serialize;

/// The `type` of records about the chain; each file starts with one.
pub(super) const CHAIN: &str = "chain";

/// A record about the audit or the process.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum SystemRecord {
    /// A chain or a file starts.
    Chain(ChainEvent),
    /// The file ended in an incomplete record, which was truncated.
    Cut {
        /// The length of the removed bytes.
        bytes: u64,
        /// The SHA-256 of the removed bytes, in hex.
        sha256: String,
    },
    /// Records were dropped.
    Dropped {
        /// The total.
        records: u64,
        /// Those about lookups.
        lookups: u64,
        /// Those about events.
        events: u64,
    },
    /// The process starts or stops.
    Process(ProcessEvent),
}

/// What happened to the chain.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub(super) enum ChainEvent {
    /// A new chain starts.
    Began {
        /// The algorithm of the hashes.
        algorithm: &'static str,
        /// The file whose chain could not be continued.
        #[serde(skip_serializing_if = "Option::is_none")]
        mistrusted: Option<String>,
    },
    /// A new file continues the chain.
    Continued {
        /// The algorithm of the hashes.
        algorithm: &'static str,
        /// The name of the previous file.
        after: String,
    },
}

/// What happened to the process.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub(super) enum ProcessEvent {
    /// It starts.
    Started {
        /// The version of the program.
        version: &'static str,
        /// The process id.
        pid: u32,
    },
    /// It stops.
    Stopped,
}

impl SystemRecord {
    /// A new chain starts; `mistrusted` names a file whose chain could not be continued.
    pub(super) const fn began(algorithm: &'static str, mistrusted: Option<String>) -> Self {
        Self::Chain(ChainEvent::Began { algorithm, mistrusted })
    }

    /// A new file continues the chain of the file `after`.
    pub(super) const fn continued(algorithm: &'static str, after: String) -> Self {
        Self::Chain(ChainEvent::Continued { algorithm, after })
    }

    /// The process starts.
    pub(super) fn started() -> Self {
        Self::Process(ProcessEvent::Started { version: env!("CARGO_PKG_VERSION"), pid: std::process::id() })
    }
}
