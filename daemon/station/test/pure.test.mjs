//! The page's decisions, without a browser. The vectors are the ones that hold the Rust reducer too.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { createServer } from "vite";

const here = import.meta.dirname;
let vite, load;

before(async () => {
  const root = join(here, "..");
  vite = await createServer({ root, configFile: false, server: { middlewareMode: true, ws: false }, logLevel: "error" });
  load = (file) => vite.ssrLoadModule(`/src/${file}`);
});
after(() => vite.close());

const document = (device, id, rev, more = {}) => ({
  schema: "ichd.alert/1", alert_id: id, rev, device, kind: "finding", state: "raised", priority: 1, age_ms: 0, ...more,
});

function payload(step) {
  if (step.purge) return "";
  return step.payload ?? JSON.stringify(document(step.device, step.id, step.rev, step.document));
}

test("the vectors shared with the daemon hold", async () => {
  const { reduce } = await load("reducer.ts");
  const { parseAlert } = await load("wire.ts");
  const files = readdirSync(join(here, "../vectors"));
  assert.ok(files.length >= 3);
  for (const file of files) {
    for (const { name, steps, held } of JSON.parse(readFileSync(join(here, "../vectors", file), "utf8"))) {
      let alerts = new Map(), change;
      for (const [i, step] of steps.entries()) {
        [alerts, change] = reduce(alerts, step.device, step.id, payload(step), parseAlert);
        assert.equal(change, step.expect, `${name}, step ${i}`);
      }
      const found = [...alerts].filter(([, h]) => h.document).map(([key, h]) => [key, h.rev]);
      assert.deepEqual(Object.fromEntries(found), held, name);
    }
  }
});

test("10,000 duplicated and reordered documents end in the highest revision", async () => {
  const { reduce } = await load("reducer.ts");
  let state = 12_345;
  const random = (n) => (state = (state * 1_103_515_245 + 12_345) % 2_147_483_648) % n;
  let alerts = new Map();
  const highest = new Map();
  for (let i = 0; i < 10_000; i++) {
    const [id, rev] = [`A${random(40)}`, 1 + random(500)];
    [alerts] = reduce(alerts, "ct-1", id, JSON.stringify(document("ct-1", id, rev)), JSON.parse);
    highest.set(id, Math.max(rev, highest.get(id) ?? 0));
  }
  assert.deepEqual(new Map([...alerts].map(([key, h]) => [key.slice(5), h.document.rev]).sort()), new Map([...highest].sort()));
});

test("silence is alarmed: link, status, three heartbeats, proof of life", async () => {
  const { troubles } = await load("liveness.ts");
  const config = { devices: ["ct-1"], heartbeat_s: 20, proof_interval_s: null };
  const codes = (link, box, now) => troubles(link, new Map([["ct-1", box]]), config, 0, now).map((t) => t.code);
  const beat = { uptime_s: 9_000, last_proof_age_s: 100, proof_interval_s: 900 };
  const well = { status: { state: "ready" }, heartbeat: beat, heartbeatAt: 1_000 };
  assert.deepEqual(codes("connected", well, 2_000), []);
  assert.deepEqual(codes("connected", { ...well, status: { state: "degraded" } }, 2_000), []);
  for (const state of ["init", "maintenance", "offline", "lost", "a new word"]) {
    assert.deepEqual(codes("connected", { ...well, status: { state } }, 2_000), ["status"], state);
  }
  assert.deepEqual(codes("connected", well, 61_000), []);
  assert.deepEqual(codes("connected", well, 61_001), ["heartbeat"]);
  assert.deepEqual(codes("lost", well, 2_000), ["link"]);
  // A box that was never heard of is given the time of three heartbeats.
  assert.deepEqual(codes("connected", {}, 59_000), []);
  assert.deepEqual(codes("connected", {}, 61_000), ["status", "heartbeat"]);
  const proof = (age, more) => codes("connected", { ...well, heartbeat: { ...beat, last_proof_age_s: age, ...more } }, 1_000);
  assert.deepEqual(proof(1_800), []);
  assert.deepEqual(proof(1_801), ["proof"]);
  assert.deepEqual(proof(null), ["proof"], "none in 9000 s of running");
  assert.deepEqual(proof(null, { uptime_s: 60 }), [], "none yet, just started");
  assert.deepEqual(proof(null, { proof_interval_s: null }), [], "none scheduled");
});

