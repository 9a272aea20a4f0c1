//! Adds the request that a log line belongs to.

use std::io::{self, Write};

use serde_json::{Map, Value};

use crate::request_context::{self, RequestContext};

use super::line_queue::LineQueue;

/// Passes log lines to a queue.
#[derive(Debug)]
pub(super) struct LineWriter {
    pub(super) queue: &'static LineQueue,
    pub(super) is_json: bool,
}

/// One write of the subscriber, which is one line.
impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match request_context::with_current(|request| with_request(line, self.is_json, request)) {
            Some(line) => self.queue.push(&line),
            None => self.queue.push(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends the request: to a JSON object as the member `span`, to a text as `name=value`.
fn with_request(line: &[u8], is_json: bool, request: &RequestContext) -> Vec<u8> {
    if is_json {
        let mut span: Map<String, Value> = request.fields().map(|(name, value)| (name.into(), value.into())).collect();
        span.insert("name".to_owned(), "request".into());
        let object = line.strip_suffix(b"}\n").unwrap_or(line);
        [object, b",\"span\":", Value::from(span).to_string().as_bytes(), b"}\n"].concat()
    } else {
        let fields: String = request.fields().map(|(name, value)| format!(" {name}={value}")).collect();
        [line.strip_suffix(b"\n").unwrap_or(line), fields.as_bytes(), b"\n"].concat()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    /// Writes a line, and returns what is written to the log.
    fn written(line: &str, is_json: bool) -> String {
        let queue: &'static LineQueue = Box::leak(Box::new(LineQueue::new()));
        LineWriter { queue, is_json }.write_all(line.as_bytes()).unwrap();
        let mut written = Vec::new();
        queue.write_next(&mut written);
        String::from_utf8(written).unwrap()
    }

    /// As [`written`], in a task of a request whose trace is known.
    async fn written_for_a_request(line: &'static str, is_json: bool) -> String {
        let work = async {
            request_context::set_trace_id("4bf9".to_owned());
            tokio::spawn(request_context::continued(async move { written(line, is_json) })).await.unwrap()
        };
        RequestContext::new(HeaderValue::from_static("r-1")).scope(work).await
    }

    #[tokio::test]
    async fn a_line_names_its_request() {
        let line = written_for_a_request("{\"level\":\"WARN\",\"message\":\"m\"}\n", true).await;
        let span = json!({ "name": "request", "request_id": "r-1", "trace_id": "4bf9" });
        let line: Value = serde_json::from_str(line.strip_suffix('\n').unwrap()).unwrap();
        assert_eq!(line, json!({ "level": "WARN", "message": "m", "span": span }));
        assert_eq!(written_for_a_request("WARN m\n", false).await, "WARN m request_id=r-1 trace_id=4bf9\n");
    }

    #[test]
    fn a_line_without_a_request_is_not_changed() {
        assert_eq!(written("{\"level\":\"WARN\"}\n", true), "{\"level\":\"WARN\"}\n");
    }
}
