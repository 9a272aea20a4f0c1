//! `profile-edge run`: starts, prints how to try the demo, waits for a signal, drains. SIGHUP reloads the configuration.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::app::{self, App};
use crate::config::{Config, LoadErrors};
use crate::faults::Faults;
use crate::logging::{self, Format};
use crate::queue;
use crate::shutdown::stop_signal;
use crate::telemetry::Telemetry;

use super::Exit;

/// How long a stand-alone sandbox may take to finish work in progress.
pub(super) const SANDBOX_DEADLINE: Duration = Duration::from_secs(5);

/// The customer in the commands of the demo.
const CUSTOMER: &str = "00000000-0000-4000-8000-000000000001";

/// Runs the service until a signal stops it; `again` reads its configuration again.
pub(super) async fn run<F>(config: Config, warnings: Vec<String>, again: F) -> Exit
where
    F: Fn() -> Result<Config, LoadErrors> + Clone + Send + 'static,
{
    let telemetry = match Telemetry::open(&config.telemetry).map_err(|error| error.within("telemetry")) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            logging::init(&config.log);
            tracing::error!(%error, "cannot start");
            return Exit::Usage;
        }
    };
    logging::init_with(&config.log, telemetry.as_ref().map(Telemetry::layer));
    // The demo is not meant to be secure.
    let of_settings = if config.is_demo { Vec::new() } else { config.warnings() };
    for warning in warnings.iter().chain(&of_settings) {
        tracing::warn!("{warning}");
    }
    // From here on SIGHUP does not end the process. One that arrives during the start is handled after it.
    let hangups = signal(SignalKind::hangup());
    let show_demo = config.is_demo && config.roles.lookup && config.log.format != Format::Json;
    let deadline = config.shutdown.deadline;
    let stop_within = config.shutdown.delay() + deadline;
    // Created here, so that a signal during the start ends the process cleanly too.
    let mut asked = std::pin::pin!(stop_signal());
    let started = tokio::select! {
        biased;
        () = &mut asked => {
            tracing::info!("a stop signal arrived during the start");
            return Exit::Ok;
        }
        started = App::start(config, Faults::from_env()) => started,
    };
    let app = match started {
        Ok(app) => app,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return exit_of(&error);
        }
    };
    if let Some(telemetry) = &telemetry {
        telemetry.count_in(std::sync::Arc::clone(&app.metrics));
    }
    if show_demo {
        logging::print(&how_to_try(&app));
    }
    tokio::select! {
        () = &mut asked => {}
        () = reload_on(hangups, &app, again) => {}
    }
    let until = Instant::now() + stop_within;
    let stopped = async {
        let finished = app.stop().await;
        if let Some(telemetry) = telemetry {
            telemetry.close(until).await;
        }
        finished
    };
    tokio::select! {
        finished = stopped => {
            if !finished {
                tracing::error!(?deadline, "the drain did not finish before its deadline");
                return Exit::Internal;
            }
            Exit::Ok
        }
        () = stop_signal() => {
            tracing::error!("a second stop signal arrived, ending at once");
            Exit::Internal
        }
    }
}

/// Reloads the configuration on each signal; never returns.
async fn reload_on<F>(hangups: std::io::Result<Signal>, app: &App, again: F)
where
    F: Fn() -> Result<Config, LoadErrors> + Clone + Send + 'static,
{
    let Ok(mut hangups) = hangups else {
        tracing::error!("cannot listen for SIGHUP, the configuration is never reloaded");
        return std::future::pending().await;
    };
    loop {
        // The stream of a signal has no end.
        let _ = hangups.recv().await;
        app.reload(again.clone()).await;
    }
}

fn exit_of(error: &app::Error) -> Exit {
    match error {
        app::Error::Queue(queue::Error::Misconfigured { .. }) => Exit::Usage,
        app::Error::Bind(_)
        | app::Error::Audit(_)
        | app::Error::Queue(_)
        | app::Error::Store(_)
        | app::Error::NoAnswer { .. } => Exit::Unavailable,
        app::Error::Setting(_) | app::Error::Caller(_) | app::Error::TokenSecret(_) => Exit::Usage,
    }
}

/// Returns the addresses of the demo, and four commands that show what it does.
fn how_to_try(app: &App) -> String {
    let App { public, admin, .. } = app;
    let Some(sandbox) = app.sandbox else { return String::new() };
    let look_up = format!(
        "curl -sSi -w '\\n' -H 'X-API-Key: demo-key' 'http://{public}/api/v1/profile?tenantId=10001&customerId={CUSTOMER}'"
    );
    format!(
        "\n\
         profile-edge is ready: lookups and webhooks on {public}, operators on {admin}, sandbox Genesys on {sandbox}\n\
         \n\
         # a miss, fetched from the sandbox and stored (see Cache-Status)\n\
         {look_up}\n\
         # a hit\n\
         {look_up}\n\
         # a change at Genesys, whose event evicts exactly this customer\n\
         curl -sS -w '\\n' -X PATCH -H 'Authorization: Bearer sandbox-editor' -H 'Content-Type: application/json' \
         -d '{{\"firstName\":\"Grace\"}}' http://{sandbox}/api/v2/externalcontacts/contacts/{CUSTOMER}\n\
         # the changed profile\n\
         {look_up}\n\
         \n"
    )
}
