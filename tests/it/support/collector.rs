//! A small OpenTelemetry collector: it receives traces by OTLP over HTTP with protobuf, and keeps them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::serve::Listener;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{eventually, tls};

/// How a collector handles a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CollectorBehaviour {
    Takes,
    Fails,
    Stalls,
}

/// A received span.
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
    /// The duration in nanoseconds.
    pub(crate) nanos: u64,
}

impl Span {
    pub(crate) fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }
}

#[derive(Debug)]
struct Taken {
    manner: Mutex<CollectorBehaviour>,
    spans: Mutex<Vec<Span>>,
    requests: Mutex<Vec<(HeaderMap, Bytes)>>,
    failed_handshakes: AtomicUsize,
}

impl Taken {
    fn by(manner: CollectorBehaviour) -> Arc<Self> {
        let manner = Mutex::new(manner);
        Arc::new(Self {
            manner,
            spans: Mutex::default(),
            requests: Mutex::default(),
            failed_handshakes: AtomicUsize::default(),
        })
    }
}

/// A listener behind TLS.
struct Encrypted {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    taken: Arc<Taken>,
}

impl Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            match self.acceptor.accept(stream).await {
                Ok(stream) => return (stream, address),
                Err(_broken_off) => self.taken.failed_handshakes.fetch_add(1, Ordering::Relaxed),
            };
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A running collector, which stops when this is dropped.
pub(crate) struct Collector {
    endpoint: String,
    taken: Arc<Taken>,
    _running: DropGuard,
}

impl Collector {
    pub(crate) async fn start(manner: CollectorBehaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        Self::serve(listener, endpoint, Taken::by(manner))
    }

    /// Starts a collector with the server certificate of a directory (`tls::certificates`) that requires a client
    /// certificate.
    pub(crate) async fn start_behind_tls(directory: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap());
        let (taken, acceptor) = (Taken::by(CollectorBehaviour::Takes), TlsAcceptor::from(tls::server(directory)));
        let listener = Encrypted { listener, acceptor, taken: Arc::clone(&taken) };
        Self::serve(listener, endpoint, taken)
    }

    fn serve<L: Listener<Addr: std::fmt::Debug>>(listener: L, endpoint: String, taken: Arc<Taken>) -> Self {
        let routes = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&taken));
        let running = CancellationToken::new();
        let ended = running.clone().cancelled_owned();
        tokio::spawn(async move {
            tokio::select! {
                () = ended => {}
                served = axum::serve(listener, routes) => served.unwrap(),
            }
        });
        Self { endpoint, taken, _running: running.drop_guard() }
    }

    pub(crate) fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    pub(crate) fn behave(&self, manner: CollectorBehaviour) {
        *self.taken.manner.lock() = manner;
    }

    /// Returns how many requests arrived, whatever their result.
    pub(crate) fn asked(&self) -> usize {
        self.taken.requests.lock().len()
    }

    /// Returns how many connections ended before the TLS handshake was complete.
    pub(crate) fn failed_handshakes(&self) -> usize {
        self.taken.failed_handshakes.load(Ordering::Relaxed)
    }

    /// Returns the headers and body of all requests.
    pub(crate) fn requests(&self) -> Vec<(HeaderMap, Bytes)> {
        self.taken.requests.lock().clone()
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.taken.spans.lock().clone()
    }

    /// Waits for a span with this name that matches.
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
        CollectorBehaviour::Fails => (StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
        CollectorBehaviour::Stalls => std::future::pending().await,
        CollectorBehaviour::Takes => {
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
