//! Configuration: layers, secrets, and mistakes that name themselves before anything is served.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use profile_edge::config::{self, DEFAULTS};
use sha2::{Digest, Sha256};

use crate::support::process::configuration;

const TENANT: &str = r#"
[[tenant]]
id = "10001"
[tenant.upstream]
region = "us_east_1"
client_id = "id"
client_secret = "env:GENESYS_SECRET"
[[tenant.webhook]]
scheme = "hub-signature"
secrets = ["env:WEBHOOK_SECRET"]
"#;

const SECRETS: [(&str, &str); 2] =
    [("GENESYS_SECRET", "planted-genesys"), ("WEBHOOK_SECRET", "planted-webhook-secret")];

fn check(directory: &Path, text: &str, more: &[&str], environment: &[(&str, &str)]) -> Output {
    let file = configuration(directory, text);
    Command::new(env!("CARGO_BIN_EXE_profile-edge"))
        .args(["check-config", "--config", &file.display().to_string()])
        .args(more)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_mistake_ends_with_64_and_names_the_file_the_key_and_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let demo_caller = "[[caller]]\nname = \"a\"\nkey_sha256 = \"xyz\"\ntenants = [\"10009\"]\nfields = [\"*\"]\n";
    let colon = demo_caller.replace("\"a\"", "\"a:b\"");
    let plain = TENANT.replace(
        "region = \"us_east_1\"",
        "api_url = \"http://api.example.com\"\nlogin_url = \"https://l.example.com\"",
    );
    let key_missing = format!("store.sealing = {{ active = \"k2\", keys.k1 = \"{}\" }}", "a2tr".repeat(11));
    let key_misnamed = key_missing.replace("k1", "\"k 1\"");
    let region = TENANT.replace("us_east_1", "us_east_9");
    let permission = TENANT.replace("region", "required_permissions = [\"externalContacts:view\"]\nregion");
    let scope = TENANT.replace("region", "forbidden_scopes = [\"a b\"]\nregion");
    let scheme = |scheme: &str| TENANT.replace("hub-signature", scheme);
    let (nobody, username) = (scheme("basic"), scheme("bearer\"\nusername = \"edge"));
    let (unsigned, unknown) = (scheme("standard-webhooks"), scheme("hub-signatures"));
    let domain = TENANT.replace("us_east_1", "mypurecloud.com");
    let one_webhook = TENANT.replace("[[tenant.webhook]]", "[tenant.webhook]");
    let key = |digest: &str| format!("admin.key_sha256 = \"{digest}\"");
    let empty = key("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    let example = key("7b8a2d3c5f4e60918273645566778899aabbccddeeff00112233445566778899");
    let short = TENANT.replace("env:WEBHOOK_SECRET", "sevench");
    let letter = key("CA978112CA1BBDCAFAC231B39A23DC4DA786EFF8147C4E72B9807785AFEE48BB");
    let agents = |options: &str| format!("{TENANT}\n[tenant.agents]\nallow = true\n{options}");
    let (all, long) = (agents(""), agents("fields = [\"id\"]\nrecheck = \"61s\""));
    let namesake = format!(
        "{}\n[[caller]]\nname = \"agents\"\nkey_sha256 = \"{}\"\ntenants = []\nfields = []",
        agents("fields = [\"id\"]"),
        "ab".repeat(32)
    );
    let with_times = |times: &str| TENANT.replace("id = \"10001\"", &format!("id = \"10001\"\n{times}"));
    let (no_deadline, no_ttl) = (with_times("deadline = \"0s\""), with_times("unwatched_ttl = \"0s\""));
    let (jitter, century) = (with_times("ttl_jitter = 0.6"), with_times("grace = \"100years\""));
    let misnamed = TENANT.replace("\"10001\"", "\"1 1\"");
    let mistakes: [(&str, &str, &str); 73] = [
        (&no_deadline, "tenant[0].deadline: ", "longer than zero"),
        (&no_ttl, "tenant[0].unwatched_ttl: ", "longer than zero"),
        (&jitter, "tenant[0].ttl_jitter: ", "0 to 0.5"),
        (&century, "tenant[0].grace: ", "3650 days or less"),
        (&misnamed, "tenant[0].id: ", "1 to 64"),
        ("startup_timeout = \"18446744073709551615s\"", "startup_timeout: ", "3650 days or less"),
        ("lookup.deadline = \"18446744073709551615s\"", "lookup.deadline: ", "3650 days or less"),
        ("shutdown.delay = \"11years\"", "shutdown.delay: ", "3650 days or less"),
        ("audit.fsync = \"11years\"", "audit.fsync: ", "at most 3650d"),
        ("lookup.ttl = 300", "lookup.ttl: ", "must be a duration such as \"300s\", not an integer"),
        ("http.max_body = \"0B\"", "http.max_body: ", "must be above zero"),
        ("http.max_body = [1]", "http.max_body: ", "must be a size such as \"1MiB\", not a list"),
        ("store.embedded.max_bytes = \"0B\"", "store.embedded.max_bytes: ", "must be above zero"),
        ("store.embedded.max_bytes = \"lots\"", "store.embedded.max_bytes: ", "must be a size such as \"1MiB\""),
        ("queue.embedded.max_bytes = \"0B\"", "queue.embedded.max_bytes: ", "must be above zero"),
        (
            "queue.kind = \"amqp\"\nqueue.outbox = { enabled = true, max_bytes = \"0B\" }",
            "queue.outbox.max_bytes: ",
            "above zero",
        ),
        ("sandbox.customers = -1", "sandbox.customers: ", "must be a whole number from 0 to 4294967295"),
        ("http.max_in_flight = \"many\"", "http.max_in_flight: ", "must be a whole number, 0 or more, not a string"),
        ("lookup.ttl_jitter = \"some\"", "lookup.ttl_jitter: ", "must be a number, not a string"),
        ("demo.x = 1", "demo.x: ", "is not a known key; the known keys are allow_remote"),
        (&all, "tenant[0].agents.fields", "is missing"),
        (&long, "tenant[0].agents.recheck", "at most 60s"),
        (&namesake, "caller[0].name", "agents"),
        ("http.lissen = \"127.0.0.1:0\"", "http.lissen", "the nearest is `listen`"),
        ("[lokup]\nttl = \"1s\"", "lokup", "the nearest is `lookup`"),
        ("[lokup]", "lokup", "the nearest is `lookup`"),
        ("[tenant]\nid = \"10001\"", "tenant", "write [[tenant]]"),
        ("[caller]\nname = \"a\"", "caller", "write [[caller]]"),
        (&one_webhook, "tenant[0].webhook", "write [[tenant.webhook]]"),
        ("[[lookup]]\nttl = \"1s\"", "lookup", "must be a table, not a list"),
        (&domain, "tenant[0].upstream.region", "use us_east_1"),
        ("http.listen = \"localhost:8080\"", "http.listen", "127.0.0.1:8080"),
        ("admin.listen = \"127.0.0.1\"", "admin.listen", "an IP address and a port"),
        ("store.kind = \"rediss\"", "store.kind", "the nearest is \"redis\""),
        ("lookup.ttl = \"soon\"", "lookup.ttl", "must be"),
        ("lookup.ttl = 300", "lookup.ttl", "must be"),
        ("lookup.ttl = \"0s\"", "lookup.ttl", "longer than zero"),
        ("lookup.ttl_jitter = 0.9", "lookup.ttl_jitter", "0 to 0.5"),
        ("lookup.lease_ttl = \"1s\"", "lookup.lease_ttl", "upstream.timeout"),
        ("store.embedded.max_bytes = \"lots\"", "store.embedded.max_bytes", "must be"),
        ("store.kind = \"memory\"", "store.kind", "\"embedded\""),
        ("roles = []", "roles", "at least one"),
        ("[queue]\nkind = \"amqp\"\n[queue.amqp]\nname = \"a b\"", "queue.amqp.name", "1 to 64 characters"),
        ("store.kind = \"redis\"\nstore.redis.sentinel_password = \"x\"", "store.redis.sentinel_password", "sentinel"),
        (
            "store.kind = \"redis\"\nstore.redis.password_file = \"nowhere\"",
            "store.redis.password_file",
            "cannot be read",
        ),
        (
            "store.kind = \"memcached\"\nstore.memcached.servers = [\"a.b.cfg.use1.cache.amazonaws.com:11211\"]",
            "store.memcached.servers",
            "name the endpoint of each node",
        ),
        ("upstream.max_connection_age = \"0s\"", "upstream.max_connection_age", "1s or longer"),
        ("http.listen = \"0.0.0.0:8080\"\nsecurity.require_tls = false", "http.listen", "demo"),
        ("http.listen = \"0.0.0.0:8080\"\ndemo.allow_remote = true", "http.listen", "security.require_tls"),
        (&empty, "admin.key_sha256", "empty key"),
        (&letter, "admin.key_sha256", "one letter"),
        (&example, "admin.key_sha256", "hash-key"),
        (&short, "tenant[0].webhook[0].secrets[0]", "fewer than 8 bytes"),
        ("sandbox.listen = \"0.0.0.0:8082\"", "sandbox.listen", "demo.allow_remote"),
        (
            "store.kind = \"redis\"\nstore.redis.url = \"redis://127.0.0.1?db=3\"",
            "store.redis.url",
            "redis://host:port/3",
        ),
        ("keys.scheme = \"hmac-sha256\"", "keys.secret", "is missing"),
        ("keys.scheme = \"hmac-sha256\"\nkeys.secret = \"c2hvcnQ=\"", "keys.secret", "base64 of 32 bytes"),
        ("http.token_secret = \"c2hvcnQ=\"", "http.token_secret", "base64 of 32 bytes"),
        ("http.token_lifetime = \"30s\"", "http.token_lifetime", "1m to 48h"),
        ("store.sealing.active = \"k1\"", "store.sealing.keys", "is missing"),
        ("store.sealing = { active = \"k1\", keys.k1 = \"c2hvcnQ=\" }", "store.sealing.keys.k1", "base64 of 32 bytes"),
        (&key_missing, "store.sealing.active", "must name one of"),
        (&key_misnamed, "store.sealing.keys.k 1", "1 to 32 characters"),
        (demo_caller, "caller[0].key_sha256", "64 hex digits"),
        (&colon, "caller[0].name", "1 to 64 characters"),
        (&plain, "tenant[0].upstream.api_url", "plain http"),
        (&region, "tenant[0].upstream.region", "the nearest is us_east_2"),
        (&permission, "tenant[0].upstream.required_permissions", "domain:entity:action"),
        (&scope, "tenant[0].upstream.forbidden_scopes", "without spaces"),
        (&nobody, "tenant[0].webhook[0].username", "is missing"),
        (&username, "tenant[0].webhook[0].username", "\"basic\" only"),
        (&unsigned, "tenant[0].webhook[0].secrets", "base64 of 16 bytes"),
        (&unknown, "tenant[0].webhook[0].scheme", "\"standard-webhooks\""),
    ];
    for (mistake, key, reason) in mistakes {
        let output = check(directory.path(), mistake, &[], &SECRETS);
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{mistake}: {complaint}");
        assert!(
            !complaint.contains("default: ") && complaint.contains("edge.toml") && complaint.contains(key),
            "{mistake}: {complaint}"
        );
        assert!(complaint.contains(reason), "{mistake}: {complaint}");
    }
}

#[test]
fn a_missing_secret_is_named_and_a_present_one_is_never_printed() {
    let directory = tempfile::tempdir().unwrap();
    let missing = check(directory.path(), TENANT, &[], &SECRETS[1..]);
    assert_eq!(missing.status.code(), Some(64));
    let complaint = text(&missing.stderr);
    assert!(
        complaint.contains("tenant[0].upstream.client_secret") && complaint.contains("GENESYS_SECRET"),
        "{complaint}"
    );

    let file = directory.path().join("secret");
    std::fs::write(&file, "planted-file\n").unwrap();
    let by_file = TENANT.replace("env:GENESYS_SECRET", &format!("file:{}", file.display()));
    let inline = TENANT.replace("env:GENESYS_SECRET", "planted-inline");
    for settings in [TENANT, &by_file, &inline] {
        for more in [&[][..], &["--json"]] {
            let output = check(directory.path(), settings, more, &SECRETS);
            assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
            let printed = text(&output.stdout);
            assert!(printed.contains("client_secret") && printed.contains("[redacted]"), "{printed}");
            assert!(!printed.contains("planted"), "{printed}");
        }
    }
}

#[test]
fn a_mistake_beside_a_secret_does_not_print_it() {
    let directory = tempfile::tempdir().unwrap();
    for mistake in [
        "keys.secret = \"planted\nx",
        "keys.secret = [\"planted\"]",
        "keys.scheme = \"hmac-sha256\"\nkeys.secret = \"planted\"",
        "keys.previous = \"planted\"",
    ] {
        let output = check(directory.path(), mistake, &[], &[]);
        assert_eq!(output.status.code(), Some(64), "{mistake}");
        assert!(!text(&output.stderr).contains("planted"), "{}", text(&output.stderr));
    }
}

/// Wherever a secret may stand, and wherever one may have been put by mistake.
#[test]
fn no_secret_is_shown_whether_the_configuration_is_right_or_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [b'k'; 32]);
    let everywhere = format!(
        r#"
        security.require_tls = false
        keys = {{ scheme = "hmac-sha256", secret = "{key}", previous = "{key}" }}
        store = {{ kind = "redis", redis.url = "redis://user:planted-redis@127.0.0.1", sealing = {{ active = "k1", keys.k1 = "{key}" }} }}
        queue = {{ kind = "amqp", amqp.urls = ["amqp://user:planted-amqp@127.0.0.1", "amqp://u:planted-two@127.0.0.1"] }}
        {TENANT}"#
    );
    let wrong = [
        everywhere.replace("redis://user", "rediz://user"),
        everywhere.replace("amqp://u:", "http://u:"),
        everywhere.replace("redis.url", "redis.mode"),
        everywhere.replace("active = \"k1\"", &format!("active = \"{key}\"")),
        everywhere.replace("keys.k1", "keys.\"k 1\""),
        everywhere.replace("client_id = \"id\"", "client_id = 5"),
        format!("{everywhere}\n[http.tls]\ncert = \"-----BEGIN PRIVATE KEY-----\\nplanted\"\nkey = \"planted.key\"\n"),
    ];
    for (settings, code) in std::iter::once((&everywhere, 0)).chain(wrong.iter().map(|settings| (settings, 64))) {
        for more in [&[][..], &["--json"]] {
            let environment = [SECRETS[0], SECRETS[1], ("RUST_BACKTRACE", "full"), ("RUST_LOG", "trace")];
            let output = check(directory.path(), settings, more, &environment);
            let printed = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{printed}");
            let shown = printed.replace("planted.key", "");
            assert!(!shown.contains("planted") && !shown.contains(&key), "{printed}");
        }
    }
}

