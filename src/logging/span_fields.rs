//! The fields of a span as JSON, written in one pass.
//!
//! Each request has a span, and most requests log nothing, so its fields must be cheap. The library's own form collects them
//! in a map of JSON values first; that took 3 % of the CPU time of a hit.

use std::fmt;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormattedFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer};

/// Formats all values as strings. For the JSON format of log lines, which reads a span's fields as a JSON object.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpanFields;

impl<'w> FormatFields<'w> for SpanFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        writer.write_char('{')?;
        Members { writer, is_first: true, result: Ok(()) }.write(fields)
    }

    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let open = current.fields.pop();
        debug_assert_eq!(open, Some('}'), "an object was written before");
        let is_first = current.fields == "{";
        Members { writer: current.as_writer(), is_first, result: Ok(()) }.write(fields)
    }
}

/// The members of an object whose end is not written yet.
struct Members<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl Members<'_> {
    fn write(mut self, fields: impl RecordFields) -> fmt::Result {
        fields.record(&mut self);
        self.result?;
        self.writer.write_char('}')
    }

    fn member(&mut self, name: &str, value: &str) -> fmt::Result {
        let separator = if std::mem::take(&mut self.is_first) { "" } else { "," };
        // Names are Rust identifiers.
        write!(self.writer, "{separator}\"{name}\":")?;
        if value.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\') {
            write!(self.writer, "\"{value}\"")
        } else {
            write!(self.writer, "{}", Value::from(value))
        }
    }
}

impl Visit for Members<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.result = self.result.and_then(|()| self.member(field.name(), value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::field::Empty;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    use tracing_subscriber::registry::LookupSpan;

    use super::*;

    /// Keeps the fields of the spans that end.
    #[derive(Default)]
    struct Ended(Arc<Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Ended {
        fn on_close(&self, id: tracing::span::Id, context: Context<'_, S>) {
            let span = context.span(&id).unwrap();
            let fields = span.extensions().get::<FormattedFields<SpanFields>>().unwrap().fields.clone();
            self.0.lock().push(fields);
        }
    }

    #[test]
    fn the_fields_of_a_span_are_a_json_object_also_after_more_are_recorded() {
        let ended = Ended::default();
        let seen = Arc::clone(&ended.0);
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::sink).json().fmt_fields(SpanFields);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines).with(ended), || {
            let span = tracing::info_span!("one", text = "a \"b\"\n", number = 5, late = Empty);
            span.record("late", "c");
            drop(span);
            let span = tracing::info_span!("two", late = Empty);
            span.record("late", "d");
        });
        let seen: Vec<Value> = seen.lock().iter().map(|fields| serde_json::from_str(fields).unwrap()).collect();
        let expected =
            [serde_json::json!({"text": "a \"b\"\n", "number": "5", "late": "c"}), serde_json::json!({"late": "d"})];
        assert_eq!(seen, expected);
    }
}