test("a box that stands still is not available, whatever its state says", async () => {
  const { troubles } = await load("liveness.ts");
  const config = { devices: ["ct-1"], heartbeat_s: 20, proof_interval_s: null };
  const beat = { uptime_s: 9_000, last_proof_age_s: 100, proof_interval_s: 900, dicom_ok: true, infer_ok: true, disk_ok: true };
  const codes = (reasons, more = {}, since = 0) => {
    const box = { status: { state: "degraded", reasons }, heartbeat: { ...beat, ...more }, heartbeatAt: 1_000 };
    return troubles("connected", new Map([["ct-1", box]]), config, since, 2_000).map((t) => t.detail ? `${t.code} ${t.detail}` : t.code);
  };
  assert.deepEqual(codes(["no_station_ready", "broker_quota", "certificate_expires:1", "stage_silent:commit", "a_new_one"]), []);
  for (const [reason, code] of Object.entries({
    disk_low: "disk", publish_denied: "alerts", publish_refused: "alerts", ledger_failed: "ledger", "stage_silent:receive": "receiver",
    "stage_silent:infer": "reader", "stage_silent:assemble": "stage assemble", "stage_silent:alert": "stage alert",
  })) assert.deepEqual(codes([reason]), [code], reason);
  assert.deepEqual(codes([], { dicom_ok: false, infer_ok: false, disk_ok: false }), ["receiver", "reader", "disk"]);
  assert.deepEqual(codes(["disk_low"], { disk_ok: false }), ["disk"], "said once");
  assert.deepEqual(codes([], { disk_ok: false }, 1_500), [], "a heartbeat from before this connection says nothing of now");
  // Every stage of the daemon is here or is one without which the line goes on.
  const source = readFileSync(join(here, "../../src/daemon.rs"), "utf8");
  const stages = [...source.matchAll(/pulses\.register\("(\w+)"\)/g)].map(([, stage]) => stage);
  const aside = stages.filter((stage) => codes([`stage_silent:${stage}`]).length === 0);
  assert.deepEqual(aside.sort(), ["commit", "station"], `of ${stages}`);
});