#[test]
fn plain_hashes_of_customer_ids_cause_a_warning_on_standard_error() {
    let directory = tempfile::tempdir().unwrap();
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [b'k'; 32]);
    let keys = format!("keys = {{ scheme = \"hmac-sha256\", secret = \"{key}\", previous = \"sha256\" }}");
    let keyed = format!("{keys}\n{TENANT}{}", caller("*"));
    for (settings, is_warned) in [(TENANT, true), (&keyed, false), ("", true)] {
        for more in [&[][..], &["--json"]] {
            let output = check(directory.path(), settings, more, &SECRETS);
            assert_eq!(output.status.code(), Some(0));
            let (printed, complaint) = (text(&output.stdout), text(&output.stderr));
            let warned = complaint.contains("warning: keys.scheme") && complaint.contains("hmac-sha256");
            assert_eq!(warned, is_warned, "{complaint}");
            assert!(is_warned || complaint.is_empty(), "{complaint}");
            assert!(!printed.contains("warning") && printed.contains("keys.scheme"), "{printed}");
        }
    }
}

#[test]
fn the_environment_overrides_the_file_and_the_file_the_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let settings = "[lookup]\nttl = \"7m\"\ngrace = \"8m\"\n";
    let environment = [
        ("PROFILE_EDGE__LOOKUP__TTL", "9m"),
        ("PROFILE_EDGE__CONSUMER__CONCURRENCY", "5"),
        ("PROFILE_EDGE__ROLES", "lookup,consumer"),
    ];
    let printed = text(&check(directory.path(), settings, &[], &environment).stdout);
    let line = |key: &str| printed.lines().find(|line| line.starts_with(&format!("{key} ="))).unwrap().to_owned();
    assert_eq!(line("lookup.ttl"), "lookup.ttl = \"9m\"  # env PROFILE_EDGE__LOOKUP__TTL");
    assert!(line("lookup.grace").starts_with("lookup.grace = \"8m\"  # file "));
    assert_eq!(line("lookup.negative_ttl"), "lookup.negative_ttl = \"30s\"  # default");
    assert!(line("consumer.concurrency").contains("env PROFILE_EDGE__CONSUMER__CONCURRENCY"));

    let output = check(directory.path(), "", &[], &[("PROFILE_EDGE__LOOKUP__TLL", "9m")]);
    assert_eq!(output.status.code(), Some(64));
    let complaint = text(&output.stderr);
    assert!(complaint.contains("PROFILE_EDGE__LOOKUP__TLL") && complaint.contains("`ttl`"), "{complaint}");
}

