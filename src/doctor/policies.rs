//! Policies of RabbitMQ that remove our events: a running process looks for them, and warns.
//!
//! AMQP does not show policies, the management API does.

use std::panic::resume_unwind;
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::queue::amqp;
use crate::queue::amqp::survey::queue_names;
use crate::shutdown::Shutdown;
use crate::supervise::Backoff;

use super::management::Api;

/// What to do about a policy.
pub(super) const ADVICE: &str =
    "exclude our queues from the policy (rabbitmqctl list_policies): it removes events that were confirmed";

/// The time between the first two looks, which doubles up to the longest. The first start creates the queues meanwhile.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What policies are known to do to each queue.
type Harms = Vec<(String, Option<String>)>;

/// Warns about each policy of one of our queues that removes events, once: at the start, and when it is set later. If the
/// management API does not answer, nothing is known, which is logged once.
pub async fn watch(config: amqp::Config, shutdown: Shutdown) {
    let mut harms: Harms = queue_names(&config).into_iter().map(|queue| (queue, None)).collect();
    let api = spawn_blocking(move || Api::new(&config, None)).await;
    let Some(api) = api.unwrap_or_else(|panicked| resume_unwind(panicked.into_panic())) else { return };
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut is_told = false;
    while !shutdown.is_requested() {
        let looked = tokio::select! {
            () = shutdown.requested() => return,
            looked = look(&api, &mut harms) => looked,
        };
        if let Err(why) = looked.as_ref()
            && !is_told
        {
            is_told = true;
            tracing::info!(
                address = %api.base,
                why,
                "the policies of RabbitMQ cannot be read, so one that removes events would not be noticed; name its management \
                 API in queue.amqp.management_url, and give the user the tag \"management\""
            );
        }
        backoff.pause(&shutdown).await;
    }
}

/// Looks at each queue once. Fails with the reason.
async fn look(api: &Api, harms: &mut Harms) -> Result<(), String> {
    for (queue, known) in harms {
        // It may not exist yet.
        let harm = api.queue(queue).await?.and_then(|queue| queue.harm());
        if let Some(harm) = harm.as_ref().filter(|_| harm != *known) {
            tracing::warn!(queue, harm, "{ADVICE}");
        }
        *known = harm;
    }
    Ok(())
}
