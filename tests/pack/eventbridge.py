"""Posts events of Genesys through an emulated Amazon EventBridge to profile-edge, with conf/genesys/eventbridge.yaml.

The way of an event: the sandbox sends it as Genesys does; moto takes it, matches it against the rule of the template, and delivers what matches; the request of the API destination reaches profile-edge; the customer is evicted.

moto does a part of this only:

- The bus of a partner has no rules there, because its name has slashes. So the bus has a plain name, which is a parameter of
  the template; the events keep the name of the partner as their source.
- Its CloudFormation knows neither connections nor API destinations nor queue policies. So the template is resolved here, and
  each resource is created with its own properties, by the call that CloudFormation would make.
- To an API destination it sends an empty request without the credential of the connection, and neither retries nor uses the
  dead-letter queue. So a second target of the same rule, a queue, gets what EventBridge delivers, and this check sends it as
  the documentation of API destinations says: header fields, credential, what is retried, when an event is given up.
"""

import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import boto3
from cfnlint.decode import cfn_yaml
from moto import mock_aws

from edge import Edge, customer, eventually, free_port

# https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-api-destinations.html
FIELDS = {
    "User-Agent": "Amazon/EventBridge/ApiDestinations",
    "Content-Type": "application/json; charset=utf-8",
    "Range": "bytes=0-1048575",
    "Accept-Encoding": "gzip,deflate",
    "Connection": "close",
}
RETRIED = {401, 407, 409, 429}
ANSWER_WAIT = 5.0


class Stack:
    """The resources of the template in moto."""

    def __init__(self, **parameters):
        template = json.loads(json.dumps(cfn_yaml.load("conf/genesys/eventbridge.yaml")))
        defaults = {name: given.get("Default") for name, given in template["Parameters"].items()}
        self.values = {**defaults, **parameters}
        assert set(self.values) == set(template["Parameters"]) and None not in self.values.values(), self.values
        self.resources, self.arns, self.ids = template["Resources"], {}, {}
        self.events, self.sqs, iam = boto3.client("events"), boto3.client("sqs"), boto3.client("iam")

        bus = self.values["EventBusName"]
        self.events.create_event_bus(Name=bus)

        self.connection = self.properties("Connection")
        created = self.events.create_connection(Name="Connection", **self.connection)
        self.arns["Connection"] = created["ConnectionArn"]
        self.destination = self.properties("Destination")
        created = self.events.create_api_destination(Name="Destination", **self.destination)
        self.arns["Destination"] = created["ApiDestinationArn"]
        self.dead_letters = self.queue("DeadLetters", self.properties("DeadLetters"))
        role = self.properties("InvokeRole")
        created = iam.create_role(
            RoleName="InvokeRole", AssumeRolePolicyDocument=json.dumps(role["AssumeRolePolicyDocument"])
        )
        self.arns["InvokeRole"] = created["Role"]["Arn"]
        rule = self.properties("ContactChanges")
        created = self.events.put_rule(
            Name="ContactChanges", EventBusName=rule["EventBusName"], EventPattern=json.dumps(rule["EventPattern"])
        )
        self.arns["ContactChanges"] = created["RuleArn"]
        (self.target,) = rule["Targets"]
        assert self.target["Arn"] == self.arns["Destination"], self.target
        assert self.target["DeadLetterConfig"]["Arn"] == self.arns["DeadLetters"], self.target
        self.tap = self.queue("Tap", {})
        tap = {"Id": "tap", "Arn": self.arns["Tap"]}
        put = self.events.put_targets(Rule="ContactChanges", EventBusName=bus, Targets=[self.target, tap])
        assert put["FailedEntryCount"] == 0, put
        (statement,) = self.properties("DeadLettersPolicy")["PolicyDocument"]["Statement"]
        assert statement["Resource"] == self.arns["DeadLetters"], statement
        assert statement["Condition"]["ArnEquals"]["aws:SourceArn"] == self.arns["ContactChanges"], statement

    def queue(self, name, properties):
        attributes = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in properties.items()}
        url = self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        found = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        self.arns[name], self.ids[name] = found["Attributes"]["QueueArn"], url
        return url

    def properties(self, name):
        return self.resolve(self.resources[name]["Properties"])

    def resolve(self, node):
        """Replaces the intrinsic functions that the template uses."""
        if isinstance(node, list):
            return [self.resolve(value) for value in node]
        if not isinstance(node, dict):
            return node
        if set(node) == {"Ref"}:
            return self.values.get(node["Ref"], self.ids.get(node["Ref"]))
        if set(node) == {"Fn::GetAtt"}:
            resource, attribute = node["Fn::GetAtt"] if isinstance(node["Fn::GetAtt"], list) else node["Fn::GetAtt"].split(".")
            assert attribute == "Arn", node
            return self.arns[resource]
        if set(node) == {"Fn::Sub"}:
            text = node["Fn::Sub"]
            for name, value in self.values.items():
                text = text.replace("${" + name + "}", value)
            assert "${" not in text, text
            return text
        return {name: self.resolve(value) for name, value in node.items()}

    def put(self, event):
        """Sends an event of the partner, and returns what the rule delivers, if it matches."""
        entry = {
            "EventBusName": self.values["EventBusName"],
            "Source": event["source"],
            "DetailType": event["detail-type"],
            "Detail": json.dumps(event["detail"]),
            "Resources": [],
        }
        put = self.events.put_events(Entries=[entry])
        assert put["FailedEntryCount"] == 0, put
        return self.receive(self.tap)

    def receive(self, queue):
        messages = self.sqs.receive_message(QueueUrl=queue).get("Messages", [])
        for message in messages:
            self.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        assert len(messages) <= 1, messages
        return json.loads(messages[0]["Body"]) if messages else None


