// Drives the example page through the DevTools protocol, over the pipe that Chromium offers: file descriptors 3 and 4, messages
// of JSON that end with a zero byte.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const sandbox = process.argv[2];
const profile = mkdtempSync(join(tmpdir(), "profile-edge-browser-"));
const flags = [
  "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", `--user-data-dir=${profile}`, "about:blank",
];
const browser = spawn("chromium", flags, { detached: true, stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
const [, , , commands, answers] = browser.stdio;

let sent = 0;
const waiting = new Map();
const problems = [];
const requested = new Set();
let unread = "";
answers.setEncoding("utf8").on("data", (chunk) => {
  const messages = (unread + chunk).split("\0");
  unread = messages.pop();
  for (const text of messages) {
    const message = JSON.parse(text);
    if (message.method === "Runtime.exceptionThrown") problems.push(message.params.exceptionDetails.text);
    if (message.method === "Network.requestWillBeSent") requested.add(new URL(message.params.request.url).host);
    waiting.get(message.id)?.(message);
    waiting.delete(message.id);
  }
});

function send(method, params = {}, sessionId = undefined) {
  commands.write(`${JSON.stringify({ id: ++sent, method, params, sessionId })}\0`);
  return new Promise((resolve, reject) => {
    waiting.set(sent, (answer) => (answer.error ? reject(new Error(`${method}: ${answer.error.message}`)) : resolve(answer.result)));
  });
}

async function eventually(what, ask) {
  const deadline = Date.now() + 30_000;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() > deadline) throw new Error(`${what}: timeout; ${problems.join("; ")}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function check() {
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
  for (const domain of ["Runtime", "Page", "Network"]) await send(`${domain}.enable`, {}, sessionId);
  const evaluate = async (expression) => {
    const { result, exceptionDetails } = await send("Runtime.evaluate", { expression, returnByValue: true }, sessionId);
    assert.equal(exceptionDetails, undefined, expression);
    return result.value;
  };
  const text = (selector) => evaluate(`document.querySelector(${JSON.stringify(selector)})?.textContent ?? ""`);
  const field = (name) => text(`[data-field="${name}"] td`);

  await send("Page.navigate", { url: `${sandbox}/` }, sessionId);
  const id = "00000000-0000-4000-8000-000000000001";
  await eventually("the first customer", async () => (await field("id")) === id);
  await eventually("the stream", async () => (await text("#live")) === "connected");
  const before = await field("firstName");
  assert.ok(before);
  assert.equal(await field("address.address1"), "", "only the fields of the token's scope");
  await evaluate("window.sameDocument = true");

  // A change at Genesys by somebody else.
  const started = performance.now();
  const changed = await fetch(`${sandbox}/api/v2/externalcontacts/contacts/${id}`, {
    method: "PATCH", body: JSON.stringify({ firstName: "Zora" }),
    headers: { Authorization: "Bearer sandbox-editor", "Content-Type": "application/json" },
  });
  assert.equal(changed.status, 200);
  await eventually("the change", async () => (await field("firstName")) === "Zora");
  const took = Math.round(performance.now() - started);
  assert.equal(await evaluate("window.sameDocument"), true, "without a reload");

  // The button of the page, then another customer, then one that does not exist.
  await evaluate(`document.querySelector("#change").click()`);
  await eventually("the page's own change", async () => !["", "Zora"].includes(await field("firstName")));
  const search = (customer) => evaluate(`customer.value = ${JSON.stringify(customer)}; search.requestSubmit()`);
  await search(id.replace(/1$/, "2"));
  await eventually("another customer", async () => (await field("id")) === id.replace(/1$/, "2"));
  const phone = await field("workPhone.e164");
  await search(id);
  await eventually("the first customer again", async () => (await field("id")) === id);
  await search(phone);
  await eventually("the owner of a number", async () => (await field("workPhone.e164")) === phone);
  await search(id.replace(/0001$/, "9999"));
  await eventually("no such customer", async () => /no such customer/.test(await text("#problem")));

  assert.deepEqual(problems, []);
  const service = await evaluate("new URL(service()).host");
  assert.deepEqual([...requested].sort(), [new URL(sandbox).host, service].sort(), "nothing is loaded from elsewhere");
  console.log(`  chromium: a change was shown after ${took} ms, without a reload`);
}

try {
  await check();
} finally {
  // Chromium is a group of processes (detached), of which one that still ends can write to the profile.
  process.kill(-browser.pid, "SIGKILL");
  await eventually("the removal of the profile", () => {
    try {
      rmSync(profile, { recursive: true, force: true });
      return true;
    } catch (error) {
      if (error.code !== "ENOTEMPTY") throw error;
      return false;
    }
  });
}
