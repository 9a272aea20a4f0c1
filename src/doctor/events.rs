//! Which source of events a tenant can have: what its organisation sends changed contacts through.

use crate::upstream;

use super::Finding;

const CHECK: &str = "events.source";

/// Names the source to configure, by the transports of the topic of changed contacts. `target`: where events are posted;
/// `pack`: the directory with the files to import.
pub(super) fn source(
    subject: &str,
    transports: Result<&Option<Vec<String>>, &upstream::Error>,
    target: &str,
    pack: &str,
) -> Finding {
    let by_lifetime = "until then a change is visible when the cached profile expires: set a short lookup.ttl";
    let transports = match transports {
        Ok(Some(transports)) => transports,
        Ok(None) => {
            let advice = format!(
                "use audit events of external contacts, or post events from the system that changes contacts to {target}; \
                 {by_lifetime}"
            );
            return Finding::warning(CHECK, subject, "the organisation has no topic of changed contacts", advice);
        }
        Err(error) => {
            let advice = "run the doctor again; GET /api/v2/notifications/availabletopics needs no permission";
            return Finding::warning(CHECK, subject, format!("the topics could not be read: {error}"), advice);
        }
    };
    // Names of transports are no documented list, so spelling does not count.
    let has = |name: &str| {
        let plain =
            |text: &str| text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        transports.iter().any(|transport| matches!(plain(transport), found if found == name || found == "all"))
    };
    let shown = transports.join(", ");
    if has("eventbridge") {
        let detail = format!(
            "changed contacts go through EventBridge ({shown}): a rule with an API destination that posts to {target} \
             ({pack}/eventbridge.yaml)"
        );
        return Finding::ok(CHECK, subject, detail);
    }
    if has("processautomation") {
        let detail = format!(
            "changed contacts start triggers ({shown}): a workflow whose data action posts to {target} \
             ({pack}/workflow-trigger.json)"
        );
        return Finding::ok(CHECK, subject, detail);
    }
    if has("websocket") {
        let detail = format!(
            "changed contacts go through WebSockets ({shown}): a [[tenant.source]] with kind = \"notifications\" receives them, \
             without inbound HTTP; deletions do not come that way, they are visible when the cached profile expires (ttl)"
        );
        return Finding::ok(CHECK, subject, detail);
    }
    let advice = format!(
        "neither EventBridge, triggers nor WebSockets carry changed contacts here: post events from the system that changes contacts to \
         {target}, or use events of conversations; {by_lifetime}"
    );
    Finding::warning(
        CHECK,
        subject,
        format!("changed contacts go through none of the known transports ({shown})"),
        advice,
    )
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_source_follows_from_the_transports() {
        let of = |names: &[&str]| {
            let transports = Some(names.iter().map(|name| (*name).to_owned()).collect());
            source("10001", Ok(&transports), "https://cache.example/webhooks/10001", "edge/genesys")
        };
        assert!(of(&["Websocket", "EventBridge"]).detail.contains("API destination"));
        assert!(of(&["EventBridge"]).detail.contains("(edge/genesys/eventbridge.yaml)"));
        assert!(of(&["All"]).detail.contains("API destination"));
        assert!(of(&["WebSocket", "ProcessAutomation"]).detail.contains("trigger"));
        assert!(of(&["Websocket"]).detail.contains("kind = \"notifications\""));
        let unknown = of(&["Pigeon"]);
        assert_eq!(unknown.verdict, Verdict::Warning);
        assert!(unknown.advice.unwrap().contains("lookup.ttl"));
        assert_eq!(source("10001", Ok(&None), "", "").verdict, Verdict::Warning);
    }
}
