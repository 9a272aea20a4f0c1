//! The cost of each webhook scheme: the verification of one request, as a ratio to `api-key`.
//!
//! Run with `cargo bench --bench schemes`. The rounds of all schemes alternate in one run, so that the ratios do not depend
//! on the machine. The body has the size of an EventBridge event, and each scheme has two secrets, of which the second
//! matches. It is not a test: nothing here fails because a machine is slow.

use std::hint::black_box;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use profile_edge::domain::{Secret, Timestamp};
use profile_edge::ingest::authenticate::{Authenticator, Config, ReceivedRequest, Scheme, verify};
use sha2::Sha256;
use tokio::time::Instant;

const ROUNDS: usize = 15;
const CALLS: u32 = 2_000;
const BODY: usize = 2_048;
const SECONDS: i64 = 1_614_265_330;
const SECRET: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A scheme and a request that it accepts.
struct SchemeCase {
    name: &'static str,
    authenticators: Vec<Authenticator>,
    headers: HeaderMap,
}

fn main() {
    // `cargo test --benches` also runs this binary, to check that it starts; only `cargo bench` creates load.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("schemes: run with cargo bench --bench schemes");
        return;
    }
    let body = vec![b'x'; BODY];
    let cases = cases(&body);
    let mut times: Vec<Vec<Duration>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (case, times) in cases.iter().zip(&mut times) {
            times.push(round(case, &body));
        }
    }
    println!("body of {BODY} bytes, two secrets each, {ROUNDS} rounds of {CALLS} requests");
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    for (case, time) in cases.iter().zip(&medians) {
        let ratio = time.as_secs_f64() / medians[0].as_secs_f64();
        println!("{:<18} {:>8.2} µs   {ratio:>6.2} × api-key", case.name, time.as_secs_f64() * 1e6 / f64::from(CALLS));
    }
}

fn round(case: &SchemeCase, body: &[u8]) -> Duration {
    let now = Timestamp::from_millis(SECONDS * 1_000);
    let request = ReceivedRequest { headers: &case.headers, body, peer: None };
    let started = Instant::now();
    for _ in 0..CALLS {
        let proof = verify(black_box(&case.authenticators), black_box(&request), now);
        assert!(proof.is_some(), "{} accepts its request", case.name);
    }
    started.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn cases(body: &[u8]) -> Vec<SchemeCase> {
    let signature = STANDARD.encode(mac(SECRET.as_bytes(), &[body]));
    let key = STANDARD.decode(SECRET).expect("the secret is base64");
    let standard = STANDARD.encode(mac(&key, &[b"msg_1.1614265330.", body]));
    vec![
        case("api-key", Scheme::ApiKey, &[("x-api-key", SECRET.to_owned())]),
        case(
            "basic",
            Scheme::Basic,
            &[("authorization", format!("Basic {}", STANDARD.encode(format!("user:{SECRET}"))))],
        ),
        case("bearer", Scheme::Bearer, &[("authorization", format!("Bearer {SECRET}"))]),
        case("hub-signature", Scheme::HubSignature, &[("x-hub-signature-256", format!("sha256={signature}"))]),
        case(
            "standard-webhooks",
            Scheme::StandardWebhooks,
            &[
                ("webhook-id", "msg_1".to_owned()),
                ("webhook-timestamp", SECONDS.to_string()),
                ("webhook-signature", format!("v1,{standard}")),
            ],
        ),
    ]
}

fn case(name: &'static str, scheme: Scheme, head: &[(&'static str, String)]) -> SchemeCase {
    let secrets = ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", SECRET].map(Secret::new).to_vec();
    let username = (scheme == Scheme::Basic).then(|| "user".to_owned());
    let config = Config { scheme, header: None, username, secrets, networks: None };
    let value = |text: &str| HeaderValue::from_str(text).expect("a header's value");
    let headers = head.iter().map(|(name, text)| (HeaderName::from_static(name), value(text))).collect();
    SchemeCase {
        name,
        authenticators: vec![Authenticator::new(&config).expect("the configuration is usable")],
        headers,
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("hmac takes keys of any length");
    parts.iter().fold(mac, Mac::chain_update).finalize().into_bytes().into()
}