#[test]
fn tenants_of_the_environment_replace_the_demo_and_show_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = r#"{ region = "us_east_1", client_id = "id", client_secret = "planted-genesys" }"#;
    let webhook = r#"{ scheme = "api-key", secrets = ["planted-webhook-secret"] }"#;
    let tenant = format!("[{{ id = \"10001\", upstream = {upstream}, webhook = [{webhook}] }}]");
    for (value, code) in [(tenant.clone(), 0), (tenant.replace("region", "reg"), 64), (format!("{tenant}]"), 64)] {
        for more in [&[][..], &["--json"]] {
            let output = check(directory.path(), "", more, &[("PROFILE_EDGE__TENANT", &value)]);
            let printed = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{printed}");
            assert!(printed.contains("env PROFILE_EDGE__TENANT") && !printed.contains("planted"), "{printed}");
            let is_shown = printed.contains("tenant[0].upstream.client_secret") && printed.contains("[redacted]");
            assert!(is_shown || code != 0, "{printed}");
            assert!(!printed.contains("caller[0]"), "the key of the demo is of no use: {printed}");
        }
    }
}

/// A caller with this field.
fn caller(field: &str) -> String {
    let key = "a".repeat(64);
    format!("[[caller]]\nname = \"ivr\"\nkey_sha256 = \"{key}\"\ntenants = [\"10001\"]\nfields = [\"{field}\"]\n")
}