class ApiDestination:
    """Sends what the rule delivers as EventBridge does, to the host of the template on loopback."""

    def __init__(self, stack, origin):
        self.stack = stack
        endpoint = stack.destination["InvocationEndpoint"]
        host = f"https://{stack.values['Host']}"
        assert endpoint.startswith(f"{host}/"), endpoint
        self.url, self.method = endpoint.replace(host, origin), stack.destination["HttpMethod"]
        assert stack.connection["AuthorizationType"] == "API_KEY"
        key = stack.connection["AuthParameters"]["ApiKeyAuthParameters"]
        self.fields = {**FIELDS, key["ApiKeyName"]: key["ApiKeyValue"]}
        self.attempts = []

    def attempt(self, payload):
        """Sends a request once and returns its status; 0 if there is no answer in time."""
        request = urllib.request.Request(self.url, json.dumps(payload).encode(), self.fields, method=self.method)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_WAIT) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def deliver(self, payload, most=None):
        """Retries what EventBridge retries; what it gives up goes to the dead-letter queue. Returns the last status."""
        most = most or 1 + self.stack.target["RetryPolicy"]["MaximumRetryAttempts"]
        for _ in range(most):
            status = self.attempt(payload)
            self.attempts.append(status)
            if 200 <= status < 300:
                return status
            if status != 0 and status < 500 and status not in RETRIED:
                break
            time.sleep(0.05)
        self.stack.sqs.send_message(QueueUrl=self.stack.dead_letters, MessageBody=json.dumps(payload))
        return status