test("an alert sounds until it is taken, and again only if its priority rises or it comes back", async () => {
  const { due: dueFor, REPEAT_MS } = await load("alarm.ts");
  const due = (alert, sounded, now, wall, role = "nurse") => dueFor(alert, sounded, now, wall, role);
  const alert = (more) => document("ct-1", "A", 1, more);
  const sounded = (more) => ({ at: 0, priority: 2, state: "raised", ...more });
  const ack = { state: "acknowledged", ack: { user: "Li Na" } };
  assert.equal(due(alert(), undefined, 0, 0), "urgent");
  assert.equal(due(alert({ priority: 2 }), undefined, 0, 0), "alert");
  assert.equal(due(alert({ priority: 2 }), sounded(), REPEAT_MS - 1, 0), undefined);
  assert.equal(due(alert({ priority: 2, rev: 9 }), sounded(), REPEAT_MS - 1, 0), undefined, "a revision is no new alarm");
  assert.equal(due(alert({ priority: 2 }), sounded(), REPEAT_MS, 0), "alert");
  assert.equal(due(alert({ priority: 2, ...ack }), sounded(), REPEAT_MS, 0), undefined);
  assert.equal(due(alert({ priority: 2, ...ack }), undefined, 0, 0), undefined, "taken before we came");
  assert.equal(due(alert({ priority: 1, ...ack }), sounded(), 1, 0), "urgent", "more urgent than what was taken");
  assert.equal(due(alert({ state: "withdrawn" }), sounded(), 1, 0), "withdrawn");
  assert.equal(due(alert({ state: "withdrawn" }), sounded({ state: "withdrawn" }), 1, 0), undefined);
  assert.equal(due(alert({ state: "withdrawn" }), undefined, 1, 0), undefined, "withdrawn before we came");
  assert.equal(due(alert({ priority: 2 }), sounded({ state: "withdrawn" }), 1, 0), "alert", "it came back");
  assert.equal(due(alert({ state: "resolved" }), sounded(), REPEAT_MS, 0), undefined);
  const escalation = { muted_until: "2026-01-01T00:10:00Z" };
  assert.equal(due(alert({ escalation }), undefined, 0, Date.parse("2026-01-01T00:05:00Z")), undefined);
  assert.equal(due(alert({ escalation }), undefined, 0, Date.parse("2026-01-01T00:15:00Z")), "urgent");
  const called = { escalation: { roles: ["nurse", "charge_nurse"] } };
  assert.equal(due(alert(called), undefined, 0, 0), "urgent");
  assert.equal(due(alert(called), undefined, 0, 0, "physician"), undefined, "not called yet");
  assert.equal(due(alert({ escalation: { roles: ["everyone"] } }), undefined, 0, 0, "physician"), "urgent");
  assert.equal(due(alert({ kind: "test" }), undefined, 0, 0), undefined);
  // A storm sounds as one: the next of it waits for the next tone, unless it is more urgent.
  const storm = { at: 0, priority: 2, state: "raised" };
  const member = (priority, now) => dueFor(alert({ priority, group: "A" }), undefined, now, 0, "nurse", storm);
  assert.equal(member(2, REPEAT_MS - 1), undefined);
  assert.equal(member(3, REPEAT_MS - 1), undefined);
  assert.equal(member(1, 1), "urgent");
  assert.equal(member(2, REPEAT_MS), "alert", "and none of it is left out");
});

test("who is called by the one who has it hears it", async () => {
  const { due, REPEAT_MS } = await load("alarm.ts");
  const at = (state, roles, more) => document("ct-1", "A", 2, { priority: 2, state, escalation: { roles }, ...more });
  const taken = at("acknowledged", ["nurse"], { ack: { user: "Li Na" } });
  assert.equal(due(taken, undefined, 0, 0, "physician"), undefined);
  // The box takes the acknowledgement away when Li Na asks for more people: then she is looking, and the alert waits.
  const asked = at("escalated", ["nurse", "physician"], { ack: null, claimed_by: { user: "Li Na" } });
  assert.equal(due(asked, undefined, 0, 0, "physician"), "alert", "never heard here");
  assert.equal(due(asked, { at: 0, priority: 2, state: "acknowledged" }, REPEAT_MS, 0, "physician"), "alert", "heard before");
});

test("receipts answer news, and never the receipts in a document", async () => {
  const { Receipts } = await load("receipts.ts");
  const receipts = new Receipts();
  let sent = [];
  const flush = (taken) => receipts.flush(async (_, r) => (taken && sent.push(`${r.stage} ${r.rev}`), taken));
  const say = (rev, more = {}) => receipts.say("k", "ct-1", document("ct-1", "A", rev, more), "received");
  say(1);
  await flush(false);
  await flush(true);
  assert.deepEqual(sent, ["received 1"], "kept until the broker has it");
  say(2, { receipts: [{ station: "ward-3", stage: "received" }] });
  await flush(true);
  assert.deepEqual(sent, ["received 1"]);
  say(3, { stage: "final", priority: 2 });
  await flush(true);
  assert.deepEqual(sent, ["received 1", "received 3"]);
});

