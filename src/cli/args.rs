//! The arguments of the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};
use clap_complete::Shell;
use url::Url;

use crate::audit::chain::RecordHash;
use crate::domain::TenantId;
use crate::logging::{self, Format, LogLevel};

use super::init::InitArgs;
use super::listener::{ConfigArgs, ServiceArgs, TlsArgs};
use super::tenant_parser::TenantParser;

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
    /// Runs the service (the default). Without a configuration, runs a demo that needs nothing installed.
    Run(RunArgs),
    /// Runs only the sandbox, which simulates Genesys.
    Sandbox(SandboxArgs),
    /// Checks the configuration and prints every setting with its origin; secrets are redacted.
    CheckConfig {
        #[command(flatten)]
        config: ConfigArgs,
        /// One JSON object on a line.
        #[arg(long)]
        json: bool,
    },
    /// Reads a key from standard input and prints the value for `key_sha256`.
    HashKey,
    /// Exits 0 when the local service is ready, 69 when it is not.
    Healthcheck {
        #[command(flatten)]
        config: ConfigArgs,
        /// The URL of the admin listener; the configured one by default.
        #[arg(long, value_name = "URL")]
        admin: Option<String>,
        #[command(flatten)]
        tls: TlsArgs,
        /// Also require that no dependency is down, Genesys included.
        #[arg(long)]
        deep: bool,
    },
    /// Checks the configuration, this machine, Redis, RabbitMQ, Genesys and the running service; advises what to do.
    /// Exits 0 if all is in order, 1 with warnings, 2 with failures. Changes nothing, except that it posts one test event.
    Doctor(DoctorArgs),
    /// Writes a configuration, its secrets and the files to import into Genesys, and checks what they depend on. Asks at a
    /// terminal for what the arguments leave open.
    Init(InitArgs),
    /// Prints the OpenAPI 3.1 document.
    Openapi,
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Prints the manual page, in the format of roff.
    Man,
    /// Shows the state of one customer's cache entry, never its contents.
    Inspect(TargetArgs),
    /// Removes one customer from the cache, by publishing an event as if Genesys had sent it.
    Invalidate {
        #[command(flatten)]
        target: TargetArgs,
        /// Also remove the mark of a deleted customer (tombstone).
        #[arg(long)]
        force: bool,
    },
    /// Marks everything that is stored of a tenant as due for refresh; it is served meanwhile.
    Clear {
        #[command(flatten)]
        service: ServiceArgs,
        /// The id of the tenant.
        #[arg(long, value_parser = TenantParser)]
        tenant: TenantId,
        /// Mark it as missing instead: every customer is fetched at its next lookup.
        #[arg(long)]
        hard: bool,
    },
    /// Checks the audit records of who saw what.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Lists events that could not be applied; puts them back into the queue or removes them.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Shows or hands on the events that RabbitMQ has not confirmed.
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Applies events of the journal again, or the changes that Genesys has audited.
    Replay(ReplayArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// Shows how many events wait, and since when.
    Status {
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Hands the events on without the rate limit; exits 0 when none is left, 69 when the time is over.
    Drain {
        /// How long to wait, from 1s to 10m.
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = drain_time)]
        timeout: Duration,
        #[command(flatten)]
        service: ServiceArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// Lists the oldest dead letters.
    List {
        #[command(flatten)]
        service: ServiceArgs,
        /// The maximum number of dead letters, up to 1000.
        #[arg(long, default_value_t = 100, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000))]
        limit: usize,
    },
    /// Shows one dead letter and its event, if it holds one.
    Show {
        /// The id, as printed by `list`.
        id: String,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Puts events back into the queue, to be applied again; dead letters that hold no event are kept.
    Redrive {
        /// The ids, as printed by `list`; or use --all.
        #[arg(value_name = "ID", conflicts_with = "all")]
        ids: Vec<String>,
        /// All dead letters.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Removes dead letters permanently; asks for confirmation at a terminal.
    Purge {
        /// The ids, as printed by `list`; all dead letters by default.
        #[arg(value_name = "ID")]
        ids: Vec<String>,
        /// Do not ask for confirmation; needed without a terminal.
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        service: ServiceArgs,
    },
}

impl DeadLettersCommand {
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
    /// Replay events received since then: a duration ago (2h), or a time (RFC 3339, 2026-03-04T05:12:47Z).
    #[arg(long, value_name = "TIME")]
    pub(super) since: String,
    /// Replay events received before then; now by default.
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
    /// Replay events of this tenant only.
    #[arg(long, value_parser = TenantParser)]
    pub(super) tenant: Option<TenantId>,
    /// The maximum number of events per second, up to 100000 [default: 1000].
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<u32>,
    /// Only report what would be replayed.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Replay the changes of contacts that Genesys has audited in the last 14 days, whether or not their events arrived; TIME is that of
    /// the change. The OAuth client needs the permission audits:audit:view.
    #[arg(long)]
    pub(super) from_genesys: bool,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    /// Check this tenant only.
    #[arg(long, value_parser = TenantParser)]
    pub(super) tenant: Option<TenantId>,
    /// The URL of the public listener, as senders of events use it; the configured one by default.
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<Url>,
    /// The key of a caller, for a test lookup.
    #[arg(long, value_name = "KEY", env = "PROFILE_EDGE_CALLER_KEY", hide_env_values = true)]
    pub(super) caller_key: Option<String>,
    /// The URL of RabbitMQ's management API; by default `queue.amqp.management_url`, or port 15672 of the broker (15671 with TLS).
    #[arg(long, value_name = "URL")]
    pub(super) rabbitmq_api: Option<Url>,
    /// Do not check the running service, only what it depends on.
    #[arg(long)]
    pub(super) without_service: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Checks that no record was changed, removed or moved; otherwise exits 1 and names the first bad line.
    Verify {
        /// The files, oldest first: audit.jsonl.* audit.jsonl.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The hash of a record that must exist, as written to the log; detects records that were cut off at the end.
        #[arg(long, value_name = "HASH")]
        expect_head: Option<RecordHash>,
        // The file that holds audit.key.
        #[command(flatten)]
        config: ConfigArgs,
        /// One JSON object on a line.
        #[arg(long)]
        json: bool,
    },
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
    /// The id of the tenant.
    #[arg(long, value_parser = TenantParser)]
    pub(super) tenant: TenantId,
    /// The id of the customer; `-` reads it from standard input, which keeps it out of the history of the shell.
    #[arg(long, allow_hyphen_values = true)]
    pub(super) customer: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct SandboxArgs {
    /// The address to listen on.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8082", value_parser = socket_addr)]
    pub(super) listen: SocketAddr,
    /// The number of simulated customers.
    #[arg(long, default_value_t = 1000)]
    pub(super) customers: u32,
    /// The latency of every answer.
    #[arg(long, default_value = "150ms")]
    pub(super) latency: humantime::Duration,
    /// The webhook that receives the events; needs --webhook-key.
    #[arg(long, value_name = "URL")]
    pub(super) webhook_url: Option<Url>,
    /// The secret to send to the webhook as `X-API-Key`.
    #[arg(long, value_name = "KEY", env = "PROFILE_EDGE_WEBHOOK_KEY", hide_env_values = true)]
    pub(super) webhook_key: Option<String>,
}

impl SandboxArgs {
    pub(super) const fn log(&self) -> logging::Config {
        logging::Config { level: LogLevel::Info, format: Format::Auto, slow_lookup: Duration::ZERO }
    }
}

fn drain_time(text: &str) -> Result<Duration, &'static str> {
    let allowed = Duration::from_secs(1)..=Duration::from_secs(600);
    humantime::parse_duration(text).ok().filter(|time| allowed.contains(time)).ok_or("must be from 1s to 10m")
}

fn socket_addr(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, such as 127.0.0.1:8082; a host name cannot be used here")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::UNPREFIXED;

    fn variables(command: &clap::Command, found: &mut Vec<String>) {
        let named = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
        found.extend(named.map(str::to_owned));
        for below in command.get_subcommands() {
            variables(below, found);
        }
    }

    #[test]
    fn variables_of_the_command_line_are_not_taken_for_mistyped_options() {
        let mut found = Vec::new();
        variables(&Args::command(), &mut found);
        assert!(found.len() > 2 && found.iter().all(|name| UNPREFIXED.contains(&name.as_str())), "{found:?}");
    }
}
