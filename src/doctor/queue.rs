//! RabbitMQ: the broker and our queues over AMQP, and over its management API what AMQP does not show: the version,
//! policies, and consumers of other services.

use std::collections::HashMap;

use url::Url;

use crate::config::Config;
use crate::queue;
use crate::queue::amqp::survey::{Purpose, QueueState, Survey, survey};
use crate::queue::open::QueueKind;

use super::management::{Api, Managed};
use super::{ANSWER, Finding, policies};

/// The oldest version with the streams that the journal needs, as the tests run on it.
const OLDEST: (u32, u32) = (3, 10);

/// How many events may wait before it is reported.
const MANY_WAITING: u64 = 10_000;

/// Examines the queue. `expects_consumers`: whether the service should be running.
pub(super) async fn examine(config: &Config, api: Option<&Url>, expects_consumers: bool) -> Vec<Finding> {
    if !config.roles.use_the_queue() {
        return Vec::new();
    }
    if config.queue.kind == QueueKind::Embedded {
        return vec![Finding::ok("queue", "embedded", "a file in queue.embedded.path; nothing to check")];
    }
    let found = match survey(&config.queue.amqp, ANSWER).await {
        Ok(found) => found,
        Err(error) => return vec![unreachable(&error)],
    };
    let api = Api::new(&config.queue.amqp, api, 0);
    let subject = api.as_ref().map_or_else(|_| found.address.clone(), |api| api.base.to_string());
    let managed = match api {
        Ok(api) => api.read().await,
        Err(error) => Err(error),
    };
    let mut findings = judge(&found, expects_consumers);
    match managed {
        Ok(managed) => findings.extend(judge_managed(&found, &managed)),
        Err(error) => findings.push(Finding::warning(
            "rabbitmq.policies",
            subject,
            format!("the management API does not answer, policies and other consumers were not checked: {error}"),
            "give its address with --rabbitmq-api or queue.amqp.management_url, and the user the tag \"monitoring\"",
        )),
    }
    findings
}

fn unreachable(error: &queue::Error) -> Finding {
    let detail = error.to_string();
    let text = detail.to_ascii_lowercase();
    let advice = if ["access", "not_allowed", "login"].iter().any(|sign| text.contains(sign)) {
        "RabbitMQ refuses the user: check user, password and virtual host in queue.amqp.url, and the user's permissions"
    } else if text.contains("certificate") {
        "check queue.amqp.tls.ca, and the name in the broker's certificate"
    } else {
        "check queue.amqp.url, that the broker runs, and that nothing between here and there blocks its port"
    };
    Finding::failed("rabbitmq.connection", "rabbitmq", detail, advice)
}

fn judge(found: &Survey, expects_consumers: bool) -> Vec<Finding> {
    let mut findings = vec![match &found.blocked {
        Some(reason) => Finding::failed(
            "rabbitmq.alarm",
            &found.address,
            format!("the broker accepts no messages: {reason}"),
            "free memory or disk on the broker (rabbitmqctl alarms); until then webhooks answer 503",
        ),
        None => Finding::ok("rabbitmq.alarm", &found.address, "the broker accepts messages"),
    }];
    if found.queues.iter().all(|queue| queue.counts.is_none()) {
        let detail = "none exists yet; the first start creates them";
        findings.push(Finding::ok("rabbitmq.queues", &found.address, detail));
        return findings;
    }
    findings.extend(found.queues.iter().map(|queue| judge_queue(queue, expects_consumers)));
    findings
}

fn judge_queue(queue: &QueueState, expects_consumers: bool) -> Finding {
    const CHECK: &str = "rabbitmq.queues";
    let name = &queue.name;
    let Some((messages, consumers)) = queue.counts else {
        let advice = "start the service: it creates the queue and restores its events from the journal; then find out who \
                      deleted it";
        return Finding::failed(CHECK, name, "does not exist, though others do", advice);
    };
    if let Some(text) = &queue.differs {
        let advice = "stop the service, delete the queue when it is empty, and start again: it must be declared as this \
                      service does (quorum queues, and a stream for the journal)";
        return Finding::failed(CHECK, name, text, advice);
    }
    match queue.purpose {
        Purpose::Work if expects_consumers && consumers == 0 => Finding::failed(
            CHECK,
            name,
            format!("{messages} events wait and nobody consumes them"),
            "start a process with the role \"consumer\", and look at its log",
        ),
        Purpose::Work if messages > MANY_WAITING => Finding::warning(
            CHECK,
            name,
            format!("{messages} events wait"),
            "the consumers are slower than the events: look at the latency of the store, or start more consumers",
        ),
        Purpose::DeadLetters if messages > 0 => Finding::warning(
            CHECK,
            name,
            format!("{messages} events could not be applied"),
            "profile-edge dead-letters list shows why; then redrive or purge them",
        ),
        Purpose::Work => Finding::ok(CHECK, name, format!("{messages} events wait, {consumers} consumers")),
        Purpose::DeadLetters | Purpose::Restores => Finding::ok(CHECK, name, format!("{messages} wait")),
        Purpose::Journal => Finding::ok(CHECK, name, "a stream"),
    }
}

fn judge_managed(found: &Survey, managed: &Managed) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(version) = &managed.version {
        findings.push(judge_version(&found.address, version));
    }
    let mine: HashMap<&str, Purpose> = found.queues.iter().map(|queue| (queue.name.as_str(), queue.purpose)).collect();
    let mut bad_policies = Vec::new();
    for queue in managed.queues.iter().filter(|queue| mine.contains_key(queue.name.as_str())) {
        let finding = |harm| Finding::failed("rabbitmq.policies", &queue.name, harm, policies::ADVICE);
        bad_policies.extend(queue.harm().map(finding));
    }
    if bad_policies.is_empty() {
        bad_policies.push(Finding::ok("rabbitmq.policies", &found.address, "no policy removes our events"));
    }
    findings.extend(bad_policies);
    findings.push(consumers(found, &mine, managed));
    findings
}

fn judge_version(subject: &str, version: &str) -> Finding {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let numbers = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if numbers < OLDEST {
        let advice = format!("upgrade to {}.{} or newer", OLDEST.0, OLDEST.1);
        return Finding::failed("rabbitmq.version", subject, format!("version {version}"), advice);
    }
    Finding::ok("rabbitmq.version", subject, format!("version {version}"))
}

fn consumers(found: &Survey, mine: &HashMap<&str, Purpose>, managed: &Managed) -> Finding {
    const CHECK: &str = "rabbitmq.consumers";
    let foreign = managed.consumers.iter().filter(|consumer| mine.contains_key(consumer.queue.name.as_str()));
    let mut foreign = foreign.filter_map(|consumer| {
        let connection = consumer.channel_details.as_ref()?["connection_name"].as_str()?;
        (!managed.ours.contains(connection)).then(|| format!("{} by {connection}", consumer.queue.name))
    });
    match foreign.next() {
        Some(one) => Finding::failed(
            CHECK,
            &found.address,
            format!("another program consumes our queue {one}: its events never reach the cache"),
            "stop that program, or give it a queue of its own, bound to the exchange profile-edge.events",
        ),
        None => Finding::ok(CHECK, &found.address, "only this service consumes our queues"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_version_that_is_too_old_is_named() {
        assert_eq!(judge_version("rabbitmq", "3.9.29").verdict, Verdict::Failed);
        assert_eq!(judge_version("rabbitmq", "4.1.0").verdict, Verdict::Ok);
    }
}
