//! `profile-edge run`: start, say how to try it, wait for a signal, drain.

use std::io::Write;
use std::time::Duration;

use tokio::time::timeout;

use crate::app::{self, App};
use crate::config::Config;
use crate::faults::Faults;
use crate::logging::{self, Format};
use crate::queue;
use crate::shutdown::asked_to_stop;

use super::Exit;

/// How long a stand-alone sandbox may take to finish what is under way.
pub(super) const SANDBOX_DEADLINE: Duration = Duration::from_secs(5);

/// The customer of the demo's lines.
const CUSTOMER: &str = "00000000-0000-4000-8000-000000000001";

/// Runs the service until a signal asks it to stop.
pub(super) async fn run(config: Config) -> Exit {
    logging::init(&config.log);
    let show_demo = config.is_demo && config.roles.lookup && config.log.format != Format::Json;
    let (deadline, limit) = (config.shutdown.deadline, config.startup_timeout);
    let app = match timeout(limit, App::start(config, Faults::from_env())).await {
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
    if show_demo {
        // Nobody is there to read it if standard error is closed; that is no reason to stop.
        let _ = std::io::stderr().lock().write_all(how_to_try(&app).as_bytes());
    }
    asked_to_stop().await;
    tokio::select! {
        finished = app.stop() => {
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

fn exit_of(error: &app::Error) -> Exit {
    match error {
        app::Error::Queue(queue::Error::Misconfigured { .. }) => Exit::Usage,
        app::Error::Bind(_) | app::Error::Queue(_) | app::Error::Store(_) => Exit::Unavailable,
        app::Error::Upstream(_) | app::Error::Webhook(_) | app::Error::Caller(_) | app::Error::TokenSecret(_) => {
            Exit::Usage
        }
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
