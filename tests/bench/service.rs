//! The service under load: the real binary in its own process, for one tenant. Its Genesys is a sandbox in another
//! process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use tempfile::TempDir;

use crate::load::{Connection, get};
use crate::support::edge::{DEMO_KEY_SHA256, on_rabbit};
use crate::support::process::{Process, configuration, free_port};
use crate::support::{customer, eventually};

/// The secret for signing events.
pub(crate) const SECRET: &str = "bench-secret-of-26-letters";

/// The source of events that are signed with it.
const WEBHOOK: &str = "[[tenant.webhook]]\nscheme = \"hub-signature\"\nsecrets = [\"bench-secret-of-26-letters\"]\n";

/// The number of customers of the sandbox.
pub(crate) const CUSTOMERS: u32 = 1_000;

/// Returns the request for a customer by its number.
pub(crate) fn look_up(n: u32) -> Vec<u8> {
    get(&format!("/api/v1/profile?tenantId=10001&customerId={}", customer(n)))
}

/// Builds the service like the image, in the `dist` profile; returns the binary. The one that `cargo bench` has built contains
/// the faults for tests.
fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--profile", "dist", "--locked", "--quiet", "--bin", "profile-edge"];
    let built = std::process::Command::new(cargo).args(arguments).status().expect("cargo runs");
    assert!(built.success(), "the service is built");
    let target =
        Path::new(env!("CARGO_BIN_EXE_profile-edge")).ancestors().nth(2).expect("the directory of the profiles");
    target.join("dist/profile-edge")
}

/// Starts that binary, which is built once.
fn start(directory: &Path, arguments: &[&str]) -> Process {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(build);
    Process::start_program(&PROGRAM, directory, arguments, &[], Stdio::null(), |_| true)
}

/// The differences between the services.
pub(crate) struct Extras<'a> {
    /// The fields that its caller may read.
    pub(crate) fields: &'a str,
    /// What its caller may look customers up by.
    pub(crate) lookup_by: &'a str,
    /// Additional options of `[http]`.
    pub(crate) http: &'a str,
    /// Additional tables of its configuration.
    pub(crate) tables: &'a str,
    /// The sources of its events: tables of its tenant.
    pub(crate) sources: &'a str,
    /// The number of customers of its Genesys.
    pub(crate) customers: u32,
}

/// No data protection.
pub(crate) const PLAIN: Extras<'static> = Extras {
    fields: "[\"*\"]",
    lookup_by: "[\"customerId\"]",
    http: "",
    tables: "[audit]\nsink = \"none\"\n",
    sources: WEBHOOK,
    customers: CUSTOMERS,
};

/// A running service.
pub(crate) struct Service {
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) genesys: SocketAddr,
    process: Process,
    _sandbox: Process,
    _directory: TempDir,
}

impl Service {
    /// Starts a service on this Redis, and on this RabbitMQ if it must accept events.
    pub(crate) async fn start(redis: &str, rabbit: Option<&str>) -> Self {
        Self::start_with(redis, rabbit, &PLAIN).await
    }

    /// Like [`start`](Self::start), with these extras.
    pub(crate) async fn start_with(redis: &str, rabbit: Option<&str>, extras: &Extras<'_>) -> Self {
        let store = format!("[store]\nkind = \"redis\"\n[store.redis]\nurl = \"{redis}\"\n");
        Self::start_on(&store, rabbit, extras).await
    }

    /// Starts a service with these tables for its store.
    pub(crate) async fn start_on(store: &str, rabbit: Option<&str>, extras: &Extras<'_>) -> Self {
        let directory = tempfile::tempdir().expect("a directory can be created");
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (public, admin, genesys) = (local(free_port()), local(free_port()), local(free_port()));
        let Extras { fields, lookup_by, http, tables, sources, customers } = extras;
        let sandbox = ["sandbox", "--listen", &genesys.to_string(), "--customers", &customers.to_string()];
        let sandbox = start(directory.path(), &[&sandbox[..], &["--latency", "0ms"]].concat());
        let roles = if rabbit.is_some() { "[\"ingest\", \"consumer\", \"lookup\"]" } else { "[\"lookup\"]" };
        let text = format!(
            "roles = {roles}\n[http]\nlisten = \"{public}\"\n{http}[admin]\nlisten = \"{admin}\"\n\
             [lookup]\nttl = \"1h\"\nidentifier_ttl = \"1h\"\n{store}{}{tables}\
             [[tenant]]\nid = \"10001\"\n[tenant.upstream]\napi_url = \"http://{genesys}\"\n\
             login_url = \"http://{genesys}\"\nclient_id = \"sandbox\"\nclient_secret = \"sandbox\"\n\
             requests_per_minute = 60000\n{sources}\
             [[caller]]\nname = \"bench\"\nkey_sha256 = \"{DEMO_KEY_SHA256}\"\ntenants = [\"10001\"]\nfields = {fields}\n\
             lookup_by = {lookup_by}\n",
            rabbit.map(on_rabbit).unwrap_or_default()
        );
        let file = configuration(directory.path(), &text).display().to_string();
        let process = start(directory.path(), &["run", "--config", &file]);
        eventually("the service is ready and its sandbox listens", || async {
            for addr in [admin, genesys] {
                tokio::net::TcpStream::connect(addr).await.ok()?;
            }
            let (status, _) = Connection::open(admin).await.ask(&get("/readyz")).await;
            (status == 200).then_some(())
        })
        .await;
        Self { public, admin, genesys, process, _sandbox: sandbox, _directory: directory }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sets the latency of its Genesys.
    pub(crate) async fn behave(&self, latency: Duration) {
        let body = format!("{{\"latency\":\"{}ms\"}}", latency.as_millis());
        let head = "POST /sandbox/behaviour HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sandbox-editor\r\n\
                    Content-Type: application/json\r\n";
        let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        Connection::open(self.genesys).await.exchange(request.as_bytes()).await;
    }

    /// Stops it with a drain.
    pub(crate) async fn stop(mut self) {
        self.process.signal("TERM");
        assert_eq!(self.process.ended().await, Some(0), "{}", self.process.log());
    }
}
