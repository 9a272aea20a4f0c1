//! Authentication and authorization of lookups: which callers are accepted, and which fields each sees.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use profile_edge::clock::SystemClock;
use profile_edge::sandbox::{Sandbox, SandboxOptions};
use profile_edge::shutdown::{Controller, Shutdown};
use reqwest::RequestBuilder;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::support::edge::{Edge, LookupAnswer, flat, looked};
use crate::support::{PATIENCE, customer, eventually};

/// The key that signs tokens, before base64.
const TOKEN_SECRET: [u8; 32] = [7; 32];

/// A configured caller. Its key is `key-of-` and its name.
struct CallerCase {
    name: &'static str,
    tenants: &'static [&'static str],
    fields: &'static [&'static str],
    /// The fields that it sees for each of [`ASKED`]; `None` where the request must be refused.
    sees: [Option<&'static [&'static str]>; 6],
}

/// The values of the `fields` parameter.
const ASKED: [Option<&str>; 6] =
    [None, Some("id"), Some("workPhone.e164"), Some("workPhone"), Some("firstName,id"), Some("*")];

const EVERYTHING: &[&str] = &["*"];
const NARROW: &[&str] = &["id", "workPhone.e164"];

/// The configured callers, and what each must see.
const CALLERS: [CallerCase; 5] = [
    CallerCase { name: "one", tenants: &["10001"], fields: &["*"], sees: ALL_OF_IT },
    CallerCase { name: "both", tenants: &["10001", "10002"], fields: &["*"], sees: ALL_OF_IT },
    CallerCase {
        name: "narrow",
        tenants: &["10002"],
        fields: NARROW,
        sees: [Some(NARROW), Some(&["id"]), Some(&["workPhone.e164"]), None, None, Some(NARROW)],
    },
    CallerCase {
        name: "blind",
        tenants: &["10001"],
        fields: &[],
        sees: [Some(&[]), None, None, None, None, Some(&[])],
    },
    CallerCase { name: "nowhere", tenants: &[], fields: &["*"], sees: [None; 6] },
];

const ALL_OF_IT: [Option<&[&str]>; 6] = [
    Some(EVERYTHING),
    Some(&["id"]),
    Some(&["workPhone.e164"]),
    Some(&["workPhone"]),
    Some(&["firstName", "id"]),
    Some(EVERYTHING),
];

