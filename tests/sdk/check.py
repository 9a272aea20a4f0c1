"""Runs the official Genesys SDKs against profile-edge instead of Genesys.

Every call is sent to the sandbox (which answers as Genesys does) and to profile-edge, and must have the same result.
During an outage of Genesys, a call must cause one request, not eleven.
"""

import datetime
import json
import os
import subprocess
import sys
import time

import PureCloudPlatformClientV2 as sdk
from PureCloudPlatformClientV2.rest import ApiException

from edge import Edge, customer, eventually

UNKNOWN = "00000000-0000-4000-8000-0000ffffffff"


def contacts_at(host, name, key):
    """Returns the logged-in API object of the SDK, created as its README shows; only the host differs."""
    sdk.configuration.host = host
    client = sdk.api_client.ApiClient()
    client.get_client_credentials_token(name, key)
    assert client.access_token
    return sdk.ExternalContactsApi(client)


def outcome(call):
    """Returns the result of a call: the contact's fields, or the status and code of the error."""
    try:
        return call().to_dict()
    except ApiException as error:
        body = json.loads(error.body)
        assert set(body) >= {"message", "code", "status", "messageParams", "contextId", "details", "errors"}, body
        assert body["status"] == error.status
        return (error.status, body["code"])


def same(edge, what, call):
    """Sends a call to both services and compares the results."""
    sandbox = contacts_at(edge.sandbox_url, "sandbox", "sandbox")
    gateway = contacts_at(edge.url, "demo", "demo-key")
    expected, found = outcome(lambda: call(sandbox)), outcome(lambda: call(gateway))
    assert found == expected, f"{what}: got {found}, expected {expected}"
    print(f"  python: {what}: as at Genesys{'' if isinstance(found, dict) else f' {found}'}")
    return found


def refused(what, call, status):
    try:
        call()
    except ApiException as error:
        assert error.status == status, f"{what}: {error.status}"
        print(f"  python: {what}: {status}")
        return
    raise AssertionError(f"{what}: not refused")


def counted(edge, call):
    """Returns the number of lookups that a call causes, its duration, and its result."""
    before, started = edge.metric("profile_edge_lookup_requests_total"), time.monotonic()
    result = outcome(call)
    return edge.metric("profile_edge_lookup_requests_total") - before, time.monotonic() - started, result


