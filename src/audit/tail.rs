//! Reads the end of an audit file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::domain::Digest;

use super::recent_events::RecentEvents;
use super::record::EVENT;

/// The longest line that can be a record, in bytes: an event names as many keys as fit into a message.
pub(super) const LONGEST: u64 = 1 << 20;

/// The end of a file.
#[derive(Debug)]
pub(super) struct FileTail {
    /// The last complete line, without its line end.
    pub(super) last_line: Option<Vec<u8>>,
    /// The incomplete line behind it.
    pub(super) incomplete: Option<IncompleteLine>,
}

/// A line without a line end.
#[derive(Debug)]
pub(super) struct IncompleteLine {
    /// Its offset in the file.
    pub(super) at: u64,
    /// Its length.
    pub(super) bytes: u64,
    /// Its SHA-256, in hex.
    pub(super) sha256: String,
}

/// Reads the end of a file.
pub(super) fn read(file: &File) -> io::Result<FileTail> {
    let length = file.metadata()?.len();
    // Enough for the last line and for half of another one.
    let from = length.saturating_sub(2 * LONGEST);
    let bytes = read_from(file, from)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let rest = &bytes[whole..];
    let last_line = bytes[..whole].strip_suffix(b"\n").map(|lines| {
        let start = lines.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        lines[start..].to_vec()
    });
    let incomplete = (!rest.is_empty()).then(|| IncompleteLine {
        at: from + whole as u64,
        bytes: rest.len() as u64,
        sha256: hex::encode(Sha256::digest(rest)),
    });
    Ok(FileTail { last_line, incomplete })
}

fn read_from(mut file: &File, from: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Adds the events in the last `part` bytes of a file to `recent`.
pub(super) fn events(mut file: &File, part: u64, recent: &mut RecentEvents) -> io::Result<()> {
    /// The members that matter here.
    #[derive(Deserialize)]
    struct EventMembers<'a> {
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
        // Most records are about lookups and have no digest; an incomplete line is not JSON.
        let members = serde_json::from_slice::<EventMembers<'_>>(&line).ok().filter(|members| members.kind == EVENT);
        if let Some(digest) = members.and_then(|members| members.digest.parse::<Digest>().ok()) {
            recent.insert(digest);
        }
    }
}