test("a subject opens with its key and with no other", async () => {
  const { open, keysOf } = await load("subject.ts");
  const k = (n) => Buffer.alloc(32, n).toString("base64url");
  const keys = keysOf(k(7));
  const { sealed } = await import("./jwe.mjs");
  const jwe = sealed({ schema: "ichd.subject/1", study_ref: "5f1c", name: "DOE J", secret: 1 }, k(7));
  assert.deepEqual(await open(jwe, keys, "5f1c"), { name: "DOE J" });
  assert.equal(await open(jwe, keys, "other"), undefined, "sealed for another study");
  assert.equal(await open(jwe, keysOf(k(8)), "5f1c"), undefined);
  const set = (...keys) => keysOf(JSON.stringify({ keys: keys.map(([kid, n]) => ({ kty: "oct", kid, alg: "A256GCM", k: k(n) })) }));
  assert.deepEqual(await open(jwe, set(["new", 8], ["old", 7]), "5f1c"), { name: "DOE J" }, "an older key still opens");
  for (let i = 0; i < jwe.length; i += 7) {
    // The last character of a part may hold bits that say nothing.
    if (".".includes(jwe[i + 1] ?? ".")) continue;
    const wrong = jwe.slice(0, i) + (jwe[i] === "A" ? "B" : "A") + jwe.slice(i + 1);
    assert.equal(await open(wrong, keys, "5f1c"), undefined, `changed at ${i}`);
  }
  for (const junk of ["", "....", "a.b.c", `${jwe}.x`]) assert.equal(await open(junk, keys, "5f1c"), undefined);
  for (const wrong of ["", "short", `${k(7)}A`, "{", '{"keys":[]}', '{"keys":[{"k":"short"}]}']) assert.deepEqual(keysOf(wrong), []);
});

