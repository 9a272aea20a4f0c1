"""The official Genesys SDKs against profile-edge in place of Genesys.

Every call is made twice, at the sandbox (which answers as Genesys does) and at profile-edge, and must come to
the same. While Genesys is down, a call must come to one request, not to eleven.
"""

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
    """The SDK's API object, logged in, as its README says; only the host is another."""
    sdk.configuration.host = host
    client = sdk.api_client.ApiClient()
    client.get_client_credentials_token(name, key)
    assert client.access_token
    return sdk.ExternalContactsApi(client)


def outcome(call):
    """What a call comes to: the contact's fields, or the status and code of the error."""
    try:
        return call().to_dict()
    except ApiException as error:
        body = json.loads(error.body)
        assert set(body) >= {"message", "code", "status", "messageParams", "contextId", "details", "errors"}, body
        assert body["status"] == error.status
        return (error.status, body["code"])


def same(edge, what, call):
    """Makes a call at both and compares."""
    sandbox = contacts_at(edge.sandbox_url, "sandbox", "sandbox")
    gateway = contacts_at(edge.url, "demo", "demo-key")
    expected, found = outcome(lambda: call(sandbox)), outcome(lambda: call(gateway))
    assert found == expected, f"{what}: {found} in place of {expected}"
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
    """How many lookups a call comes to, how long it takes, and its outcome."""
    before, started = edge.metric("profile_edge_lookup_requests_total"), time.monotonic()
    result = outcome(call)
    return edge.metric("profile_edge_lookup_requests_total") - before, time.monotonic() - started, result


def python_sdk(edge):
    read = lambda id, **options: lambda api: api.get_externalcontacts_contact(id, **options)
    contact = same(edge, "a contact", read(customer(1)))
    assert contact["id"] == customer(1)
    same(edge, "the same contact again, a hit", read(customer(1)))
    same(edge, "a contact with more of it", read(customer(1), expand=["externalOrganization", "identifiers"]))
    assert same(edge, "an unknown contact", read(UNKNOWN)) == (404, "not.found")

    edge.at_genesys("PATCH", f"/api/v2/externalcontacts/contacts/{customer(1)}", {"firstName": "Grace"})
    gateway = contacts_at(edge.url, "demo", "demo-key")
    eventually("the change", lambda: gateway.get_externalcontacts_contact(customer(1)).first_name == "Grace")
    print("  python: a changed contact: seen")

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

    # At Genesys itself, this 503 would come to eleven requests.
    edge.at_genesys("POST", "/sandbox/behaviour", {"fail_ratio": 1.0, "fail_status": 503, "retry_after": 1})
    requests, took, result = counted(edge, lambda: read(customer(4))(gateway))
    assert (requests, result) == (1, (503, "service.unavailable")), (requests, result)
    print(f"  python: an outage: {result}, {requests:.0f} request, {took:.2f} s")
    requests, _, result = counted(edge, lambda: read(customer(3))(gateway))
    assert requests == 1 and result["id"] == customer(3)
    print("  python: a cached contact during the outage: served")


def javascript_sdk(edge):
    script = os.path.join(os.path.dirname(__file__), "javascript.cjs")
    subprocess.run(["node", script, str(edge.public), str(edge.sandbox)], check=True, timeout=120)


def main():
    with Edge() as edge:
        python_sdk(edge)
    if "SDK_JAVASCRIPT" in os.environ:
        with Edge() as edge:
            javascript_sdk(edge)
    print("the SDKs find here what they find at Genesys")


if __name__ == "__main__":
    sys.exit(main())
