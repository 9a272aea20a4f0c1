//! Commands of operators about planted people, valid and invalid, and starts that fail.

use serde_json::{Value, json};

use crate::support::process::free_port;

use super::plants::{
    ADMIN_KEY, CALLER_KEY, EMAIL, FREE_ID, NEXT_SECRET, Place, REDIS_PASSWORD, SPACED_ID, UUID, WRONG, base64,
};
use super::world::{Backing, Running, World};

/// Runs the commands of operators, by the command line and by HTTP. Returns what they printed.
pub(super) async fn commands(running: &Running<'_>) -> Vec<Place> {
    let world = running.world;
    let mut places = Vec::new();
    let on = |command: &'static str, customer: &'static str| [command, "--tenant", "10002", "--customer", customer];
    for (arguments, input, code) in [
        (&on("inspect", "-")[..], FREE_ID, 0),
        (&on("inspect", UUID), "", 0),
        (&on("invalidate", "-"), SPACED_ID, 0),
        (&[&on("invalidate", UUID)[..], &["--force", "--json"]].concat(), "", 0),
        (&["inspect", "--tenant", "no-tenant", "--customer", "-"], FREE_ID, 64),
        (&["inspect", "--tenant", "10001", "--customer", "-"], "zephyrina.canary@example.com/CANARY-CUSTOMER-4711", 64),
        (&["inspect", "--tenant", EMAIL, "--customer", "-"], FREE_ID, 64),
        (&["dead-letters", "list"], "", 0),
        (&["dead-letters", "show", "none"], "", 64),
        (&["replay", "--since", "1h", "--tenant", "10002"], "", 0),
        (&["replay", "--since", EMAIL], "", 64),
        (&["replay", "--since", "1h", "--tenant", "CANARY-TENANT"], "", 64),
        (&["replay", "--since", "1h", "--tenant", EMAIL], "", 64),
        (&["clear", "--tenant", EMAIL], "", 64),
        (&["doctor", "--tenant", EMAIL], "", 64),
        (&["dead-letters", "redrive", "--all"], "", 0),
        (&["dead-letters", "redrive", FREE_ID], "", 64),
        (&["dead-letters", "purge", EMAIL, "--yes"], "", 64),
        (&["healthcheck"], "", 0),
        (&["hash-key"], CALLER_KEY, 0),
        (&["check-config"], "", 0),
        (&["check-config", "--json"], "", 0),
    ] {
        let (ended, printed) = world.command(arguments, &[], input).await;
        let text = String::from_utf8_lossy(&printed.bytes).into_owned();
        assert_eq!(ended, Some(code), "{}: {text}", printed.name);
        places.push(printed);
    }
    places.extend(dead_letters(world).await);
    let wrong = [("PROFILE_EDGE_ADMIN_KEY", WRONG)];
    places.push(world.command(&["inspect", "--tenant", "10001", "--customer", "-"], &wrong, FREE_ID).await.1);

    for (path, body) in [
        ("/admin/inspect", json!({ "tenantId": "10001", "customerId": FREE_ID, "name": EMAIL })),
        ("/admin/invalidate", json!({ "tenantId": EMAIL, "customerId": [FREE_ID] })),
        ("/admin/replay", json!({ "since": FREE_ID, "until": EMAIL, "tenantId": [EMAIL] })),
        ("/admin/dead-letters/redrive", json!({ "ids": [FREE_ID, EMAIL], "all": EMAIL })),
        (&format!("/admin/dead-letters/{EMAIL}"), Value::Null),
        (&format!("/admin/nowhere/{EMAIL}?q={FREE_ID}"), Value::Null),
    ] {
        let answer = world.client.post(running.admin(path)).bearer_auth(ADMIN_KEY).json(&body).send().await.unwrap();
        places.push(Place::new("an operator's refusal", answer.text().await.unwrap()));
        let got = world.client.get(running.admin(path)).bearer_auth(ADMIN_KEY).send().await.unwrap();
        places.push(Place::new("an operator's refusal", got.text().await.unwrap()));
    }
    places
}

/// Lists the dead letters, and shows each.
pub(super) async fn dead_letters(world: &World) -> Vec<Place> {
    let (code, list) = world.command(&["dead-letters", "list", "--json"], &[], "").await;
    assert_eq!(code, Some(0));
    let text = String::from_utf8_lossy(&list.bytes).into_owned();
    let mut places = vec![list];
    for id in
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["id"].as_str().map(str::to_owned))
    {
        let (code, shown) = world.command(&["dead-letters", "show", &id], &[], "").await;
        assert_eq!(code, Some(0), "{id}");
        places.push(shown);
    }
    places
}

/// Starts with invalid configurations and with servers that are down or refuse access. Returns what was printed.
pub(super) async fn starts_that_fail(world: &World) -> Vec<Place> {
    let good = world.settings();
    let with = |from: &str, to: &str| good.replacen(from, to, 1);
    let mut settings = vec![
        (64, with("key_sha256 = \"", &format!("key_sha256 = \"{WRONG}"))),
        (64, with("http.token_secret = \"", &format!("http.token_secret = \"{NEXT_SECRET}"))),
        (64, with("audit.key = \"", &format!("audit.key = \"{NEXT_SECRET}"))),
        (64, with("secrets = [\"", &format!("secrets = [\"{NEXT_SECRET}\n\", \""))),
        (64, with("whsec_", NEXT_SECRET)),
        (64, with("client_secret = \"file:", "client_secret = \"file:not-there-")),
        (64, with("scheme = \"basic\"", &format!("scheme = \"{WRONG}\""))),
    ];
    if let Backing::Servers(servers) = &world.backing {
        let (key, port) = (base64(super::plants::SEALING_KEY), free_port());
        settings.extend([
            (64, with(&format!("keys.k1 = \"{key}"), &format!("keys.k1 = \"{}", &key[..20]))),
            (64, with("redis://edge:", "redis//edge:")),
            (69, with(&format!("{REDIS_PASSWORD}@"), &format!("{WRONG}@"))),
            (69, with(&servers.url(), &format!("amqp://canary:{WRONG}@127.0.0.1:{port}/%2f"))),
            (69, with(&servers.url(), &servers.url().replace(super::plants::AMQP_PASSWORD, WRONG))),
        ]);
    }
    let mut places = Vec::new();
    for (code, settings) in settings {
        assert_ne!(settings, good);
        std::fs::write(world.path().join("wrong.toml"), &settings).unwrap();
        let more = [("PROFILE_EDGE_CONFIG", "wrong.toml"), ("PROFILE_EDGE__STARTUP_TIMEOUT", "1s")];
        for command in if code == 64 { &["run", "check-config"][..] } else { &["run"] } {
            let (ended, mut printed) = world.command(&[command], &more, "").await;
            let text = String::from_utf8_lossy(&printed.bytes).into_owned();
            let (_, changed) = settings.lines().zip(good.lines()).find(|(new, old)| new != old).unwrap();
            assert!(ended == Some(code), "{ended:?} instead of {code}, with {changed:?}: {text}");
            printed.name = format!("what {command} said in place of {changed:?}");
            places.push(printed);
        }
    }
    places
}