def python_sdk(edge):
    read = lambda id, **options: lambda api: api.get_externalcontacts_contact(id, **options)
    contact = same(edge, "a contact", read(customer(1)))
    assert contact["id"] == customer(1)
    same(edge, "the same contact again, a hit", read(customer(1)))
    same(edge, "a contact with expand", read(customer(1), expand=["externalOrganization", "identifiers"]))
    assert same(edge, "an unknown contact", read(UNKNOWN)) == (404, "not.found")

    many = {"entities": [{"id": customer(1)}, {"id": UNKNOWN}, {"id": customer(9)}]}

    def bulk(api):
        answer = api.post_externalcontacts_bulk_contacts(many).to_dict()
        # Genesys promises no order.
        found = sorted(answer["results"], key=lambda result: result["id"])
        return [(result["id"], result["success"], result["status"], result["entity"]) for result in found]

    assert bulk(contacts_at(edge.url, "demo", "demo-key")) == bulk(contacts_at(edge.sandbox_url, "sandbox", "sandbox"))
    print("  python: many contacts: as at Genesys")

    def by_phone(number):
        identifier = {"type": "Phone", "value": number}
        return lambda api: api.post_externalcontacts_identifierlookup_contacts(identifier)

    number = contact["work_phone"]["e164"]
    same(edge, "a contact by phone", by_phone(number))
    same(edge, "the same contact by phone again", by_phone(number))
    assert same(edge, "a number that nobody has", by_phone("+12025560171")) == (404, "not.found")

    edge.at_genesys("PATCH", f"/api/v2/externalcontacts/contacts/{customer(1)}", {"firstName": "Grace"})
    gateway = contacts_at(edge.url, "demo", "demo-key")
    eventually("the change", lambda: gateway.get_externalcontacts_contact(customer(1)).first_name == "Grace")
    print("  python: a changed contact: visible")

    assert gateway.get_externalcontacts_contact(customer(2)).id == customer(2)
    edge.at_genesys("DELETE", f"/api/v2/externalcontacts/contacts/{customer(2)}")
    eventually("the deletion", lambda: outcome(lambda: read(customer(2))(gateway)) == (404, "not.found"))
    assert same(edge, "a deleted contact", read(customer(2))) == (404, "not.found")

    refused("a wrong key", lambda: contacts_at(edge.url, "demo", "wrong"), 401)
    stranger = contacts_at(edge.url, "demo", "demo-key")
    stranger.api_client.access_token = "forged"
    assert outcome(lambda: read(customer(1))(stranger)) == (401, "bad.credentials")
    assert outcome(lambda: read("a b/c")(gateway)) == (400, "bad.request")

    through = sdk.api_client.ApiClient()
    through.set_gateway("127.0.0.1", "http", edge.public, "/login", "")
    through.get_client_credentials_token("demo", "demo-key")
    assert sdk.ExternalContactsApi(through).get_externalcontacts_contact(customer(3)).id == customer(3)
    print("  python: as a gateway: works")

    # From Genesys itself, this 503 would cause eleven requests.
    edge.at_genesys("POST", "/sandbox/behaviour", {"fail_ratio": 1.0, "fail_status": 503, "retry_after": 1})
    requests, took, result = counted(edge, lambda: read(customer(4))(gateway))
    assert (requests, result) == (1, (503, "service.unavailable")), (requests, result)
    print(f"  python: an outage: {result}, {requests:.0f} request, {took:.2f} s")
    requests, _, result = counted(edge, lambda: read(customer(3))(gateway))
    assert requests == 1 and result["id"] == customer(3)
    print("  python: a cached contact during the outage: served")


def audits(edge):
    """The answers of the sandbox about audits, which `profile-edge replay --from-genesys` reads, fill the models of the SDK."""
    permissions = ["externalContacts:contact:view", "audits:audit:view"]
    edge.at_genesys("POST", "/sandbox/behaviour", {"permissions": permissions})
    for number in range(20, 23):
        edge.at_genesys("PATCH", f"/api/v2/externalcontacts/contacts/{customer(number)}", {"firstName": "Audited"})
    client = contacts_at(edge.sandbox_url, "sandbox", "sandbox").api_client
    api = sdk.AuditApi(client)
    services = api.get_audits_query_realtime_servicemapping().services
    assert [service.name for service in services] == ["ExternalContacts"], services
    now = datetime.datetime.now(datetime.timezone.utc)
    times = [(now + datetime.timedelta(minutes=by)).strftime("%Y-%m-%dT%H:%M:%SZ") for by in (-60, 1)]
    query = sdk.AuditRealtimeQueryRequest()
    query.interval, query.service_name, query.page_number, query.page_size = "/".join(times), "ExternalContacts", 1, 2
    entity = sdk.AuditQueryFilter()
    entity.pcProperty, entity.value = "EntityId", customer(21)
    query.filters = [entity]
    page = api.post_audits_query_realtime(query)
    (audit,) = page.entities
    assert (page.total, page.page_count, page.page_number, page.page_size) == (1, 1, 1, 2), page
    assert (audit.action, audit.entity_type, audit.entity.id) == ("Update", "Contact", customer(21)), audit
    assert (audit.service_name, audit.level, audit.status) == ("ExternalContacts", "USER", "SUCCESS"), audit
    assert abs((audit.event_date - now).total_seconds()) < 60, audit
    print("  python: audits: parsed")


def javascript_sdk(edge):
    script = os.path.join(os.path.dirname(__file__), "javascript.cjs")
    subprocess.run(["node", script, str(edge.public), str(edge.sandbox)], check=True, timeout=120)


def main():
    with Edge() as edge:
        python_sdk(edge)
    with Edge() as edge:
        audits(edge)
    with Edge() as edge:
        javascript_sdk(edge)
    print("the SDKs get the same results as from Genesys")


if __name__ == "__main__":
    sys.exit(main())
