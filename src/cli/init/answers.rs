//! What `profile-edge init` needs to know: from its arguments, and asked for at a terminal.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::Url;

use crate::cli::tenant_parser::TenantParser;
use crate::domain::{Secret, TenantId};
use crate::tls::is_loopback;

use super::super::first_line;

/// How often a question is asked.
const ATTEMPTS: usize = 3;

/// The arguments of `profile-edge init`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct InitArgs {
    /// The directory to write into; created if it does not exist.
    #[arg(long, value_name = "DIR", default_value = "edge")]
    pub(super) dir: PathBuf,
    /// The id of the tenant: a name of your own for the organisation.
    #[arg(long, aliases = ["organisation", "organization"], value_name = "ID", value_parser = TenantParser)]
    tenant: Option<TenantId>,
    /// The region of the organisation, such as `us_east_1`.
    #[arg(long, conflicts_with = "genesys_url")]
    region: Option<String>,
    /// The URL of a sandbox Genesys, instead of a region.
    #[arg(long, value_name = "URL")]
    genesys_url: Option<Url>,
    /// The id of the OAuth client.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// The file with the secret of the OAuth client; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    client_secret_file: Option<PathBuf>,
    /// The name of a caller; may be repeated [default: architect].
    #[arg(long = "caller", value_name = "NAME")]
    callers: Vec<String>,
    /// The URL at which Genesys and the callers reach the service [default: <http://127.0.0.1:8080>].
    #[arg(long, value_name = "URL")]
    public_url: Option<Url>,
    /// Redis, if entries are to be shared by several processes: `redis://` or `rediss://`.
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
    /// RabbitMQ, if events are to be shared by several processes: `amqp://` or `amqps://`.
    #[arg(long, value_name = "URL")]
    amqp_url: Option<String>,
    /// Do not ask; take the defaults.
    #[arg(long, short)]
    yes: bool,
    /// Overwrite existing files. All secrets are created again.
    #[arg(long)]
    pub(super) force: bool,
}

/// Everything that the files are made of.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) tenant: TenantId,
    pub(super) genesys: Genesys,
    pub(super) client_id: String,
    pub(super) client_secret: Secret,
    pub(super) callers: Vec<String>,
    pub(super) public_url: Url,
    pub(super) redis_url: Option<Secret>,
    pub(super) amqp_url: Option<Secret>,
}

/// Where Genesys is.
#[derive(Debug)]
pub(super) enum Genesys {
    Region(String),
    Url(Url),
}

/// Asks at a terminal, if there is one and it may be used.
#[derive(Clone, Copy)]
struct Terminal {
    may_ask: bool,
}

impl Answers {
    /// Takes the arguments, and asks for what they leave open.
    ///
    /// # Errors
    ///
    /// Something is missing and cannot be asked for, or is malformed.
    pub(super) fn complete(args: InitArgs) -> Result<Self, String> {
        let may_ask = !args.yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        let terminal = Terminal { may_ask };
        let tenant = match args.tenant {
            Some(tenant) => tenant,
            None => terminal.ask("Id of the tenant", Some("10001"), "--tenant", parsed::<TenantId>)?,
        };
        let genesys = match (args.region, args.genesys_url) {
            (_, Some(url)) => Genesys::Url(url),
            (Some(region), None) => Genesys::Region(region),
            (None, None) => {
                terminal.ask("Region, such as us_east_1, or the URL of a sandbox", None, "--region", Genesys::of)?
            }
        };
        let client_id = match args.client_id {
            Some(id) => id,
            None => terminal.ask("Id of the OAuth client", None, "--client-id", parsed::<String>)?,
        };
        let client_secret = match args.client_secret_file {
            Some(file) => read(&file)?,
            None => {
                let question = "File with the secret of the OAuth client";
                terminal.ask(question, None, "--client-secret-file", |file| read(Path::new(file)))?
            }
        };
        let callers = if args.callers.is_empty() {
            let names = |names: &str| Ok(names.split_whitespace().map(str::to_owned).collect());
            terminal.ask("Names of the callers, separated by spaces", Some("architect"), "--caller", names)?
        } else {
            args.callers
        };
        let public_url = match args.public_url {
            Some(url) => url,
            None => {
                let default = Some("http://127.0.0.1:8080");
                terminal.ask("Public URL of the service", default, "--public-url", parsed::<Url>)?
            }
        };
        let (redis_url, amqp_url) = (args.redis_url.map(Secret::new), args.amqp_url.map(Secret::new));
        Ok(Self { tenant, genesys, client_id, client_secret, callers, public_url, redis_url, amqp_url })
    }

    /// Returns whether the public URL is of this machine although Genesys is not.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.genesys, Genesys::Region(_)) && is_loopback(&self.public_url)
    }
}

impl Genesys {
    fn of(answer: &str) -> Result<Self, String> {
        if answer.contains("://") { parsed(answer).map(Self::Url) } else { Ok(Self::Region(answer.to_owned())) }
    }
}

impl Terminal {
    /// Asks, and again after a wrong answer, up to [`ATTEMPTS`] times; an empty answer is the default.
    fn ask<T>(
        self,
        question: &str,
        default: Option<&str>,
        flag: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, String> {
        let missing = || format!("{flag} is missing: {question}");
        if !self.may_ask {
            return read(default.ok_or_else(missing)?);
        }
        let shown = default.map(|default| format!(" [{default}]")).unwrap_or_default();
        let mut attempts = 1;
        loop {
            let _ = write!(std::io::stderr().lock(), "{question}{shown}: ");
            let answer = first_line().map_err(|error| format!("standard input cannot be read: {error}"))?;
            let given = Some(answer.trim()).filter(|answer| !answer.is_empty()).or(default);
            match given.ok_or_else(missing).and_then(&read) {
                Err(problem) if attempts < ATTEMPTS => super::complain(&problem),
                outcome => return outcome,
            }
            attempts += 1;
        }
    }
}

fn parsed<T: FromStr<Err: Display>>(answer: &str) -> Result<T, String> {
    answer.parse().map_err(|error| format!("{answer}: {error}"))
}

fn read(file: &Path) -> Result<Secret, String> {
    let text = if file.as_os_str() == "-" { first_line() } else { std::fs::read_to_string(file) };
    let text = text.map_err(|error| format!("--client-secret-file {}: {error}", file.display()))?;
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err(format!("--client-secret-file {} is empty", file.display())),
        secret => Ok(Secret::new(secret)),
    }
}
