//! `profile-edge audit verify`: checks the hash chain of audit files and names the first bad line.

use std::path::PathBuf;

use serde_json::json;

use crate::audit::chain::{ChainHead, Hasher, RecordHash};
use crate::audit::verify::{self, BadLine, Error, VerifyReport};

use super::{Exit, complain, json_line, print};

/// Checks files, oldest first, and prints the result.
pub(super) fn verify(files: &[PathBuf], hasher: Hasher, expected: Option<RecordHash>, json: bool) -> Exit {
    match verify::files(files, hasher, expected) {
        Ok(report) => print(&if json { as_json(&report) } else { as_text(&report) }),
        Err(Error::Unreadable(file, error)) => {
            complain(&format!("{} cannot be read: {error}", file.display()));
            Exit::Usage
        }
        Err(Error::Bad(bad)) => {
            if json {
                let BadLine { file, line, fault } = &bad;
                print(&json_line(&json!({
                    "ok": false, "file": file.display().to_string(), "line": line, "reason": fault.to_string(),
                })));
            } else {
                print(&format!("{bad}\n"));
            }
            Exit::NotInOrder
        }
    }
}

fn as_json(report: &VerifyReport) -> String {
    let heads = report.heads.iter().zip(&report.first);
    let head = |(head, first): (&ChainHead, &u64)| json!({ "chain": head.chain, "first": first, "seq": head.seq, "hash": head.hash.to_string() });
    let heads: Vec<_> = heads.map(head).collect();
    json_line(&json!({ "ok": true, "records": report.records, "heads": heads, "beyond_expected": report.beyond }))
}

fn as_text(report: &VerifyReport) -> String {
    let mut text = format!("{} records in order\n", report.records);
    for (head, first) in report.heads.iter().zip(&report.first) {
        if *first > 1 {
            let before = first - 1;
            text.push_str(&format!(
                "chain {}: earlier files are missing (audit.keep removed them, or they were not given): records 1 to {before}\n",
                head.chain
            ));
        }
        text.push_str(&format!("chain {} up to record {}, head {}\n", head.chain, head.seq, head.hash));
    }
    if let Some(beyond) = report.beyond {
        text.push_str(&format!("the expected head is present, {beyond} records follow it\n"));
    }
    text
}
