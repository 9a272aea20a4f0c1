//! The command line: parses the arguments, loads the configuration, runs the command.
//!
//! Exit codes: 0 success, also after a clean drain; 1 a check failed, or the doctor warns; 2 the doctor found a failure; 64 configuration or usage error; 69 a dependency is
//! unavailable; 70 internal error, also a drain that did not finish before its deadline; 130 an interrupted replay.

mod args;
mod audit;
mod clear;
mod dead_letters;
mod doctor;
mod init;
mod listener;
mod outbox;
mod replay;
mod run;
mod tenant_parser;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::clock::SystemClock;
use crate::config::{self, LoadErrors, Loaded};
use crate::domain::{CustomerId, Secret};
use crate::http::routes::openapi;
use crate::logging;
use crate::operate::client;
use crate::sandbox::{Sandbox, SandboxOptions, Webhook};
use crate::shutdown::{Shutdown, stop_signal};

use args::{Args, AuditCommand, Command, SandboxArgs, TargetArgs};
use listener::{ConfigArgs, client_of};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Success.
    Ok,
    /// What was checked is not in order.
    NotInOrder,
    /// What was checked does not work.
    NotWorking,
    /// The configuration or the command line is wrong.
    Usage,
    /// A dependency does not answer.
    Unavailable,
    /// An internal error.
    Internal,
    /// The user interrupted it.
    Interrupted,
}

impl From<Exit> for ExitCode {
    /// The numbers are those of `sysexits.h`.
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::NotInOrder => 1,
            Exit::NotWorking => 2,
            Exit::Usage => 64,
            Exit::Unavailable => 69,
            Exit::Internal => 70,
            // The code of a shell for SIGINT.
            Exit::Interrupted => 130,
        })
    }
}

/// Runs the command that the process was started with.
///
/// The end waits for no thread that may be blocked in the system, such as the lookup of a host name.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are errors for clap, but not for the user.
            let is_mistake = error.use_stderr();
            let _ = error.print();
            return if is_mistake { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start threads: {error}"));
            return Exit::Internal.into();
        }
    };
    let exit = runtime.block_on(command(args));
    runtime.shutdown_background();
    logging::flush();
    exit.into()
}