#[test]
fn settings_that_are_probably_a_mistake_cause_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let no_webhook = TENANT.split("[[tenant.webhook]]").next().unwrap().to_owned() + &caller("*");
    let with = |field: &str| format!("{TENANT}{}", caller(field));
    let placeholder = with("*").replace(&"a".repeat(64), &"0".repeat(64));
    for (settings, warning) in [
        (&no_webhook, "tenant[0] (\"10001\") has no [[tenant.webhook]]"),
        (&TENANT.to_owned(), "tenant[0] (\"10001\") is not in the tenants of any [[caller]]"),
        (&with("frstName"), "the field \"frstName\", so caller \"ivr\" never gets it; the nearest is \"firstName\""),
        (&with("workPhone.e146"), "the nearest is \"workPhone.e164\""),
        (&placeholder, "caller[0].key_sha256 is a placeholder"),
        (&format!("queue.kind = \"amqp\"\n{TENANT}"), "run exactly one process, or set store.kind"),
        (&format!("roles = [\"lookup\"]\n{TENANT}"), "no event evicts what this process caches"),
        (&format!("roles = [\"ingest\", \"consumer\"]\n{TENANT}"), "which nobody reads"),
        (&format!("roles = [\"ingest\"]\n{TENANT}"), "no event gets from one to the other"),
        (&format!("queue.embedded.max_bytes = \"1KiB\"\n{TENANT}"), "queue.embedded.max_bytes is below 4MiB"),
        (
            &format!("sandbox = {{ enabled = true, listen = \"0.0.0.0:8082\" }}\ndemo.allow_remote = true\n{TENANT}"),
            "sandbox.listen is 0.0.0.0:8082, not on loopback",
        ),
    ] {
        let output = check(directory.path(), settings, &[], &SECRETS);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stderr).contains(warning), "{warning}: {}", text(&output.stderr));
    }
    let output = check(directory.path(), &with("customFields.tier_text"), &[], &SECRETS);
    assert_eq!(text(&output.stderr).lines().count(), 1, "keys.scheme only: {}", text(&output.stderr));
}