/// Two configured tenants, and one that is not configured.
const TENANTS: [&str; 3] = ["10001", "10002", "10003"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LookupRoute {
    Get,
    Post,
    Contact,
}

const ROUTES: [LookupRoute; 3] = [LookupRoute::Get, LookupRoute::Post, LookupRoute::Contact];

#[derive(Clone, Debug)]
enum CallerCredential {
    None,
    ApiKey(String),
    Bearer(String),
    Basic(String, String),
}

/// An edge with two tenants. Each has its own sandbox, whose customers have different names.
struct TwoTenantEdge {
    edge: Edge,
    /// The profile of customer 1 at each tenant's sandbox.
    profiles: [Value; 2],
    sandboxes: [Controller; 2],
}

impl TwoTenantEdge {
    async fn start(more: &str) -> Self {
        let (first, one) = sandbox().await;
        let (second, two) = sandbox().await;
        let edge = Edge::start_with(&format!("{more}{}", settings([first, second]))).await;
        let url = |address| format!("http://{address}/api/v2/externalcontacts/contacts/{}", customer(1));
        let rename = edge.client.patch(url(second)).bearer_auth("sandbox-editor");
        assert!(rename.json(&json!({ "firstName": "Other" })).send().await.unwrap().status().is_success());
        let profile = async |address| {
            let request = edge.client.get(url(address)).bearer_auth("sandbox-editor");
            request.send().await.unwrap().json::<Value>().await.unwrap()
        };
        let profiles = [profile(first).await, profile(second).await];
        assert_ne!(profiles[0]["firstName"], profiles[1]["firstName"]);
        Self { edge, profiles, sandboxes: [one, two] }
    }

    async fn ask(
        &self,
        route: LookupRoute,
        credential: &CallerCredential,
        tenant: &str,
        fields: Option<&str>,
    ) -> LookupAnswer {
        let one = customer(1);
        let request = match route {
            LookupRoute::Get => {
                let request = self.edge.client.get(self.edge.url("/api/v1/profile"));
                let request = request.query(&[("tenantId", tenant), ("customerId", &one)]);
                request.query(&fields.map(|fields| ("fields", fields)).as_slice())
            }
            LookupRoute::Post => {
                let body = json!({ "tenantId": tenant, "customerId": one, "fields": fields });
                self.edge.client.post(self.edge.url("/api/v1/profile")).json(&body)
            }
            LookupRoute::Contact => {
                let path = format!("/api/v2/externalcontacts/contacts/{one}");
                self.edge.client.get(self.edge.url(&path)).header("X-Tenant-Id", tenant)
            }
        };
        looked(credential.show(request).send().await.unwrap()).await
    }

    async fn token(&self, name: &str) -> String {
        let form = [("grant_type", "client_credentials"), ("client_id", name), ("client_secret", &key_of(name))];
        let answer: Value = self
            .edge
            .client
            .post(self.edge.url("/oauth/token"))
            .form(&form)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    }

    async fn stop(self) {
        self.edge.stop().await;
        for sandbox in self.sandboxes {
            assert!(sandbox.drain(PATIENCE).await);
        }
    }
}

impl CallerCredential {
    fn show(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::None => request,
            Self::ApiKey(key) => request.header("X-API-Key", key),
            Self::Bearer(token) => request.bearer_auth(token),
            Self::Basic(name, key) => request.basic_auth(name, Some(key)),
        }
    }
}

fn key_of(name: &str) -> String {
    format!("key-of-{name}")
}

async fn sandbox() -> (SocketAddr, Controller) {
    let (controller, shutdown) = Shutdown::new();
    let listen = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    let options = SandboxOptions { listen, customers: 10, latency: Duration::ZERO, webhook: None };
    let sandbox = Sandbox::start(options, SystemClock::shared(), shutdown).await.unwrap();
    (sandbox.addr, controller)
}

fn settings(sandboxes: [SocketAddr; 2]) -> String {
    let tenants = TENANTS.iter().zip(sandboxes).map(|(id, address)| {
        format!(
            "[[tenant]]\nid = \"{id}\"\nupstream = {{ api_url = \"http://{address}\", login_url = \"http://{address}\", \
             client_id = \"sandbox\", client_secret = \"sandbox\" }}\n\
             [[tenant.webhook]]\nscheme = \"api-key\"\nsecrets = [\"the-secret-of-{id}\"]\n"
        )
    });
    let callers = CALLERS.iter().map(|caller| {
        let key = hex::encode(Sha256::digest(key_of(caller.name)));
        let (name, tenants, fields) = (caller.name, caller.tenants, caller.fields);
        format!("[[caller]]\nname = \"{name}\"\nkey_sha256 = \"{key}\"\ntenants = {tenants:?}\nfields = {fields:?}\n")
    });
    let http = format!("[http]\ntoken_secret = \"{}\"\n", STANDARD.encode(TOKEN_SECRET));
    std::iter::once(http).chain(tenants).chain(callers).collect()
}

/// Returns these fields of a profile.
fn part(profile: &Value, fields: &[&str]) -> Value {
    let mut seen = Map::new();
    for field in fields {
        match field.split_once('.') {
            None if *field == "*" => return profile.clone(),
            None => drop(seen.insert((*field).to_owned(), profile[*field].clone())),
            Some((outer, inner)) => drop(seen.insert(outer.to_owned(), json!({ inner: profile[outer][inner] }))),
        }
    }
    seen.into()
}

