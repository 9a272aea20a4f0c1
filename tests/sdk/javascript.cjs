// Runs the official JavaScript SDK with profile-edge as its gateway.

'use strict';

const assert = require('node:assert/strict');
const path = require('node:path');
const { createRequire } = require('node:module');

const installed = createRequire(path.join(process.env.SDK_JAVASCRIPT, 'package.json'));
const sdk = installed('purecloud-platform-client-v2');

const [port, sandbox] = process.argv.slice(2);
const customer = (number) => `00000000-0000-4000-8000-${String(number).padStart(12, '0')}`;
const atGenesys = (method, where, body) =>
  fetch(`http://127.0.0.1:${sandbox}${where}`, {
    method,
    headers: { Authorization: 'Bearer sandbox-editor', 'Content-Type': 'application/json' },
    body: body && JSON.stringify(body),
  });

// Returns the error of a refused call.
const refusal = async (call) => {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error('not refused');
};

async function main() {
  const client = sdk.ApiClient.instance;
  client.setGateway({ host: '127.0.0.1', protocol: 'http', port: Number(port), path_params_login: '/login', path_params_api: '' });
  await client.loginClientCredentialsGrant('demo', 'demo-key');
  const api = new sdk.ExternalContactsApi();

  const raw = await (await atGenesys('GET', `/api/v2/externalcontacts/contacts/${customer(1)}`)).json();
  for (const how of ['a miss', 'a hit']) {
    assert.deepEqual(await api.getExternalcontactsContact(customer(1)), raw);
    console.log(`  javascript: a contact, ${how}: as at Genesys`);
  }
  const expanded = await api.getExternalcontactsContact(customer(1), { expand: ['externalOrganization', 'identifiers'] });
  assert.equal(expanded.id, customer(1));

  const many = await api.postExternalcontactsBulkContacts({ entities: [{ id: customer(1) }, { id: customer(5) }] });
  assert.deepEqual(many.results.map((result) => [result.status, result.entity.id]), [[200, customer(1)], [200, customer(5)]]);
  console.log('  javascript: many contacts: as at Genesys');

  const byPhone = { type: 'Phone', value: raw.workPhone.e164 };
  const atOrigin = await (await atGenesys('POST', '/api/v2/externalcontacts/identifierlookup/contacts', byPhone)).json();
  for (const how of ['a miss', 'a hit']) {
    assert.deepEqual(await api.postExternalcontactsIdentifierlookupContacts(byPhone), atOrigin);
    console.log(`  javascript: a contact by phone, ${how}: as at Genesys`);
  }

  const unknown = await refusal(() => api.getExternalcontactsContact('00000000-0000-4000-8000-0000ffffffff'));
  assert.deepEqual([unknown.status, unknown.code], [404, 'not.found']);
  const malformed = await refusal(() => api.getExternalcontactsContact('a b/c'));
  assert.deepEqual([malformed.status, malformed.code], [400, 'bad.request']);
  console.log('  javascript: an unknown contact: 404, a malformed id: 400');

  await atGenesys('POST', '/sandbox/behaviour', { fail_ratio: 1.0, fail_status: 503, retry_after: 1 });
  const down = await refusal(() => api.getExternalcontactsContact(customer(2)));
  assert.deepEqual([down.status, down.code], [503, 'service.unavailable']);
  assert.equal((await api.getExternalcontactsContact(customer(1))).id, customer(1));
  console.log('  javascript: an outage: 503, a cached contact: served');

  client.setAccessToken('forged');
  const forged = await refusal(() => api.getExternalcontactsContact(customer(1)));
  assert.deepEqual([forged.status, forged.code], [401, 'bad.credentials']);
  console.log('  javascript: a forged token: 401');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
