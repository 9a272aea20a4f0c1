//! What can be asked for on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use url::Url;

use crate::audit::chain::RecordHash;
use crate::logging::{self, Format, Level};

/// Edge cache for Genesys Cloud customer profiles with event-driven invalidation.
#[derive(Debug, Parser)]
#[command(name = "profile-edge", version, args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs the service (the default); with no configuration, a demo that needs nothing installed.
    Run(RunArgs),
    /// Runs a stand-alone sandbox Genesys.
    Sandbox(SandboxArgs),
    /// Validates the configuration and prints it, secrets redacted, each value with where it came from.
    CheckConfig {
        #[command(flatten)]
        config: ConfigArgs,
        /// One JSON object on a line.
        #[arg(long)]
        json: bool,
    },
    /// Reads a caller key on standard input and prints the value for `key_sha256`.
    HashKey,
    /// Exits 0 when the local service is ready, 69 when it is not.
    Healthcheck {
        #[command(flatten)]
        config: ConfigArgs,
        /// The admin listener; by default the configured one.
        #[arg(long, value_name = "URL")]
        admin: Option<String>,
        #[command(flatten)]
        tls: TlsArgs,
    },
    /// Prints the OpenAPI 3.1 document.
    Openapi,
    /// Tells the state of one customer's key, never its contents.
    Inspect(TargetArgs),
    /// Publishes an event about a customer, as if Genesys had sent it.
    Invalidate {
        #[command(flatten)]
        target: TargetArgs,
        /// Remove a tombstone too.
        #[arg(long)]
        force: bool,
    },
    /// Checks the record of who saw what.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Tells what could not be applied, and why; puts it back, or removes it.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Applies events of the journal once more.
    Replay(ReplayArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum DeadLetters {
    /// Lists the oldest.
    List {
        #[command(flatten)]
        service: ServiceArgs,
        /// How many at most, up to 1000.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Shows one, with its event where there is one.
    Show {
        /// Its id, as `list` tells it.
        id: String,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Puts events back into the queue, to be applied once more; what holds no event stays.
    Redrive {
        /// Which, as `list` tells them.
        #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// All that are there.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Removes dead letters for good; asks first at a terminal.
    Purge {
        /// Which, as `list` tells them; by default all.
        #[arg(value_name = "ID")]
        ids: Vec<String>,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        service: ServiceArgs,
    },
}

impl DeadLetters {
    pub(super) const fn service(&self) -> &ServiceArgs {
        let (Self::List { service, .. }
        | Self::Show { service, .. }
        | Self::Redrive { service, .. }
        | Self::Purge { service, .. }) = self;
        service
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ReplayArgs {
    /// From which time of receipt on: how long ago, as 2h, or as in RFC 3339, as 2026-03-04T05:12:47Z.
    #[arg(long, value_name = "TIME")]
    pub(super) since: String,
    /// Up to which, that one left out; by default now.
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
    /// Of one tenant only.
    #[arg(long)]
    pub(super) tenant: Option<String>,
    /// How many events a second at most, up to 100000 [default: 1000].
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<u32>,
    /// Only tell what would be replayed.
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Checks that no record was changed, removed or moved; exits 1 and names the first line that is not in order.
    Verify {
        /// The files, oldest first: audit.jsonl.* audit.jsonl.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The hash of a record that must be there, as the log told it: finds what was cut off at the end.
        #[arg(long, value_name = "HASH")]
        expect_head: Option<RecordHash>,
        /// Where audit.key is configured.
        #[command(flatten)]
        config: ConfigArgs,
        /// One JSON object on a line.
        #[arg(long)]
        json: bool,
    },
}

/// The running service that a command is for.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ServiceArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// The admin listener; by default the configured one.
    #[arg(long, value_name = "URL")]
    pub(super) admin: Option<String>,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// One JSON object on a line.
    #[arg(long)]
    pub(super) json: bool,
}

/// How to speak to an admin listener that speaks TLS.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct TlsArgs {
    /// Who must have signed the admin listener's certificate (PEM); by default this machine's authorities, and for the
    /// configured listener its own certificate.
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// The certificate (PEM) to show, where the listener asks for one.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(super) cert: Option<PathBuf>,
    /// The key (PEM) of --cert.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(super) key: Option<PathBuf>,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ConfigArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "PROFILE_EDGE_CONFIG")]
    pub(super) config: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// The flows to run, separated by commas: ingest, consumer, lookup.
    #[arg(long, value_name = "ROLES")]
    pub(super) role: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct TargetArgs {
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    /// The tenant.
    #[arg(long)]
    pub(super) tenant: String,
    /// The customer; `-` reads the id from standard input, so that it stays out of the shell's history.
    #[arg(long, allow_hyphen_values = true)]
    pub(super) customer: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct SandboxArgs {
    /// Where it listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8082")]
    pub(super) listen: SocketAddr,
    /// How many invented customers it starts with.
    #[arg(long, default_value_t = 1000)]
    pub(super) customers: u32,
    /// How long each of its answers takes.
    #[arg(long, default_value = "150ms")]
    pub(super) latency: humantime::Duration,
    /// Where it posts its events; needs --webhook-key.
    #[arg(long, value_name = "URL")]
    pub(super) webhook_url: Option<Url>,
    /// What it presents there as `X-API-Key`.
    #[arg(long, value_name = "KEY", env = "PROFILE_EDGE_WEBHOOK_KEY", hide_env_values = true)]
    pub(super) webhook_key: Option<String>,
}

impl SandboxArgs {
    pub(super) const fn log(&self) -> logging::Config {
        logging::Config { level: Level::Info, format: Format::Auto }
    }
}
