//! A small real OpenTelemetry collector: takes traces over OTLP, HTTP with protobuf, and keeps them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::eventually;

/// What a collector does with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Takes,
    Fails,
    Stalls,
}

/// A span as it was taken.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for the first span of a trace.
    pub(crate) parent: String,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Of the resource.
    pub(crate) service: String,
    pub(crate) is_error: bool,
    /// From its begin to its end.
    pub(crate) nanos: u64,
}

impl Span {
    pub(crate) fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }
}

#[derive(Debug)]
struct Taken {
    manner: Mutex<Manner>,
    spans: Mutex<Vec<Span>>,
    requests: Mutex<Vec<(HeaderMap, Bytes)>>,
}

/// A running collector; it ends when this is dropped.
pub(crate) struct Collector {
    address: SocketAddr,
    taken: Arc<Taken>,
    _running: DropGuard,
}

impl Collector {
    pub(crate) async fn start(manner: Manner) -> Self {
        let taken = Arc::new(Taken { manner: Mutex::new(manner), spans: Mutex::default(), requests: Mutex::default() });
        let routes = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&taken));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, running) = (listener.local_addr().unwrap(), CancellationToken::new());
        let ended = running.clone().cancelled_owned();
        tokio::spawn(async move {
            tokio::select! {
                () = ended => {}
                served = axum::serve(listener, routes) => served.unwrap(),
            }
        });
        Self { address, taken, _running: running.drop_guard() }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn behave(&self, manner: Manner) {
        *self.taken.manner.lock() = manner;
    }

    /// How many requests have come, whatever became of them.
    pub(crate) fn asked(&self) -> usize {
        self.taken.requests.lock().len()
    }

    /// All requests, each as its headers and its body.
    pub(crate) fn requests(&self) -> Vec<(HeaderMap, Bytes)> {
        self.taken.requests.lock().clone()
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.taken.spans.lock().clone()
    }

    /// Waits for a span of this name that is as wanted.
    pub(crate) async fn span(&self, name: &str, wanted: impl Fn(&Span) -> bool) -> Span {
        eventually(&format!("the span {name}"), || async {
            self.taken.spans.lock().iter().find(|span| span.name == name && wanted(span)).cloned()
        })
        .await
    }
}

async fn take(State(taken): State<Arc<Taken>>, headers: HeaderMap, body: Bytes) -> (StatusCode, Bytes) {
    taken.requests.lock().push((headers, body.clone()));
    let manner = *taken.manner.lock();
    match manner {
        Manner::Fails => (StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
        Manner::Stalls => std::future::pending().await,
        Manner::Takes => {
            let request = ExportTraceServiceRequest::decode(body).expect("it is OTLP");
            taken.spans.lock().extend(spans(&request));
            (StatusCode::OK, Bytes::new())
        }
    }
}

fn spans(request: &ExportTraceServiceRequest) -> Vec<Span> {
    let mut found = Vec::new();
    for resource in &request.resource_spans {
        let described = attributes(&resource.resource.as_ref().expect("a resource").attributes);
        for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
            found.push(Span {
                name: span.name.clone(),
                trace: hex::encode(&span.trace_id),
                id: hex::encode(&span.span_id),
                parent: hex::encode(&span.parent_span_id),
                attributes: attributes(&span.attributes),
                service: described["service.name"].clone(),
                is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
                nanos: span.end_time_unix_nano - span.start_time_unix_nano,
            });
        }
    }
    found
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute.value.as_ref()))).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    }
}