#[test]
fn a_variable_with_one_underscore_causes_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let environment =
        [("PROFILE_EDGE_LOOKUP_TTL", "9m"), ("PROFILE_EDGE_TEST_NOTHING", "1"), ("PROFILE_EDGE_CONFIG", "no")];
    let complaint = text(&check(directory.path(), "", &[], &environment).stderr);
    assert!(complaint.contains("PROFILE_EDGE_LOOKUP_TTL is not an option"), "{complaint}");
    assert!(complaint.contains("the nearest is PROFILE_EDGE__LOOKUP__TTL"), "{complaint}");
    assert!(!complaint.contains("NOTHING") && !complaint.contains("EDGE_CONFIG"), "{complaint}");
}

#[test]
fn an_empty_variable_names_no_file() {
    let mut check = Command::new(env!("CARGO_BIN_EXE_profile-edge"));
    let output = check.arg("check-config").env("PROFILE_EDGE_CONFIG", "").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn the_template_of_the_defaults_can_be_uncommented_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (settings, template) = DEFAULTS.split_at(DEFAULTS.find("# # A tenant is one").unwrap());
    let uncommented = template.lines().map(|line| line.strip_prefix("# ").unwrap_or_default());
    let settings = settings.to_owned() + &uncommented.collect::<Vec<_>>().join("\n");
    let secrets = [("GENESYS_SECRET_10001", "planted"), ("WEBHOOK_SECRET_10001", "planted-webhook-secret")];
    let output = check(directory.path(), &settings, &[], &secrets);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    for option in ["tenant[0].ttl = \"120s\"", "tenant[0].webhook[0].scheme", "caller[0].requests_per_second = 50"] {
        assert!(printed.contains(option), "{option}: {printed}");
    }
    assert!(text(&output.stderr).contains("caller[0].key_sha256 is a placeholder"));
    assert_eq!(check(directory.path(), &settings, &[], &[]).status.code(), Some(64), "it has no secrets of its own");
}

