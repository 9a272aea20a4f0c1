//! What stands at the end of an audit file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::domain::Digest;

use super::recent::Recent;
use super::record::EVENT;

/// The longest line that can be a record: an event names as many keys as fit into a message.
pub(super) const LONGEST: u64 = 1 << 20;

/// The end of a file.
#[derive(Debug)]
pub(super) struct End {
    /// The last whole line, without its line end.
    pub(super) last_line: Option<Vec<u8>>,
    /// What stands behind it.
    pub(super) torn: Option<Torn>,
}

/// A line that was not written to its end.
#[derive(Debug)]
pub(super) struct Torn {
    /// Where it begins.
    pub(super) at: u64,
    /// How long it is.
    pub(super) bytes: u64,
    /// Its SHA-256.
    pub(super) sha256: [u8; 32],
}

/// Reads the end of a file.
pub(super) fn end(file: &File) -> io::Result<End> {
    let length = file.metadata()?.len();
    // Room for the last line and for half of another one.
    let from = length.saturating_sub(2 * LONGEST);
    let bytes = read_from(file, from)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let torn = &bytes[whole..];
    let last_line = bytes[..whole].strip_suffix(b"\n").map(|lines| {
        let start = lines.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        lines[start..].to_vec()
    });
    let torn = (!torn.is_empty()).then(|| Torn {
        at: from + whole as u64,
        bytes: torn.len() as u64,
        sha256: Sha256::digest(torn).into(),
    });
    Ok(End { last_line, torn })
}

fn read_from(mut file: &File, from: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Remembers the events that the last part of a file names.
pub(super) fn events(mut file: &File, part: u64, recent: &mut Recent) -> io::Result<()> {
    /// What is looked at.
    #[derive(Deserialize)]
    struct Recorded<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        digest: &'a str,
    }

    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(part)))?;
    let mut lines = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.by_ref().take(LONGEST).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        // Most lines are about lookups and have no digest; half a line is no JSON.
        let recorded = serde_json::from_slice::<Recorded<'_>>(&line).ok().filter(|recorded| recorded.kind == EVENT);
        if let Some(digest) = recorded.and_then(|recorded| recorded.digest.parse::<Digest>().ok()) {
            recent.insert(digest);
        }
    }
}