async fn command(args: Args) -> Exit {
    match args.command.unwrap_or(Command::Run(args.run)) {
        Command::Run(run) => match load(&run.config, run.role.as_deref()) {
            Ok(loaded) => {
                let again = move || read(&run.config, run.role.as_deref()).map(|loaded| loaded.config);
                run::run(loaded.config, loaded.warnings, again).await
            }
            Err(exit) => exit,
        },
        Command::Sandbox(sandbox) => run_sandbox(sandbox).await,
        Command::CheckConfig { config, json } => match load(&config, None) {
            Ok(Loaded { config, report, warnings }) => {
                for warning in warnings.iter().chain(&config.warnings()) {
                    complain(&format!("warning: {warning}"));
                }
                print(&if json { report.json_lines() } else { report.text() })
            }
            Err(exit) => exit,
        },
        Command::HashKey => hash_key(),
        Command::Healthcheck { config, admin, tls, deep } => match listener::probe_of(&config, admin, tls, deep) {
            Ok(client) => finish(client.ready(deep).await.map(|()| String::new())),
            Err(exit) => exit,
        },
        Command::Doctor(args) => doctor::run(args).await,
        Command::Init(args) => init::run(args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "profile-edge", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Man => {
            let mut page = Vec::new();
            // Writing to a vector does not fail.
            let _ = clap_mangen::Man::new(Args::command()).render(&mut page);
            print(&String::from_utf8_lossy(&page))
        }
        Command::Openapi => print(&format!("{}\n", openapi::document())),
        Command::Inspect(target) => operate(target, None).await,
        Command::Invalidate { target, force } => operate(target, Some(force)).await,
        Command::Clear { service, tenant, hard } => clear::run(service, tenant.as_str(), hard).await,
        Command::Audit(AuditCommand::Verify { files, expect_head, config, json }) => match load(&config, None) {
            Ok(loaded) => audit::verify(&files, loaded.config.audit.hasher(), expect_head, json),
            Err(exit) => exit,
        },
        Command::DeadLetters(command) => dead_letters::run(command).await,
        Command::Outbox(command) => outbox::run(command).await,
        Command::Replay(args) => replay::run(args).await,
    }
}

fn load(args: &ConfigArgs, roles: Option<&str>) -> Result<Loaded, Exit> {
    read(args, roles).map_err(|errors| {
        for problem in &errors.0 {
            complain(&format!("configuration: {problem}"));
        }
        Exit::Usage
    })
}

fn read(args: &ConfigArgs, roles: Option<&str>) -> Result<Loaded, LoadErrors> {
    // A variable that is not valid UTF-8 is not one of ours.
    let env =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    config::load(args.file(), env, roles)
}

fn hash_key() -> Exit {
    let mut key = Vec::new();
    if let Err(error) = std::io::stdin().take(64 * 1024).read_to_end(&mut key) {
        complain(&format!("standard input cannot be read: {error}"));
        return Exit::Usage;
    }
    let key = key.strip_suffix(b"\n").unwrap_or(&key);
    let key = key.strip_suffix(b"\r").unwrap_or(key);
    if key.is_empty() {
        complain("standard input is empty: expected a key");
        return Exit::Usage;
    }
    if key.len() < 16 {
        complain("warning: the key has fewer than 16 bytes, so it can be guessed: choose a longer, random one");
    }
    print(&format!("{}\n", hex::encode(Sha256::digest(key))))
}

/// Runs a command about one customer.
async fn operate(target: TargetArgs, invalidate: Option<bool>) -> Exit {
    let customer = match target.customer.as_str() {
        "-" => match first_line() {
            Ok(customer) => customer,
            Err(error) => {
                complain(&format!("standard input cannot be read: {error}"));
                return Exit::Usage;
            }
        },
        customer => customer.to_owned(),
    };
    if let Err(error) = customer.parse::<CustomerId>() {
        complain(&format!("--customer: {error}"));
        return Exit::Usage;
    }
    let TargetArgs { service, tenant, .. } = target;
    let form = if service.json { json_line } else { client::lines };
    let client = match client_of(service) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let answer = match invalidate {
        None => client.inspect(tenant.as_str(), &customer).await,
        Some(force) => client.invalidate(tenant.as_str(), &customer, force).await,
    };
    finish(answer.map(|answer| form(&answer)))
}

fn json_line(value: &Value) -> String {
    format!("{value}\n")
}

fn first_line() -> std::io::Result<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

async fn run_sandbox(args: SandboxArgs) -> Exit {
    logging::init(&args.log());
    let webhook = match (args.webhook_url, args.webhook_key) {
        (Some(url), Some(key)) => Some(Webhook { url, key: Secret::new(key) }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            complain("--webhook-url and --webhook-key need each other");
            return Exit::Usage;
        }
    };
    let (controller, shutdown) = Shutdown::new();
    let listen: SocketAddr = args.listen;
    let options =
        SandboxOptions { listen: listen.into(), customers: args.customers, latency: args.latency.into(), webhook };
    match Sandbox::start(options, SystemClock::shared(), shutdown).await {
        Ok(sandbox) => {
            if !listen.ip().is_loopback() {
                tracing::warn!(%listen, "the sandbox is not on loopback: everybody who can reach it knows its credentials");
            }
            tracing::info!(listen = %sandbox.addr, "the sandbox is ready");
        }
        Err(error) => {
            complain(&format!("cannot listen on {listen} (--listen): {error}"));
            return Exit::Unavailable;
        }
    }
    stop_signal().await;
    controller.drain(run::SANDBOX_DEADLINE).await;
    Exit::Ok
}

fn finish(answer: Result<String, client::Error>) -> Exit {
    match answer {
        Ok(text) => print(&text),
        Err(error) => {
            complain(&error.to_string());
            exit_of(&error)
        }
    }
}

const fn exit_of(error: &client::Error) -> Exit {
    match error {
        client::Error::Url | client::Error::PlainKey | client::Error::Tls { .. } | client::Error::Refused { .. } => {
            Exit::Usage
        }
        client::Error::Unavailable { .. } => Exit::Unavailable,
    }
}

/// Prints a result to standard output; a closed pipe is not an error.
fn print(text: &str) -> Exit {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Exit::Ok
}

/// Prints a message to standard error.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "profile-edge: {text}");
}