#[test]
fn the_minimal_example_needs_nothing_but_its_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [b'k'; 32]);
    let secrets = [
        ("KEYS_SECRET", key.as_str()),
        ("GENESYS_CLIENT_SECRET", "planted"),
        ("WEBHOOK_SECRET", "planted-webhook-secret"),
    ];
    let minimal = include_str!("../../conf/minimal.toml");
    let output = check(directory.path(), minimal, &[], &secrets);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr).lines().count(), 1, "the placeholder only: {}", text(&output.stderr));
    assert_eq!(check(directory.path(), minimal, &[], &[]).status.code(), Some(64));
}

#[test]
fn a_configured_tenant_replaces_the_demo() {
    let own = TENANT.replace("env:GENESYS_SECRET", "s").replace("env:WEBHOOK_SECRET", "planted-webhook-secret");
    let loaded = config::from_toml(&format!("{own}\n")).unwrap().config;
    assert!(!loaded.is_demo && !loaded.runs_sandbox() && loaded.callers.is_empty());
    let demo = config::from_toml("").unwrap().config;
    assert!(demo.is_demo && demo.runs_sandbox());
    assert_eq!(demo.tenants.len(), 1);
    assert_eq!(demo.callers.len(), 1);
}

#[test]
fn what_a_tenant_or_a_caller_does_not_set_is_shown_with_its_origin() {
    let directory = tempfile::tempdir().unwrap();
    let settings = format!("lookup.grace = \"8m\"\n{TENANT}{}", caller("*"));
    let environment = [SECRETS[0], SECRETS[1], ("PROFILE_EDGE__LOOKUP__DEADLINE", "900ms")];
    let printed = text(&check(directory.path(), &settings, &[], &environment).stdout);
    let file = directory.path().join("edge.toml");
    let file = format!("file {}", file.display());
    // A token must view contacts and do nothing else.
    let forbidden = ["add", "edit", "delete"].map(|action| format!("\"externalContacts:contact:{action}\"")).join(", ");
    let forbidden = format!("tenant[0].upstream.forbidden_permissions = [{forbidden}]");
    for (setting, origin) in [
        ("tenant[0].ttl = \"300s\"", "default"),
        ("tenant[0].grace = \"8m\"", file.as_str()),
        ("tenant[0].deadline = \"900ms\"", "env PROFILE_EDGE__LOOKUP__DEADLINE"),
        ("tenant[0].prewarm = false", "default"),
        ("tenant[0].upstream.region = \"us_east_1\"", file.as_str()),
        ("tenant[0].upstream.requests_per_minute = 300", "default"),
        ("tenant[0].upstream.required_permissions = [\"externalContacts:contact:view\"]", "default"),
        ("tenant[0].upstream.forbidden_scopes = [\"cloud.cust.write\"]", "default"),
        ("tenant[0].upstream.required_scopes = []", "default"),
        (&forbidden, "default"),
        ("caller[0].requests_per_second = 0", "default"),
        ("caller[0].lookup_by = [\"customerId\"]", "default"),
    ] {
        assert!(printed.contains(&format!("{setting}  # {origin}\n")), "{setting}, {origin}: {printed}");
    }
    for absent in ["tenant[0].lease_ttl", "tenant[0].agents", "tenant[0].source"] {
        assert!(!printed.contains(absent), "{absent}: {printed}");
    }
    let nameless = settings.replace("id = \"10001\"\n", "");
    let complaint = text(&check(directory.path(), &nameless, &[], &environment).stderr);
    assert!(complaint.contains(&format!("{file}: tenant[0].id: is missing")), "{complaint}");
}