class Genesys:
    """A sandbox of its own, whose events are kept. A context manager."""

    def __enter__(self):
        kept = self.kept = []

        class Webhook(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                kept.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        port, webhook = free_port(), f"http://127.0.0.1:{self._server.server_port}/"
        self._url = f"http://127.0.0.1:{port}/api/v2/externalcontacts/contacts"
        self._process = subprocess.Popen(
            [os.environ["EDGE_BINARY"], "sandbox", "--listen", f"127.0.0.1:{port}", "--latency", "0ms"]
            + ["--webhook-url", webhook, "--webhook-key", "none"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually("the sandbox", lambda: not socket.socket().connect_ex(("127.0.0.1", port)))
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)
        self._server.shutdown()

    def change(self, method, path, body=None):
        """Changes a contact and returns its events."""
        request = urllib.request.Request(
            f"{self._url}/{path}",
            json.dumps(body).encode() if body is not None else None,
            {"Authorization": "Bearer sandbox-editor", "Content-Type": "application/json"},
            method=method,
        )
        del self.kept[:]
        with urllib.request.urlopen(request, timeout=5) as answer:
            count = len(answer.headers["Sandbox-Events"].split(","))
        eventually("the events", lambda: len(self.kept) == count)
        return list(self.kept)


def lookup(edge, number):
    """Returns status, profile and Cache-Status of a lookup."""
    url = f"{edge.url}/api/v1/profile?tenantId=10001&customerId={customer(number)}"
    request = urllib.request.Request(url, headers={"X-API-Key": "demo-key"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer), answer.headers["Cache-Status"]
    except urllib.error.HTTPError as error:
        return error.code, None, error.headers["Cache-Status"]


def matching(stack, genesys):
    """The rule delivers the events of contacts, whole, and no others."""
    (changed,) = genesys.change("PATCH", customer(1), {"firstName": "Grace"})
    delivered = stack.put(changed)
    assert delivered["detail"] == changed["detail"] and delivered["detail-type"] == changed["detail-type"], delivered
    (deleted,) = genesys.change("DELETE", customer(2))
    assert deleted["detail-type"].startswith("v2.audits."), deleted
    assert stack.put(deleted)["detail"]["eventBody"]["action"] == "Delete"
    unresolved = {**changed, "detail-type": "v2.externalcontacts.contacts.{id}.unresolved"}
    assert stack.put(unresolved), "the topic of contacts before their merge"
    for edit in (
        lambda event: event["detail"]["eventBody"].update(serviceName="Routing"),
        lambda event: event["detail"]["eventBody"].update(entityType="Note"),
        lambda event: event.update({"detail-type": "v2.externalcontacts.contacts.{id}.notes"}),
    ):
        other = json.loads(json.dumps(deleted))
        edit(other)
        assert stack.put(other) is None, other
    print("  eventbridge: the rule delivers changed and deleted contacts, and nothing else")


def delivering(stack, genesys):
    """One event and arrays evict what they name; outages cost retries and nothing else."""
    with Edge() as edge:
        edge.at_genesys("POST", "/sandbox/behaviour", {"events": False})
        destination = ApiDestination(stack, edge.url)

        def change(number, name):
            path = f"/api/v2/externalcontacts/contacts/{customer(number)}"
            assert lookup(edge, number)[0] == 200
            edge.at_genesys("PATCH", path, {"firstName": name})
            (event,) = genesys.change("PATCH", customer(number), {"firstName": name})
            assert "hit" in lookup(edge, number)[2], "no event has arrived yet"
            return stack.put(event)

        def is_visible(number, name):
            eventually(name, lambda: lookup(edge, number)[1]["firstName"] == name)

        assert destination.deliver(change(3, "Joan")) == 202
        is_visible(3, "Joan")
        print("  eventbridge: one event: 202, and the changed profile is served")

        # A pipe with a batch size sends an array.
        batch = [change(number, f"Batch {number}") for number in (4, 5, 6)]
        assert destination.deliver(batch) == 202
        for number in (4, 5, 6):
            is_visible(number, f"Batch {number}")
        print("  eventbridge: an array of three events: 202, and all changed profiles are served")

        assert lookup(edge, 7)[0] == 200
        edge.at_genesys("DELETE", f"/api/v2/externalcontacts/contacts/{customer(7)}")
        (deleted,) = genesys.change("DELETE", customer(7))
        assert destination.deliver(stack.put(deleted)) == 202
        eventually("the deletion", lambda: lookup(edge, 7)[0] == 410)
        print("  eventbridge: a deletion from the audit: the customer is gone")

        again = change(8, "Twice")
        assert [destination.deliver(again), destination.deliver(again)] == [202, 202]
        is_visible(8, "Twice")
        duplicates = lambda: edge.metric("profile_edge_consumer_events_total") == 7
        eventually("the copy", duplicates)
        print("  eventbridge: a repeated delivery has no second effect")

        assert stack.receive(stack.dead_letters) is None
        refused = json.loads(json.dumps(again))
        refused["detail"]["eventBody"] = {"id": "a/b"}
        refused["detail"]["topicName"] = "v2.externalcontacts.contacts.{id}"
        assert destination.deliver(refused) == 400
        assert stack.receive(stack.dead_letters)["detail"]["eventBody"] == {"id": "a/b"}
        wrong = ApiDestination(stack, edge.url)
        wrong.fields = {**wrong.fields, "X-API-Key": "wrong"}
        assert wrong.deliver(again, most=3) == 401 and wrong.attempts == [401] * 3, wrong.attempts
        assert stack.receive(stack.dead_letters)
        print("  eventbridge: what is refused is in the dead-letter queue: 400 at once, 401 after its retries")
    during_an_outage(stack, genesys)


def during_an_outage(stack, genesys):
    """An event that is sent before the service runs arrives by a retry."""
    (event,) = genesys.change("PATCH", customer(9), {"firstName": "Late"})
    edge = Edge()
    destination = ApiDestination(stack, edge.url)
    delivered = stack.put(event)
    sender = threading.Thread(target=destination.deliver, args=(delivered,), daemon=True)
    sender.start()
    eventually("attempts without an answer", lambda: len(destination.attempts) >= 3)
    with edge:
        sender.join(30)
        assert destination.attempts[-1] == 202 and set(destination.attempts[:-1]) <= {0, 503}, destination.attempts
        applied = lambda: edge.metric("profile_edge_consumer_events_total") == 1
        eventually("the event", applied)
    assert stack.receive(stack.dead_letters) is None
    print(f"  eventbridge: an outage: taken after {len(destination.attempts) - 1} attempts without an answer")


def main():
    assert pathlib.Path("conf/genesys").is_dir()
    with mock_aws(), Genesys() as genesys:
        stack = Stack(EventBusName="genesys", WebhookKey="demo-secret")
        matching(stack, genesys)
        delivering(stack, genesys)
    print("the files of conf/genesys are what their vendors' tools and EventBridge accept")


if __name__ == "__main__":
    sys.exit(main())
