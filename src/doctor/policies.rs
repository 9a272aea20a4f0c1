//! Policies of RabbitMQ that remove our events: a running process looks for them, and warns.
//!
//! AMQP does not show policies, the management API does.

use std::time::Duration;

use crate::queue::amqp;
use crate::queue::amqp::survey::queue_names;
use crate::shutdown::Shutdown;
use crate::supervise::{Backoff, blocking};

use super::management::{Api, ApiError};

/// What to do about a policy.
pub(super) const ADVICE: &str =
    "exclude our queues from the policy (rabbitmqctl list_policies): it removes events that were confirmed";

/// The time between the first two looks, which doubles up to the longest. The first start creates the queues meanwhile.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What policies are known to do to each queue.
type Harms = Vec<(String, Option<String>)>;

/// Warns about each policy of one of our queues that removes events, once: at the start, and when it is set later. If the
/// management API does not answer, nothing is known, which is logged once. If it refuses the user, it is not asked again.
pub async fn watch(config: amqp::Config, shutdown: Shutdown) {
    let mut harms: Harms = queue_names(&config).into_iter().map(|queue| (queue, None)).collect();
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut is_told = false;
    for node in 0.. {
        let looked = tokio::select! {
            () = shutdown.requested() => return,
            looked = look(&config, node, &mut harms) => looked,
        };
        if let Err(error) = &looked
            && !is_told
        {
            is_told = true;
            tracing::info!(
                %error,
                "the policies of RabbitMQ cannot be read, so one that removes events would not be noticed; name its management \
                 API in queue.amqp.management_url, and give the user the tag \"management\""
            );
        }
        if looked.is_err_and(|error| error.is_refusal()) {
            return;
        }
        backoff.pause(&shutdown).await;
    }
}

/// Looks at each queue once, at one node of the broker.
async fn look(config: &amqp::Config, node: usize, harms: &mut Harms) -> Result<(), ApiError> {
    let config = config.clone();
    let api = blocking(move || Api::new(&config, None, node)).await?;
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