#[test]
fn times_of_a_tenant_override_the_common_ones() {
    let own = TENANT.replace("env:GENESYS_SECRET", "s").replace("env:WEBHOOK_SECRET", "planted-webhook-secret");
    let own = own.replace("id = \"10001\"\n", "id = \"10001\"\nttl = \"60s\"\n");
    let tenant = &config::from_toml(&own).unwrap().config.tenants[0];
    assert_eq!(tenant.lookup.ttl.as_secs(), 60);
    assert_eq!(tenant.lookup.grace.as_secs(), 600);
}

/// An option that is not in `conf/default.toml` would be one that nobody can find.
#[test]
fn the_defaults_document_every_option() {
    let optional = [
        "key_sha256",
        "secret",
        "previous",
        "enabled",
        "region",
        "api_url",
        "header",
        "username",
        "requests_per_minute",
        "required_permissions",
        "forbidden_permissions",
        "required_scopes",
        "forbidden_scopes",
        "cert",
        "key",
        "client_ca",
        "client_cert",
        "active",
        "keys.k1",
    ];
    for option in optional {
        let commented =
            |line: &str| line.starts_with('#') && line.trim_start_matches("# ").starts_with(&format!("{option} = "));
        assert!(DEFAULTS.lines().any(commented), "{option}");
    }
    let set: BTreeSet<&str> = DEFAULTS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = ").map(|(key, _)| key))
        .collect();
    assert!(set.len() > 25, "{set:?}");
    let lines: Vec<&str> = DEFAULTS.lines().collect();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| !line.starts_with('#') && line.contains(" = ")) {
        assert!(lines[number - 1].starts_with('#'), "{line} is not explained");
    }
}

#[test]
fn usage_errors_end_with_64_and_help_with_0() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_profile-edge"));
        command.args(arguments).stdin(Stdio::null()).output().unwrap()
    };
    assert_eq!(run(&["--no-such-flag"]).status.code(), Some(64));
    assert_eq!(run(&["run", "--config", "no-such-file.toml"]).status.code(), Some(64));
    assert_eq!(run(&["--role", "cook"]).status.code(), Some(64));
    let complaint = text(&run(&["--role", "lookups"]).stderr);
    assert!(complaint.contains("flag --role: ") && complaint.contains("the nearest is \"lookup\""), "{complaint}");
    // Nothing listens on port 9.
    let admin =
        |arguments: &str| run(&format!("{arguments} --admin http://127.0.0.1:9").split(' ').collect::<Vec<_>>());
    for (arguments, code, reason) in [
        ("replay --since abc", 64, "--since: "),
        ("replay --since 2h --until 3h", 64, "--until: "),
        ("replay --since 2h --rate 0", 64, "--rate: "),
        ("replay --since 15days --from-genesys", 64, "--since: "),
        ("replay --since 2h --tenant bad/tenant", 64, "--tenant"),
        ("inspect --tenant bad/tenant --customer c", 64, "--tenant"),
        ("inspect --tenant 10001 --customer a/b", 64, "--customer: "),
        ("invalidate --tenant 10001 --customer ..", 64, "--customer: "),
        ("clear --tenant bad/tenant", 64, "--tenant"),
        ("dead-letters list --limit 0", 64, "--limit"),
        ("outbox drain --timeout 11m", 64, "from 1s to 10m"),
        ("replay --since 2h --rate 5", 69, "127.0.0.1:9"),
        ("inspect --tenant 10001 --customer c", 69, "127.0.0.1:9"),
    ] {
        let ended = admin(arguments);
        assert_eq!(ended.status.code(), Some(code), "{arguments}: {}", text(&ended.stderr));
        assert!(text(&ended.stderr).contains(reason), "{arguments}: {}", text(&ended.stderr));
    }
    let complaint = text(&run(&["sandbox", "--listen", "localhost:8082"]).stderr);
    assert!(complaint.contains("127.0.0.1:8082"), "{complaint}");
    assert!(text(&run(&["completions", "bash"]).stdout).contains("dead-letters"));
    assert!(text(&run(&["man"]).stdout).starts_with(".ie"));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
    assert_eq!(run(&["hash-key"]).status.code(), Some(64));
    let document: serde_json::Value = serde_json::from_slice(&run(&["openapi"]).stdout).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/api/v1/profile"]["get"].is_object());
}

#[test]
fn a_short_key_is_hashed_with_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    for (key, is_warned) in [("fifteen-letters", true), ("sixteen-letters!", false)] {
        let file = directory.path().join("key");
        std::fs::write(&file, key).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_profile-edge"));
        let output = command.arg("hash-key").stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
        assert_eq!(text(&output.stdout).trim_end(), hex::encode(Sha256::digest(key)));
        assert_eq!(text(&output.stderr).contains("fewer than 16 bytes"), is_warned, "{key}");
    }
}