test("what the daemon seals, the page opens", async () => {
  const { open, keysOf } = await load("subject.ts");
  // The vector of daemon/src/privacy/jwe.rs; its text names no study, so only the failure to read it can be told apart.
  const source = readFileSync(join(here, "../../src/privacy/jwe.rs"), "utf8");
  const [, set] = source.match(/SET: &str = r#"(.*)"#;/);
  const [, vector] = source.match(/VECTOR: &str = "(.*)";/);
  assert.equal(keysOf(set).length, 1);
  const calls = [];
  const { decrypt } = crypto.subtle;
  crypto.subtle.decrypt = async (...args) => (calls.push(Buffer.from(await decrypt.apply(crypto.subtle, args)).toString()), new ArrayBuffer(0));
  try {
    await open(vector, keysOf(set), undefined);
  } finally {
    crypto.subtle.decrypt = decrypt;
  }
  assert.deepEqual(calls, ['{"name":"PHANTOM^HEAD"}']);
});

test("an address of the enrolment gives name and role; a shift has an end", async () => {
  globalThis.localStorage ??= { getItem: () => null };
  const { fromAddress, isOn, SHIFT_MAX_MS } = await load("settings.ts");
  assert.deepEqual(fromAddress("#station=nurse-1&role=charge_nurse"), { station: "nurse-1", role: "charge_nurse" });
  for (const wrong of ["", "#station=nurse-1", "#station=Nurse&role=nurse", "#station=a/b&role=nurse", "#station=a&role=x%22"]) {
    assert.equal(fromAddress(wrong), undefined, wrong);
  }
  const shift = { user: "Li Na", started_at: "2026-01-01T20:00:00Z", sound_ok: true };
  const began = Date.parse(shift.started_at);
  assert.equal(isOn(shift, began + SHIFT_MAX_MS), true);
  assert.equal(isOn(shift, began + SHIFT_MAX_MS + 1), false);
  assert.equal(isOn(shift, began - SHIFT_MAX_MS - 1), false, "a clock that was set back by days");
  assert.equal(isOn({ ...shift, started_at: "yesterday" }, began), false);
});

test("the page never says what a notification must not say", async () => {
  const source = readFileSync(join(here, "../src/i18n.ts"), "utf8");
  assert.doesNotMatch(source, /diagnosed|positive|\bnormal\b(?!")/i, "a word that this page may not say");
});

test("both languages say everything, with the same blanks to fill", async () => {
  const source = readFileSync(join(here, "../src/i18n.ts"), "utf8");
  const [en, zh] = [/const en = \{(.*?)\n\}/s, /const zh: Record<Word, string> = \{(.*?)\n\};/s].map((block) => {
    const entries = source.match(block)[1].matchAll(/(\w+): "((?:[^"\\]|\\.)*)"/g);
    return new Map([...entries].map(([, key, words]) => [key, words]));
  });
  assert.ok(en.size > 150, `${en.size} words`);
  assert.deepEqual([...zh.keys()].sort(), [...en.keys()].sort());
  const blanks = (words) => [...words.matchAll(/\{\w+\}/g)].map(String).sort();
  for (const [key, words] of en) {
    assert.notEqual(zh.get(key).trim(), "", key);
    assert.deepEqual(blanks(zh.get(key)), blanks(words), key);
    if (/[a-z]{4}/i.test(words.replace(/\{\w+\}/g, ""))) assert.match(zh.get(key), /\p{Script=Han}/u, `${key} is not translated`);
  }
  // What the daemon can say of itself and of its input has a word in both.
  const src = join(here, "../../src");
  const rust = (path) => readFileSync(join(src, path), "utf8");
  const daemon = readdirSync(src, { recursive: true }).filter((f) => f.endsWith(".rs") && !f.endsWith("tests.rs")).map(rust).join("\n");
  const raised = daemon.matchAll(/(?:raise|set)_technical\((?:tx, )?(?:"(\w+)"|(\w+))/g);
  const constant = (name) => daemon.match(new RegExp(`const ${name}: &str = "(\\w+)";`))?.[1];
  const said = new Set([...raised].map(([, code, name]) => code ?? constant(name)).filter(Boolean));
  assert.ok(said.size >= 5, [...said].join());
  for (const code of said) assert.ok(en.has(`technical_${code}`), `no words for technical ${code}`);
  const [, flags] = rust("../../docs/REFERENCE.md").match(/## Quality flags\n(.*?)\n## /s);
  assert.ok(flags.includes("`tilted`"));
  // Its reasons and its sentences, too: each that stands on a card is translated.
  const [, codes] = rust("../../docs/REFERENCE.md").match(/## Reason codes\n(.*?)\n## /s);
  const reasons = [...codes.matchAll(/^\| `(\w+)`/gm)].map(([, code]) => code);
  assert.ok(reasons.length >= 19, reasons.join());
  for (const code of reasons) assert.ok(en.has(`reason_${code}`), `no words for reason ${code}`);
  globalThis.document ??= { documentElement: {} };
  globalThis.navigator ??= { language: "en" };
  const { speak, written } = await load("i18n.ts");
  speak("zh");
  const pushed = daemon.replaceAll(/#\[cfg\(test\)\].*?\n}/gs, "").matchAll(/addendum\s*\.push\((?:"([^"]+)"|format!\("([^"]+)")/g);
  const sentences = [...pushed].map(([, fixed, blank]) => fixed ?? blank).filter((text) => !text.startsWith("proof of life:"));
  assert.ok(sentences.length >= 8, sentences.join("\n"));
  for (const sentence of [...sentences, "no station that was called has shown alert K3J-26 after 12 s", "alert K3J-26 expired without an acknowledgement"]) {
    const text = sentence.replace("{what}", "declined").replaceAll(/\{[^}]*\}/g, "X");
    assert.match(written(text), /\p{Script=Han}/u, `"${text}" is not translated`);
  }
  assert.equal(written("the complete series could not be analysed: crashed"), "完整序列无法分析：分析程序崩溃");
  speak("en");
  for (const [, flag] of flags.matchAll(/^\| \**`(\w+)`/gm)) assert.ok(en.has(`flag_${flag}`), `no words for flag ${flag}`);
});
