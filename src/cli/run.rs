//! `profile-edge run`: start, say how to try it, wait for a signal, drain. On SIGHUP, read the configuration again.

use std::io::Write;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use crate::app::{self, App};
use crate::config::{Config, Errors, Problem};
use crate::faults::Faults;
use crate::logging::{self, Format};
use crate::queue;
use crate::shutdown::asked_to_stop;
use crate::telemetry::Telemetry;

use super::Exit;

/// How long a stand-alone sandbox may take to finish what is under way.
pub(super) const SANDBOX_DEADLINE: Duration = Duration::from_secs(5);

/// The customer of the demo's lines.
const CUSTOMER: &str = "00000000-0000-4000-8000-000000000001";

/// How long reading the configuration again may take.
const RELOAD_DEADLINE: Duration = Duration::from_secs(10);

/// Runs the service until a signal asks it to stop; `again` reads its configuration again.
pub(super) async fn run<F>(config: Config, again: F) -> Exit
where
    F: Fn() -> Result<Config, Errors> + Clone + Send + 'static,
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
    // The demo is to be looked at, not to be kept.
    for warning in config.warnings().iter().filter(|_| !config.is_demo) {
        tracing::warn!("{warning}");
    }
    // From here on the signal does not end the process; one that comes before it is ready waits until it is.
    let hangups = signal(SignalKind::hangup());
    let show_demo = config.is_demo && config.roles.lookup && config.log.format != Format::Json;
    let (deadline, limit) = (config.shutdown.deadline, config.startup_timeout);
    // Listened for from here on, so that a signal during the start ends it in good order too.
    let mut asked = std::pin::pin!(asked_to_stop());
    let started = tokio::select! {
        biased;
        () = &mut asked => {
            tracing::info!("asked to stop while starting");
            return Exit::Ok;
        }
        started = timeout(limit, App::start(config, Faults::from_env())) => started,
    };
    let app = match started {
        Ok(Ok(app)) => app,
        Ok(Err(error)) => {
            tracing::error!(%error, "cannot start");
            return exit_of(&error);
        }
        Err(_elapsed) => {
            tracing::error!(startup_timeout = ?limit, "cannot start: a dependency did not answer in time");
            return Exit::Unavailable;
        }
    };
    if let Some(telemetry) = &telemetry {
        telemetry.count_in(std::sync::Arc::clone(&app.metrics));
    }
    if show_demo {
        // Nobody is there to read it if standard error is closed; that is no reason to stop.
        let _ = std::io::stderr().lock().write_all(how_to_try(&app).as_bytes());
    }
    tokio::select! {
        () = &mut asked => {}
        () = reload_on(hangups, &app, again) => {}
    }
    let until = Instant::now() + deadline;
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
                tracing::error!(?deadline, "the drain met its deadline");
                return Exit::Internal;
            }
            Exit::Ok
        }
        () = asked_to_stop() => {
            tracing::error!("asked to stop a second time, ending at once");
            Exit::Internal
        }
    }
}

/// Has the application take on its configuration anew at each signal; never returns.
async fn reload_on<F>(hangups: std::io::Result<Signal>, app: &App, again: F)
where
    F: Fn() -> Result<Config, Errors> + Clone + Send + 'static,
{
    let Ok(mut hangups) = hangups else {
        tracing::error!("sighup cannot be listened for, the configuration is never read again");
        return std::future::pending().await;
    };
    loop {
        // A signal handler's stream has no end.
        let _ = hangups.recv().await;
        let late = || Err(Errors(vec![Problem::new("", "could not be read in time")]));
        let read = timeout(RELOAD_DEADLINE, spawn_blocking(again.clone())).await;
        app.reload(read.map_or_else(|_elapsed| late(), |read| read.unwrap_or_else(|_panicked| late())));
    }
}

fn exit_of(error: &app::Error) -> Exit {
    match error {
        app::Error::Queue(queue::Error::Misconfigured { .. }) => Exit::Usage,
        app::Error::Bind(_) | app::Error::Audit(_) | app::Error::Queue(_) | app::Error::Store(_) => Exit::Unavailable,
        app::Error::Setting(_) | app::Error::Caller(_) | app::Error::TokenSecret(_) => Exit::Usage,
    }
}

/// Says where the demo listens, and the four lines that show what it does.
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