/// What a production file's secret holds, by the file's name.
fn example_of(secret: &str) -> String {
    match secret.split('-').next().unwrap() {
        "keys" | "audit" | "sealing" => "cGxhbnRlZC1wbGFudGVkLXBsYW50ZWQtcGxhbnRlZC0xMjM=\n".to_owned(),
        "redis" => format!("rediss://edge:planted@{secret}.internal:26379\n"),
        "rabbitmq" => format!("amqps://edge:planted@{secret}.internal:5671/profile-edge\n"),
        _ => format!("planted-{secret}\n"),
    }
}

/// Returns the digests of keys in a text.
fn key_digests(text: &str) -> BTreeSet<String> {
    let is_digest = |word: &&str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter(is_digest).map(str::to_owned).collect()
}

/// A copied example would give access to whoever knows its key.
#[test]
fn no_digest_of_an_example_can_be_used_as_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let demo = ["demo-key", "demo-admin"].map(|key| hex::encode(Sha256::digest(key)));
    let directory = tempfile::tempdir().unwrap();
    let mut examples = 0;
    for page in ["README.md", "conf", "compose", "compose/conf", "dashboards"] {
        let path = root.join(page);
        let inside = std::fs::read_dir(&path).into_iter().flatten().map(|entry| entry.unwrap().path());
        for file in inside.chain([path.clone()]).filter(|file| file.is_file()) {
            for digest in key_digests(&std::fs::read_to_string(&file).unwrap()) {
                if demo.contains(&digest) || digest.bytes().all(|digit| digit == b'0') {
                    continue;
                }
                let settings = format!("{TENANT}{}", caller("*").replace(&"a".repeat(64), &digest));
                let output = check(directory.path(), &settings, &[], &SECRETS);
                assert_eq!(output.status.code(), Some(64), "{}: {digest}", file.display());
                assert!(text(&output.stderr).contains("caller[0].key_sha256"), "{}", text(&output.stderr));
                examples += 1;
            }
        }
    }
    assert!(examples >= 3, "those of conf/production.toml");
}

#[test]
fn the_production_example_needs_nothing_but_its_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let (secrets, certificates) = (directory.path().join("secrets"), directory.path().join("certificates"));
    std::fs::create_dir(&secrets).unwrap();
    std::fs::create_dir(&certificates).unwrap();
    let example = include_str!("../../conf/production.toml");
    let settings = example
        .replace("/run/secrets/", &format!("{}/", secrets.display()))
        .replace("/etc/profile-edge/", &format!("{}/", certificates.display()));
    // The examples of digests are refused: each is replaced by the digest of a key.
    let digests = key_digests(&settings);
    let settings = digests.iter().enumerate().fold(settings.clone(), |text, (number, digest)| {
        text.replace(digest, &hex::encode(Sha256::digest(format!("key-{number}"))))
    });
    let missing = check(directory.path(), &settings, &[], &[]);
    assert_eq!(missing.status.code(), Some(64), "its secrets are elsewhere");

    let quoted =
        settings.lines().filter(|line| !line.starts_with('#')).flat_map(|line| line.split('"').skip(1).step_by(2));
    let mut written = 0;
    for value in quoted {
        let path = Path::new(value.strip_prefix("file:").unwrap_or(value));
        if path.starts_with(directory.path()) {
            std::fs::write(path, example_of(path.file_name().unwrap().to_str().unwrap())).unwrap();
            written += 1;
        }
    }
    assert!(written > 10, "its secrets and certificates were found");
    let output = check(directory.path(), &settings, &[], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    assert!(!printed.contains("planted"), "{printed}");
    for setting in ["security.require_tls = true", "store.kind = \"redis\"", "queue.kind = \"amqp\""] {
        assert!(printed.lines().any(|line| line.starts_with(setting)), "{setting}: {printed}");
    }
    for role in ["ingest", "consumer", "lookup"] {
        let output = check(directory.path(), &settings, &[], &[("PROFILE_EDGE__ROLES", role)]);
        assert_eq!(output.status.code(), Some(0), "{role}: {}", text(&output.stderr));
    }
}

#[test]
fn the_configuration_of_the_compose_stacks_is_valid() {
    let directory = tempfile::tempdir().unwrap();
    let output = check(directory.path(), include_str!("../../compose/conf/profile-edge.toml"), &[], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}
