//! The files of `conf/genesys`: each parses, and the data actions get from the running service what they map.

use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Map, Value, json};
use serde_json_path::JsonPath;

use crate::laws::files_below;
use crate::support::customer;
use crate::support::edge::{DEMO_KEY_SHA256, Edge, chunked, flat, with_sandbox_of};

/// The host that the files name.
const HOST: &str = "https://edge.example.com";

/// Fills a template: `${input.NAME}`, `$esc.jsonString(${input.NAME})` and `${credentials.apiKey}`.
fn fill(template: &str, input: &Value, key: &str) -> String {
    let mut text = template.replace("${credentials.apiKey}", key);
    for (name, value) in input.as_object().unwrap() {
        let plain = value.as_str().unwrap();
        let quoted = Value::from(plain).to_string();
        text = text.replace(&format!("$esc.jsonString(${{input.{name}}})"), &quoted[1..quoted.len() - 1]);
        text = text.replace(&format!("${{input.{name}}}"), plain);
    }
    assert!(!text.contains("${") && !text.contains("$esc"), "a placeholder is left: {text}");
    text
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/genesys")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

fn json_of(name: &str) -> Value {
    serde_json::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Sends the request of a data action, as Genesys would, and returns status and body.
async fn execute(edge: &Edge, action: &Value, input: &Value, key: &str) -> (u16, Value) {
    let request = &action["config"]["request"];
    let url = fill(request["requestUrlTemplate"].as_str().unwrap(), input, key);
    let url = url.replace(HOST, &format!("http://{}", edge.public));
    let method: Method = request["requestType"].as_str().unwrap().parse().unwrap();
    let mut sent = edge.client.request(method, url);
    for (name, value) in request["headers"].as_object().unwrap() {
        sent = sent.header(name, fill(value.as_str().unwrap(), input, key));
    }
    let body = fill(request["requestTemplate"].as_str().unwrap(), input, key);
    // Genesys sends bodies in chunks unless it is told otherwise.
    let answer = sent.body(chunked(body.as_bytes())).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Maps an answer through the translation map, its defaults and the template, as a data action does.
fn translate(action: &Value, body: &Value) -> Map<String, Value> {
    let response = &action["config"]["response"];
    let mut output = response["successTemplate"].as_str().unwrap().to_owned();
    for (name, path) in response["translationMap"].as_object().unwrap() {
        let path = JsonPath::parse(path.as_str().unwrap()).unwrap();
        let found = path.query(body).at_most_one().unwrap().map(Value::to_string);
        let value = found.unwrap_or_else(|| response["translationMapDefaults"][name].as_str().unwrap().to_owned());
        output = output.replace(&format!("${{{name}}}"), &value);
    }
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// Asserts that an output has every field that the contract promises, of its type.
fn keeps_the_contract(action: &Value, output: &Map<String, Value>) {
    let promised = action["contract"]["output"]["successSchema"]["properties"].as_object().unwrap();
    for (name, schema) in promised {
        assert_eq!(schema["type"], "string");
        assert!(output.get(name).is_some_and(Value::is_string), "{name}: {output:?}");
    }
    assert_eq!(promised.len(), output.len());
}

#[test]
fn every_file_of_the_pack_parses() {
    let (mut parsed, files) = (0, files_below(&folder()));
    for name in &files {
        let text = read(name);
        match name.rsplit('.').next().unwrap() {
            "json" => drop(json_of(name)),
            // CloudFormation has tags such as !Ref, which a value keeps.
            "yaml" => {
                drop(serde_yaml_ng::from_str::<serde_yaml_ng::Value>(&text).unwrap_or_else(|e| panic!("{name}: {e}")))
            }
            "tf" => drop(hcl::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"))),
            _ => continue,
        }
        parsed += 1;
    }
    assert!(parsed >= 12, "{files:?}");
}

#[test]
fn data_actions_have_the_form_of_an_export() {
    for name in files_below(&folder()).iter().filter(|name| name.starts_with("data-action-")) {
        let action = json_of(name);
        let keys: Vec<&String> = action.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["actionType", "config", "contract", "integrationType", "name", "secure"], "{name}");
        let (input, response) = (&action["contract"]["input"]["inputSchema"], &action["config"]["response"]);
        let properties = input["properties"].as_object().unwrap();
        assert!(input["required"].as_array().unwrap().iter().all(|one| properties.contains_key(one.as_str().unwrap())));
        let (map, defaults) = (response["translationMap"].as_object(), response["translationMapDefaults"].as_object());
        assert!(map.unwrap().keys().eq(defaults.unwrap().keys()), "{name}: each output has a default");
        keeps_the_contract(&action, &translate(&action, &json!({})));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_action_maps_what_the_service_answers() {
    let edge = Edge::start().await;
    let action = json_of("data-action-profile-by-id.json");
    let ask = async |id: &str| execute(&edge, &action, &json!({ "contactId": id }), "demo-key").await;

    let (status, body) = ask(&customer(1)).await;
    let output = translate(&action, &body);
    keeps_the_contract(&action, &output);
    assert_eq!((status, &output["contactId"]), (200, &json!(customer(1))));
    assert!(["firstName", "lastName", "workEmail"].iter().all(|name| output[*name] != ""), "{output:?}");

    // A hostile input stays one value of the body.
    let (status, _) = ask("x\", \"tenantId\": \"10002").await;
    assert_eq!(status, 404);
    let unknown = ask("00000000-0000-4000-8000-0000ffffffff").await;
    edge.delete(&customer(2)).await;
    edge.applied("deleted", 1.0).await;
    let deleted = ask(&customer(2)).await;
    edge.behave(json!({ "fail_status": 503 })).await;
    let failing = ask(&customer(3)).await;
    for ((status, body), expected) in [(unknown, 404), (deleted, 410), (failing, 503)] {
        assert_eq!(status, expected, "{body}");
        let output = translate(&action, &body);
        keeps_the_contract(&action, &output);
        assert!(output.values().all(|value| value == ""), "{output:?}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_actions_find_a_contact_by_its_number_and_its_address() {
    let edge = Edge::start().await;
    edge.change(&customer(1), json!({ "workPhone": { "e164": "+12025550171" } })).await;
    edge.applied("updated", 1.0).await;
    let address = edge.look_up(&customer(1)).await.json()["workEmail"].clone();
    for (name, input, nobody, malformed) in [
        ("phone", json!("+12025550171"), "+12025550199", "anonymous"),
        ("phone", json!("tel:+12025550171"), "+12025550199", "sip:ada@example.com"),
        ("email", address, "nobody@example.com", "ada"),
    ] {
        let action = json_of(&format!("data-action-profile-by-{name}.json"));
        let ask = async |value: &Value| execute(&edge, &action, &json!({ name: value }), "demo-key").await;
        let (status, body) = ask(&input).await;
        let output = translate(&action, &body);
        keeps_the_contract(&action, &output);
        assert_eq!((status, &output["contactId"]), (200, &json!(customer(1))), "{body}");
        for (value, expected) in [(nobody, 404), (malformed, 400)] {
            let (status, body) = ask(&json!(value)).await;
            assert_eq!(status, expected, "{body}");
            assert!(translate(&action, &body).values().all(|value| value == ""), "{body}");
        }
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_a_caller_may_not_read_get_their_defaults() {
    let genesys = Edge::start().await;
    let narrow =
        with_sandbox_of(genesys.sandbox_address()).replace("fields = [\"*\"]", "fields = [\"id\", \"firstName\"]");
    assert!(narrow.contains(DEMO_KEY_SHA256));
    let edge = Edge::start_with(&narrow).await;
    let action = json_of("data-action-profile-by-id.json");
    let (status, body) = execute(&edge, &action, &json!({ "contactId": customer(1) }), "demo-key").await;
    let output = translate(&action, &body);
    keeps_the_contract(&action, &output);
    assert_eq!((status, &output["lastName"], &output["workPhone"]), (200, &json!(""), &json!("")));
    assert!(output["firstName"] != "");
    edge.stop().await;
    genesys.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_of_the_workflow_evicts() {
    let edge = Edge::start().await;
    edge.look_up(&customer(1)).await;
    let action = json_of("data-action-post-event.json");
    let input = json!({ "contactId": customer(1), "eventType": "customer.updated", "eventId": "workflow-1" });
    let (status, body) = execute(&edge, &action, &input, "demo-secret").await;
    let output = translate(&action, &body);
    assert_eq!((status, &output["status"]), (202, &json!("queued")));
    edge.applied("updated", 1.0).await;
    assert!(!edge.look_up(&customer(1)).await.is_hit());
    // The same as the flat form.
    assert_eq!(edge.post_event(&flat(&customer(1))).await.status(), 202);
    edge.stop().await;
}