/// Returns an error answer without the id of its request.
fn without_request_id(answer: &LookupAnswer) -> (u16, Value) {
    let mut body = answer.json();
    if let Some(body) = body.as_object_mut() {
        body.remove("contextId");
    }
    (answer.status, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_credential_form_grants_exactly_the_configured_fields() {
    let world = TwoTenantEdge::start("").await;
    let mut asked_for = 0;
    for caller in &CALLERS {
        let (name, key) = (caller.name.to_owned(), key_of(caller.name));
        let credentials = [
            CallerCredential::ApiKey(key.clone()),
            CallerCredential::Bearer(key.clone()),
            CallerCredential::Basic(name, key),
            CallerCredential::Bearer(world.token(caller.name).await),
        ];
        for (credential, route, (index, tenant)) in credentials
            .iter()
            .flat_map(|credential| ROUTES.map(|route| (credential, route)))
            .flat_map(|(credential, route)| TENANTS.iter().enumerate().map(move |at| (credential, route, at)))
        {
            let granted = caller.tenants.contains(tenant);
            for (fields, sees) in ASKED.iter().zip(caller.sees) {
                if route == LookupRoute::Contact && fields.is_some() {
                    continue;
                }
                let answer = world.ask(route, credential, tenant, *fields).await;
                let what = format!("{} {route:?} {tenant} {fields:?}: {}", caller.name, answer.text);
                asked_for += 1;
                let sees = sees.filter(|sees| granted && (route != LookupRoute::Contact || *sees == EVERYTHING));
                match sees {
                    Some(sees) => {
                        assert_eq!(answer.status, 200, "{what}");
                        assert_eq!(answer.json(), part(&world.profiles[index], sees), "{what}");
                    }
                    None => assert_eq!(answer.status, 403, "{what}"),
                }
            }
        }
    }
    // callers × credentials × tenants × (GET and POST with each `fields` parameter, and the contact route)
    assert_eq!(asked_for, 5 * 4 * 3 * (2 * 6 + 1));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_invalid_credentials_get_the_same_answer() {
    let world = TwoTenantEdge::start("").await;
    let token = world.token("one").await;
    let claims = |token: &str| {
        let claims = token.split('.').nth(1).unwrap();
        serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
    };
    let with = |name: &str, value: Value| {
        let mut claims = claims(&token);
        claims[name] = value;
        claims
    };
    let hs256 = json!({ "alg": "HS256", "typ": "JWT" });
    let far = claims(&token)["exp"].as_i64().unwrap() + 60;
    // A token signed here is accepted, so each token below is refused for its own fault.
    let good = CallerCredential::Bearer(signed(&TOKEN_SECRET, &hs256, &with("exp", far.into())));
    assert_eq!(world.ask(LookupRoute::Get, &good, "10001", None).await.status, 200);

    let unsigned = signed(&TOKEN_SECRET, &json!({ "alg": "none", "typ": "JWT" }), &claims(&token));
    let unsigned_and_bare = format!("{}.", unsigned.rsplit_once('.').unwrap().0);
    let other_key = claims(&world.token("both").await)["key"].clone();
    let bearers = [
        ("a wrong key", "key-of-nobody".to_owned()),
        ("an expired token", signed(&TOKEN_SECRET, &hs256, &with("exp", 1_700_000_000.into()))),
        ("a foreign-signed token", signed(&[8; 32], &hs256, &with("exp", far.into()))),
        (
            "a token with another subject, signed with a wrong key",
            signed(&[8; 32], &hs256, &with("sub", "both".into())),
        ),
        ("a token of an unknown caller", signed(&TOKEN_SECRET, &hs256, &with("sub", "nobody".into()))),
        ("a token of a replaced key", signed(&TOKEN_SECRET, &hs256, &with("key", other_key))),
        ("an altered token", token.replacen("eyJ", "eyK", 1)),
        ("a truncated token", token[..token.len() - 1].to_owned()),
        ("a token with alg none", unsigned),
        ("a token with alg none and no signature", unsigned_and_bare),
        ("the hash of a key", hex::encode(Sha256::digest(key_of("one")))),
    ];
    let attempts = bearers.into_iter().map(|(what, token)| (what, CallerCredential::Bearer(token))).chain([
        ("nothing", CallerCredential::None),
        ("a wrong key as an api key", CallerCredential::ApiKey("key-of-nobody".to_owned())),
        ("a token as an api key", CallerCredential::ApiKey(token.clone())),
        ("another caller's key", CallerCredential::Basic("one".to_owned(), key_of("both"))),
        ("an unknown caller name", CallerCredential::Basic("nobody".to_owned(), key_of("one"))),
    ]);
    let attempts: Vec<_> = attempts.collect();
    for route in ROUTES {
        let nobody = CallerCredential::ApiKey("key-of-nobody".to_owned());
        let expected = without_request_id(&world.ask(route, &nobody, "10001", None).await);
        assert_eq!(expected.0, 401);
        for (what, credential) in &attempts {
            let answer = world.ask(route, credential, "10001", None).await;
            if matches!((route, *what), (LookupRoute::Contact, "nothing")) {
                // Genesys names a request without a credential in its own way.
                assert_eq!((answer.status, &answer.json()["code"]), (401, &json!("authentication.required")));
            } else {
                assert_eq!(without_request_id(&answer), expected, "{what}");
            }
            assert!(answer.headers.contains_key("www-authenticate"), "{what}");
        }
        // The answer does not show whether a tenant exists.
        let foreign = world.ask(route, &CallerCredential::ApiKey(key_of("one")), "10002", None).await;
        let unknown = world.ask(route, &CallerCredential::ApiKey(key_of("one")), "10003", None).await;
        assert_eq!((foreign.status, without_request_id(&foreign)), (403, without_request_id(&unknown)));
    }
    let refused = world.edge.metric("profile_edge_auth_failures_total{door=\"lookup\"}").await;
    assert_eq!(refused, (ROUTES.len() * (attempts.len() + 1)) as f64);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contact_lookup_uses_the_only_tenant_or_the_one_in_the_header() {
    let world = TwoTenantEdge::start("").await;
    let ask = async |name: &str, tenants: &[&str]| {
        let request =
            world.edge.client.get(world.edge.url(&format!("/api/v2/externalcontacts/contacts/{}", customer(1))));
        let request =
            tenants.iter().fold(request.bearer_auth(key_of(name)), |it, tenant| it.header("X-Tenant-Id", *tenant));
        looked(request.send().await.unwrap()).await
    };
    assert_eq!(ask("one", &[]).await.json(), world.profiles[0]);
    assert_eq!(ask("both", &["10002"]).await.json(), world.profiles[1]);
    for (name, tenants, status) in
        [("both", &[][..], 400), ("both", &["10001", "10001"], 400), ("both", &["a b"], 400), ("one", &["10002"], 403)]
    {
        assert_eq!(ask(name, tenants).await.status, status, "{name} {tenants:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_share_neither_entries_nor_events() {
    let world = TwoTenantEdge::start("").await;
    let ask = async |tenant| world.ask(LookupRoute::Get, &CallerCredential::ApiKey(key_of("both")), tenant, None).await;
    for (tenant, profile) in TENANTS.iter().zip(&world.profiles) {
        assert_eq!(ask(tenant).await.cache_status, "profile-edge; fwd=miss; stored");
        let hit = ask(tenant).await;
        assert!(hit.is_hit());
        assert_eq!(hit.json(), *profile);
    }
    let post = world.edge.client.post(world.edge.url("/webhooks/10001")).header("X-API-Key", "the-secret-of-10001");
    assert_eq!(post.json(&flat(&customer(1))).send().await.unwrap().status(), 202);
    world.edge.applied("updated", 1.0).await;
    assert!(ask("10002").await.is_hit());
    assert!(ask("10001").await.cache_status.starts_with("profile-edge; fwd=miss; stored"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_tag_depends_only_on_the_fields_that_are_sent() {
    let key = hex::encode(Sha256::digest("narrow"));
    let settings = format!(
        "[[caller]]\nname = \"narrow\"\nkey_sha256 = \"{key}\"\ntenants = [\"10001\"]\n\
         fields = [\"id\", \"firstName\"]\n"
    );
    let edge = Edge::start_with(&settings).await;
    let one = customer(1);
    let ask = async |tag: &str| {
        let url = edge.url(&format!("/api/v1/profile?tenantId=10001&customerId={one}"));
        let request = edge.client.get(url).header("X-API-Key", "narrow").header("If-None-Match", tag);
        looked(request.send().await.unwrap()).await
    };
    let first = ask("\"none\"").await;
    let tag = first.headers["etag"].to_str().unwrap().to_owned();
    let of_the_bytes = hex::encode(&Sha256::digest(&first.text)[..16]);
    assert_eq!(tag, format!("\"{of_the_bytes}\""), "the tag is made of the bytes that are sent");

    edge.change(&one, json!({ "lastName": "Unseen" })).await;
    edge.applied("updated", 1.0).await;
    assert_eq!(ask(&tag).await.status, 304, "a change that the caller cannot see does not change the tag");
    edge.change(&one, json!({ "firstName": "Seen" })).await;
    edge.applied("updated", 2.0).await;
    let changed = ask(&tag).await;
    assert_eq!((changed.status, changed.json()["firstName"].as_str()), (200, Some("Seen")));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_over_its_rate_limit_gets_429_and_a_retry_time() {
    let key = hex::encode(Sha256::digest("slow"));
    let settings = format!(
        "[[caller]]\nname = \"slow\"\nkey_sha256 = \"{key}\"\ntenants = [\"10001\"]\nfields = [\"*\"]\n\
         requests_per_second = 2\n"
    );
    let edge = Edge::start_with(&settings).await;
    let ask = async |path: &str| {
        let request = edge.client.get(edge.url(path)).header("X-API-Key", "slow");
        looked(request.send().await.unwrap()).await
    };
    let over = async |path: &str| {
        for _ in 0..1000 {
            let answer = ask(path).await;
            assert_eq!(answer.headers["ratelimit-policy"], "\"caller\";q=2;w=1");
            if answer.status == 429 {
                return answer;
            }
            assert!(answer.headers["ratelimit"].to_str().unwrap().starts_with("\"caller\";r="));
        }
        panic!("the rate limit is never reached");
    };
    let problem = over(&format!("/api/v1/profile?tenantId=10001&customerId={}", customer(1))).await;
    assert_eq!(
        (&problem.json()["code"], &problem.headers["retry-after"]),
        (&Value::from("rate_exceeded"), &"1".parse().unwrap())
    );
    assert_eq!(problem.headers["ratelimit"], "\"caller\";r=0;t=1");
    // With a Retry-After, an SDK would retry ten times, as it does for Genesys.
    let as_genesys = over(&format!("/api/v2/externalcontacts/contacts/{}", customer(1))).await;
    assert_eq!(as_genesys.json()["code"], "too.many.requests");
    assert!(!as_genesys.headers.contains_key("retry-after"));
    assert!(edge.metric("profile_edge_lookup_throttled_total").await >= 2.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_endpoint_follows_rfc_6749() {
    let edge = Edge::start().await;
    let post = |path: &str| edge.client.post(edge.url(path));
    let form = [("grant_type", "client_credentials")];
    for path in ["/oauth/token", "/login/oauth/token"] {
        let granted = looked(post(path).basic_auth("demo", Some("demo-key")).form(&form).send().await.unwrap()).await;
        assert_eq!((granted.status, &granted.headers["cache-control"]), (200, &"no-store".parse().unwrap()));
        let body = granted.json();
        assert_eq!((&body["token_type"], &body["expires_in"]), (&Value::from("bearer"), &Value::from(86_400)));
        let request = edge.client.get(edge.url("/api/v1/profile")).bearer_auth(body["access_token"].as_str().unwrap());
        let request = request.query(&[("tenantId", "10001"), ("customerId", &customer(1))]);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    let with = |name: &str, key: &str| post("/oauth/token").basic_auth(name, Some(key));
    let all = |form: &[(&str, &str)]| post("/oauth/token").form(form);
    let refusals = [
        (post("/oauth/token").form(&form), 401, "invalid_client"),
        (with("demo", "wrong").form(&form), 401, "invalid_client"),
        (with("wrong", "demo-key").form(&form), 401, "invalid_client"),
        (post("/oauth/token").bearer_auth("demo-key").form(&form), 401, "invalid_client"),
        (all(&[("grant_type", "client_credentials"), ("client_id", "demo")]), 401, "invalid_client"),
        (with("demo", "demo-key"), 400, "invalid_request"),
        (with("demo", "demo-key").form(&[form[0], form[0]]), 400, "invalid_request"),
        (with("demo", "demo-key").form(&[form[0], ("client_secret", "demo-key")]), 400, "invalid_request"),
        (with("demo", "demo-key").json(&json!({ "grant_type": "client_credentials" })), 400, "invalid_request"),
        (with("demo", "demo-key").form(&[("grant_type", "password")]), 400, "unsupported_grant_type"),
        (with("demo", "demo-key").form(&[("grant_type", "x".repeat(20_000))]), 413, "invalid_request"),
    ];
    for (request, status, error) in refusals {
        let refused = looked(request.send().await.unwrap()).await;
        assert_eq!((refused.status, &refused.json()["error"]), (status, &Value::from(error)), "{}", refused.text);
        assert_eq!(refused.headers["cache-control"], "no-store");
        assert_eq!(refused.headers.contains_key("www-authenticate"), status == 401);
    }
    assert_eq!(edge.metric("profile_edge_auth_failures_total{door=\"token\"}").await, 5.0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_beyond_loopback_names_tenants_to_operators_only() {
    let genesys = Edge::start().await;
    let sandbox = genesys.sandbox_address();
    let digest = |key: &str| hex::encode(Sha256::digest(key));
    let settings = format!(
        "security.require_tls = false\nadmin = {{ listen = \"0.0.0.0:0\", key_sha256 = \"{}\" }}\n[[tenant]]\nid = \"bank-7\"\n\
         upstream = {{ api_url = \"http://{sandbox}\", login_url = \"http://{sandbox}\", client_id = \"editor\", client_secret = \"editor\" }}\n\
         [[caller]]\nname = \"one\"\nkey_sha256 = \"{}\"\ntenants = [\"bank-7\"]\nfields = [\"*\"]\n",
        digest("operator-key"),
        digest(&key_of("one")),
    );
    let edge = Edge::start_with(&settings).await;
    let request = edge.client.get(edge.url("/api/v1/profile")).header("X-API-Key", key_of("one"));
    let request = request.query(&[("tenantId", "bank-7"), ("customerId", &customer(1))]);
    assert_eq!(looked(request.send().await.unwrap()).await.json()["code"], "privileges");
    let readyz = || edge.client.get(format!("http://127.0.0.1:{}/readyz", edge.admin.port()));
    let ready = async |request: RequestBuilder| looked(request.send().await.unwrap()).await;
    let whole = eventually("the reason is known", || async {
        let answer = ready(readyz().bearer_auth("operator-key")).await;
        answer.json()["reasons"].is_object().then_some(answer)
    })
    .await;
    assert_eq!(whole.json()["degraded"], json!(["upstream:bank-7"]));
    assert!(whole.text.contains("externalContacts:contact:edit"), "{}", whole.text);
    for request in [readyz(), readyz().bearer_auth("wrong"), readyz().header("X-API-Key", "operator-key")] {
        let part = ready(request).await;
        assert_eq!((part.status, part.json()), (200, json!({ "status": "degraded", "degraded": ["upstream"] })));
    }
    edge.stop().await;
    genesys.stop().await;
}

/// Signs a token with any key, header and claims.
fn signed(key: &[u8], header: &Value, claims: &Value) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let mac = Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(&signed).finalize();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.into_bytes()))
}
