//! The page in a real headless Chromium, served by the real daemon, over a real Mosquitto. First the whole chain with
//! a phantom that bleeds; then a box that follows a script, for what a healthy one does not do on demand.

import assert from "node:assert/strict";
import { readFileSync, rmSync, mkdtempSync } from "node:fs";
import { get } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, describe, test } from "node:test";

import { sealed } from "./jwe.mjs";
import * as peers from "./peers.mjs";
import { alert, heard, shot, station, until } from "./peers.mjs";

let chromium;
before(async () => (chromium = await peers.browser()));
after(() => chromium?.close());

const visible = (page, selector) => until(`${selector} is shown`, () => page.locator(selector).first().isVisible());
const gone = (page, selector) => until(`${selector} is gone`, async () => (await page.locator(selector).count()) === 0);
const says = (page, selector, text) =>
  until(`${selector} says ${text}`, async () => (await page.locator(selector).allInnerTexts()).join(" ").match(text));
const sounds = (page, tone, n = 1) => until(`${tone} sounds`, async () => (await heard(page, tone)) >= n);
/** Runs in the page: so much later by its clock. */
const later = (ms) => {
  const now = performance.now.bind(performance);
  performance.now = () => now() + ms;
  window.ichd.station.tick();
  return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
};
/** Runs in the page: a worker whose script cannot be loaded. */
const brokenWorker = () => {
  window.Worker = class {
    constructor() {
      setTimeout(() => this.onerror?.(new Event("error")), 100);
    }
    postMessage() {}
    terminate() {}
  };
};
const look = (page, tile) => page.locator(`[data-tile="${tile}"]`).getAttribute("data-look");
/** A page may complain of a broker that a test has ended, and of nothing else. */
const complaints = (page) => page.problems.filter((line) => !line.startsWith("WebSocket connection to"));

describe("the real chain", () => {
  let broker, daemon, wire;
  const key = Buffer.alloc(32, 9).toString("base64url");
  before(async () => {
    broker = await peers.Mosquitto.start();
    wire = await peers.Wire.on(broker);
    daemon = await peers.Daemon.start(broker, { key });
  });
  after(async () => {
    await daemon?.stop();
    await wire?.stop();
    await broker?.stop();
  });

  test("a bleed appears, sounds, is acknowledged with a name, and another station sees it", async () => {
    const ward = await station(chromium, daemon.page, { key });
    const desk = await station(chromium, daemon.page, { name: "desk-1", ward: "Emergency", role: "charge_nurse", user: "Wang Fang" });
    const ready = await wire.next("a station that is ready", (m) => m.topic.endsWith("sta/ward-3/status") && m.body.state === "ready");
    assert.deepEqual(
      [ready.body.schema, ready.body.role, ready.body.ward, ready.body.user, ready.body.sound_ok, ready.body.kind],
      ["ichd.station/1", "nurse", "Stroke ward 3", "Li Na", true, "page"],
    );
    await until("the box is ready", async () => (await look(ward, "box-ct-1")) === "ok");
    await gone(ward, ".unavailable");
    await visible(ward, ".calm");
    assert.equal(await heard(ward, "test"), 1);

    daemon.scan(12, "intraparenchymal", "--side", "left", "--volume-ml", "45");
    for (const page of [ward, desk]) await visible(page, ".card.waiting");
    await sounds(ward, "urgent");
    assert.equal(await heard(desk, "urgent"), 0, "the ladder has not called a charge nurse yet");
    await says(ward, ".card", /left.*intraparenchymal/s);
    // At privacy level `image` the key slice comes sealed in the document, and opens where the key is.
    await visible(ward, ".card img.picture");
    const drawn = () => ward.locator(".card img.picture").evaluate((img) => img.complete && img.naturalWidth > 32);
    await until("the picture is one", drawn);
    assert.equal(await desk.locator(".card img.picture").count(), 0);
    await shot(ward, "key-slice");
    const { body: document } = await wire.next("an alert", (m) => m.body?.schema === "ichd.alert/1");
    for (const stage of ["received", "displayed", "sounded"]) {
      const receipt = await wire.next(`receipt ${stage}`, (m) => m.topic.endsWith("sta/ward-3/receipt/ct-1") && m.body.stage === stage);
      assert.equal(receipt.body.alert_id, document.alert_id);
      assert.equal(receipt.packet.properties.messageExpiryInterval <= 600, true);
    }

    await ward.locator(".ack").click();
    const action = await wire.next("the acknowledgement", (m) => m.topic === "ichd/1/north/sta/ward-3/action/ct-1");
    const { action_id, rev, expires_at, ...rest } = action.body;
    assert.match(action_id, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
    assert.ok(wire.seen.some((m) => m.body?.alert_id === document.alert_id && m.body.rev === rev), "a revision that was on the wire");
    assert.ok(Date.parse(expires_at) > Date.parse(document.published_at));
    assert.deepEqual(rest, {
      schema: "ichd.action/1", alert_id: document.alert_id, verb: "ack", user: "Li Na", reason: null, feedback: null,
    });
    for (const page of [ward, desk]) await says(page, ".card.taken .who", /Acknowledged by Li Na, ward-3/);
    await shot(desk, "acknowledged-real");

    await ward.getByRole("button", { name: "Right" }).click();
    await says(desk, "[data-tile='week-ct-1']", /1 of 1 \(100 %\)/);
    await ward.getByRole("button", { name: "Engineer" }).click();
    await says(ward, ".engineer", /suspected/);
    assert.equal(await ward.locator("[data-ask='proof']").isDisabled(), true, "a nurse's station asks nothing of a box");
    assert.doesNotMatch(await ward.locator(".engineer").innerText(), /desk-1/, "nor sees it the other stations");
    assert.deepEqual([...complaints(ward), ...complaints(desk)], []);
  });

  test("an engineer sees stations, ledger and value of the alerts, sends a test alert and replays a series", async () => {
    const bench = await station(chromium, daemon.page, { name: "bench", ward: "IT", role: "engineer", user: "Zhao Lei" });
    await says(bench, ".engineer", /desk-1[\s\S]*ward-3/);
    await says(bench, "[data-box='ct-1']", /PPV.*100 %/s);
    const row = "[data-ledger='ct-1'] tbody tr";
    await says(bench, row, /suspected/);
    await until("the box is free", async () => {
      await bench.locator(`${row} button`).first().click();
      await until("an answer", async () => (await bench.locator(`${row} [data-outcome]`).first().getAttribute("data-outcome")) !== "sending");
      return (await bench.locator(`${row} [data-outcome]`).first().getAttribute("data-outcome")) === "ok";
    });
    await says(bench, row, /the same bytes/);
    await bench.locator("[data-ask='proof']").click();
    await says(bench, "[data-box='ct-1'] [data-outcome='ok']", /reached: station/);
    await says(bench, "[data-tile='proof-ct-1']", /s ago/);
    await bench.locator("[data-ask='ledger']").click();
    await says(bench, row, /Test/);
    await shot(bench, "engineer-real");
    assert.deepEqual(complaints(bench), []);
  });

  test("every document on the wire, the box's and the page's, is as docs/contract says", () => {
    const wrong = wire.seen.filter((m) => m.body !== undefined).flatMap(({ topic, body }) => peers.complaints(body).map((c) => `${topic}: ${c}`));
    assert.deepEqual(wrong, []);
    const seen = new Set(wire.seen.map((m) => m.body?.schema));
    for (const name of ["alert", "study", "status", "heartbeat", "reply", "answer", "station", "receipt", "action", "request"]) {
      assert.ok(seen.has(`ichd.${name}/1`), `${name} was on the wire`);
    }
  });

  test("installable, and awake: manifest, icons, service worker, wake lock; timers keep their time in a worker", async () => {
    const page = await station(chromium, daemon.page, { name: "icu-1" });
    await until("the service worker is in control", () => page.evaluate(async () => (await navigator.serviceWorker.ready).active?.state === "activated"));
    const cdp = await page.context().newCDPSession(page);
    const { errors, data } = await cdp.send("Page.getAppManifest");
    assert.deepEqual(errors, []);
    const manifest = JSON.parse(data);
    assert.deepEqual([manifest.start_url, manifest.display], ["/", "standalone"]);
    for (const { src, sizes, type } of manifest.icons) {
      const icon = await page.evaluate(async (src) => {
        const image = new Image();
        image.src = src;
        await image.decode();
        return [image.naturalWidth, (await fetch(src)).headers.get("content-type")];
      }, src);
      assert.deepEqual(icon[1], type);
      if (sizes !== "any") assert.equal(`${icon[0]}x${icon[0]}`, sizes);
    }
    // A browser without a profile installs nothing; Chromium has nothing else to say against it.
    const { installabilityErrors } = await cdp.send("Page.getInstallabilityErrors");
    assert.deepEqual(installabilityErrors.map((e) => e.errorId).filter((id) => id !== "in-incognito"), []);
    await until("the screen stays on", () => page.evaluate(() => window.ichd.station.wakeLock?.released === false));
    // With the page's own timers frozen, as those of a hidden page nearly are, the tick goes on.
    await page.evaluate(() => {
      for (let id = setTimeout(() => undefined); id > 0; id -= 1) [clearTimeout, clearInterval].forEach((clear) => clear(id));
      window.setTimeout = window.setInterval = () => 0;
      window.ticks = 0;
      window.ichd.station.subscribe(() => (window.ticks += 1));
    });
    await until("three ticks", () => page.evaluate(() => window.ticks >= 3));
    await page.context().close();
  });

  test("when the box is gone the page is still there, and says that the AI is not", async () => {
    const page = await station(chromium, daemon.page, { name: "icu-2" });
    await until("the page is kept", () => page.evaluate(async () => (await caches.match("/config.json")) !== undefined));
    await daemon.kill();
    await page.reload();
    await visible(page, ".unavailable");
    await until("why", async () => /status|heartbeat/.test(await page.locator(".unavailable").getAttribute("data-codes")));
  });
});

describe("a box that follows a script", () => {
  let broker, elsewhere, daemon, wire;
  const key = Buffer.alloc(32, 7).toString("base64url");
  before(async () => {
    [broker, elsewhere] = [await peers.Mosquitto.start(), await peers.Mosquitto.start()];
    wire = await peers.Wire.on(broker);
    // The daemon only serves the page: the box on the page's broker is ours.
    daemon = await peers.Daemon.start(elsewhere, { page: broker });
    await wire.status("ready");
    await wire.beat();
  });
  after(async () => {
    await daemon?.stop();
    await wire?.stop();
    await broker?.stop();
    await elsewhere?.stop();
  });
  const opened = [];
  const fresh = async (name, more) => {
    const page = await station(chromium, daemon.page, { name, ...more });
    opened.push(page.context());
    return page;
  };
  afterEach(() => Promise.all(opened.splice(0).map((context) => context.close())));
  const action = (name, verb) => wire.next(`${verb} of ${name}`, (m) => m.topic.includes(`sta/${name}/action`) && m.body.verb === verb);
  const reply = (name, { body }, result, code) =>
    wire.say(`dev/ct-1/reply/${name}`, {
      schema: "ichd.reply/1", action_id: body.action_id, alert_id: body.alert_id, result, code, message: code, rev: body.rev + 1,
    });

  test("an alert's whole life: seen by two stations, taken by one, given feedback, closed, purged", async () => {
    const [a, b] = [await fresh("a-1"), await fresh("b-1", { user: "Wang Fang", ward: "ICU" })];
    let document = alert({ alert_id: "01LIFE", stage: "provisional", age_ms: 45_000, escalation: { policy: "night", step: 0, next_in_ms: 90_000 } });
    await wire.alert(document);
    await sounds(a, "urgent");
    await visible(b, ".card.waiting");
    await says(a, ".card .age", /4[5-9] s|5\d s|1 min/);
    await says(a, ".card .who", /next person called/);
    await shot(a, "alert");

    await a.keyboard.press("a");
    await reply("a-1", await action("a-1", "ack"), "refused", "stale_rev");
    await says(a, ".answer.refused", /changed/);
    document = { ...document, rev: 5, stage: "final", state: "acknowledged", ack: { station: "a-1", user: "Li Na" } };
    await wire.alert(document);
    for (const page of [a, b]) await says(page, ".card.taken .who", /Acknowledged by Li Na, a-1/);
    const before = await heard(a, "urgent");
    await shot(b, "acknowledged");

    await b.getByRole("button", { name: "I'm looking" }).click();
    await reply("b-1", await action("b-1", "claim"), "accepted", "ok");
    await says(b, ".answer", /The box has it/);
    await b.getByRole("button", { name: "Wrong" }).click();
    assert.equal((await action("b-1", "feedback")).body.feedback, "wrong");
    await b.getByRole("button", { name: "Close" }).click();
    await b.getByRole("button", { name: "Yes, close it" }).click();
    await action("b-1", "resolve");
    await wire.alert({ ...document, rev: 6, state: "resolved" });
    for (const page of [a, b]) await gone(page, ".card");
    await says(a, ".earlier", /Closed/);
    await wire.say("dev/ct-1/alert/01LIFE", "", true);
    for (const page of [a, b]) await gone(page, ".earlier");
    // An old revision that comes late changes nothing.
    await wire.say("dev/ct-1/alert/01LIFE", { ...document, rev: 2 });
    await wire.alert(alert({ alert_id: "01MARK", kind: "technical", technical: { code: "nobody_listening", text: "Nobody listens" } }));
    await says(a, ".card.technical", /Trouble with the box.*Nobody listens/s);
    assert.equal(await a.locator("[data-alert='01LIFE']").count(), 0);
    assert.equal(await heard(a, "urgent"), before, "what was taken sounds no more");
    await wire.say("dev/ct-1/alert/01MARK", "", true);
    assert.deepEqual([...complaints(a), ...complaints(b)], []);
  });

  test("a withdrawn alert is said aloud and stays until it was seen", async () => {
    const page = await fresh("a-2");
    const document = alert({ alert_id: "01BACK", stage: "provisional" });
    await wire.alert(document);
    await sounds(page, "urgent");
    await wire.alert({ ...document, rev: 2, stage: "final", state: "withdrawn" });
    await sounds(page, "withdrawn");
    await says(page, ".card.withdrawn", /Withdrawn.*still need a reader/s);
    await shot(page, "withdrawn");
    await page.getByRole("button", { name: "Seen" }).click();
    await gone(page, ".card");
    await wire.say("dev/ct-1/alert/01BACK", "", true);
  });

  test("a test is receipted and rings for nobody; whether it was a proof of life says the box", async () => {
    const page = await fresh("a-3");
    await wire.beat({ last_proof_age_s: 800 });
    await says(page, "[data-tile='proof-ct-1']", /13 min ago/);
    await wire.alert(alert({ alert_id: "01TEST", kind: "test", age_ms: 2_000, subject: { ref: "T4T-11" } }));
    await says(page, "[data-tile='proof-ct-1']", /13 min ago.*Test T4T-11/s);
    for (const stage of ["received", "displayed"]) {
      await wire.next(stage, (m) => m.topic.includes("sta/a-3/receipt") && m.body.alert_id === "01TEST" && m.body.stage === stage);
    }
    assert.equal(await page.locator(".card").count(), 0);
    assert.equal(await heard(page, "urgent"), 0);
    await wire.beat({ last_proof_age_s: 3 });
    await says(page, "[data-tile='proof-ct-1']", /\d s ago/);
    // Each try of a proof that fails at its last link is a test alert too.
    await wire.beat({ last_proof_age_s: 2_000 });
    await wire.alert(alert({ alert_id: "01TEST", rev: 2, kind: "test", subject: { ref: "T4T-12" } }));
    await says(page, "[data-tile='proof-ct-1']", /overdue.*Test T4T-12/s);
    await visible(page, ".unavailable[data-codes='proof']");
    await wire.say("dev/ct-1/alert/01TEST", "", true);
    await wire.beat();
    await gone(page, ".unavailable");
  });

  test("a patient under seal opens with the station's key, and with no other", async () => {
    const [with_key, without] = [await fresh("a-4", { key }), await fresh("b-4")];
    const subject = { ref: "K3J-26", enc: sealed({ schema: "ichd.subject/1", study_ref: "5f1c", name: "DOE JANE", patient_id: "4711" }, key) };
    await wire.alert(alert({ alert_id: "01SEAL", subject: { ...subject, location: "CT 1, emergency" } }));
    await says(with_key, ".card .subject", /CT 1, emergency.*DOE JANE, 4711/s);
    await says(without, ".card .subject", /CT 1, emergency/);
    assert.doesNotMatch(await without.content(), /DOE/);
    await wire.alert(alert({ alert_id: "01SEAL", rev: 2, subject }));
    await says(without, ".card .note", /encrypted/);
    await wire.say("dev/ct-1/alert/01SEAL", "", true);
  });

  test("proof of life ages and turns red; silence and a lost box are said aloud, and all is taken back", async () => {
    const page = await fresh("a-5");
    await gone(page, ".unavailable");
    await until("a heartbeat tells its age", async () => (await look(page, "proof-ct-1")) === "ok");
    // Two seconds to go until two intervals have passed; the page counts them itself.
    await wire.beat({ last_proof_age_s: 1_796 });
    wire.silence();
    await says(page, ".unavailable", /proof of life overdue/);
    assert.equal(await look(page, "proof-ct-1"), "bad");
    await shot(page, "proof-overdue");
    await says(page, ".unavailable", /no heartbeat/);
    await sounds(page, "unavailable");
    await page.getByRole("button", { name: /Silence/ }).click();
    await says(page, ".unavailable", /silenced/);
    await wire.beat();
    await gone(page, ".unavailable");
    for (const state of ["maintenance", "offline", "lost", "init"]) {
      await wire.status(state);
      await until(state, async () => (await page.locator(".unavailable").getAttribute("data-codes")) === "status");
    }
    await wire.status("degraded", ["no_station_ready"]);
    await gone(page, ".unavailable");
    await wire.status("degraded", ["disk_low"]);
    await says(page, ".unavailable", /takes no images: its disk is full/);
    await says(page, "main", /Whether there are alerts is not known/);
    await wire.beat({ infer_ok: false });
    await says(page, ".unavailable", /disk is full.*its reader stands still/s);
    assert.equal(await look(page, "box-ct-1"), "bad");
    await wire.beat();
    await wire.status("ready");
    await gone(page, ".unavailable");
  });

  test("a cut link shows the banner, sounds, and the station comes back by itself with what it has", async () => {
    const page = await fresh("a-6");
    const document = alert({ alert_id: "01LINK" });
    await wire.alert(document);
    await sounds(page, "urgent");
    await broker.down();
    await visible(page, ".unavailable[data-codes='link']");
    await visible(page, ".card.waiting");
    assert.equal(await page.locator(".ack").isDisabled(), true, "nothing may look sent that is not");
    await sounds(page, "unavailable");
    await shot(page, "link-cut");
    await broker.up();
    await wire.status("ready");
    await gone(page, ".unavailable");
    // The broker kept nothing; the box says it again, and the station answers it again.
    const n = wire.seen.length;
    await wire.alert(document);
    await until("a receipt again", () => wire.seen.slice(n).find((m) => m.topic.includes("sta/a-6/receipt")));
    await page.locator(".ack").click();
    await action("a-6", "ack");
    await wire.say("dev/ct-1/alert/01LINK", "", true);
  });

  test("what the broker has kept goes on waiting after a page connects; what it has lost says so", async () => {
    const document = alert({ alert_id: "01KEPT" });
    await wire.alert(document);
    const page = await fresh("a-9");
    await visible(page, ".card.waiting");
    await page.evaluate(later, 46_000);
    assert.equal(await page.locator(".card.waiting").count(), 1, "a minute later it waits as before");
    await sounds(page, "urgent", (await heard(page, "urgent")) + 1);
    // A broker that forgot: the box has not said it again.
    await broker.down();
    await visible(page, ".unavailable");
    await broker.up();
    await wire.status("ready");
    await gone(page, ".unavailable");
    await visible(page, ".card.waiting");
    await page.evaluate(later, 46_000);
    await visible(page, ".card.unconfirmed");
    await wire.alert(document);
    await visible(page, ".card.waiting");
    await wire.say("dev/ct-1/alert/01KEPT", "", true);
  });

  test("an alert that nobody could be told for longer than its life is shown and sounds", async () => {
    const page = await fresh("a-10");
    const hours = 3_600_000;
    const raised_at = new Date(Date.now() - 13 * hours).toISOString();
    const expires_at = new Date(Date.now() - 1 * hours).toISOString();
    await wire.alert(alert({ alert_id: "01LONG", age_ms: 13 * hours, raised_at, expires_at }));
    await says(page, ".card.waiting .age", /13 h/);
    await sounds(page, "urgent");
    // A box that renews it no more is lost: after another life it is over here too.
    await page.evaluate(later, 12.1 * hours);
    await gone(page, ".card");
    await says(page, ".earlier", /Expired/);
    await wire.say("dev/ct-1/alert/01LONG", "", true);
  });

  test("a silence is seen by everybody: who, until when, why; and the sound tile says so", async () => {
    const page = await fresh("a-11");
    await until("the sound is on", async () => (await look(page, "sound")) === "ok");
    const end = new Date(Date.now() + 3_600_000);
    const silence = { kind: "silence", author: "Zhao Lei", reason: "scanner test", until: end.toISOString() };
    await wire.status("ready", [], { silence });
    const time = `${String(end.getHours()).padStart(2, "0")}:${String(end.getMinutes()).padStart(2, "0")}`;
    await says(page, "[data-bar='silence']", new RegExp(`until .*${time}: silenced by Zhao Lei: scanner test`));
    assert.equal(await look(page, "sound"), "bad");
    await shot(page, "silenced");
    await wire.status("maintenance", [], { silence: { ...silence, kind: "maintenance" } });
    await says(page, "[data-bar='silence']", /Maintenance by Zhao Lei/);
    // A fast clock of ours does not end it; one that is known to be right does, also when the box cannot say so.
    const past = new Date(Date.now() - 1_000).toISOString();
    await wire.status("ready", [], { silence: { ...silence, until: past, reason: "past" } });
    await says(page, "[data-bar='silence']", /past/);
    await wire.alert(alert({ alert_id: "01MUTE", kind: "test" }));
    await wire.say("dev/ct-1/alert/01MUTE", "", true);
    await gone(page, "[data-bar='silence']");
    assert.equal(await look(page, "sound"), "ok");
    await wire.status("ready");
  });

  test("an address fills in name and role, whatever the site calls it; the box says when they are not the enrolled ones", async () => {
    const page = await station(chromium, `${daemon.page}/`, { hash: "#station=a-12&role=stroke_team" });
    const status = await wire.next("a-12 is ready", (m) => m.topic.endsWith("sta/a-12/status") && m.body.state === "ready");
    assert.equal(status.body.role, "stroke_team");
    assert.equal(await page.evaluate(() => location.hash), "");
    await wire.alert(alert({ alert_id: "01ROLE", escalation: { policy: "night", step: 0, next_in_ms: 60_000, roles: ["nurse", "stroke_team"] } }));
    await sounds(page, "urgent");
    await wire.say("dev/ct-1/alert/01ROLE", "", true);
    await wire.status("degraded", ["station_role:a-13", "station_role:a-12"]);
    await says(page, "[data-bar='role']", /Set up as stroke team/);
    // The right address mends it, in a page that knows itself already.
    await page.goto(`${daemon.page}/#station=a-12&role=phone`);
    await until("the form", async () => (await page.locator("[name=role]").inputValue()) === "phone");
    await page.locator("form button[type=submit]").click();
    await wire.next("a-12 is a phone", (m) => m.topic.endsWith("sta/a-12/status") && m.body.role === "phone");
    await wire.status("ready");
    await gone(page, "[data-bar='role']");
  });

  test("a shift that nobody ended ends by itself, on the page and for the box", async () => {
    const page = await fresh("a-14");
    const last = () => wire.seen.filter((m) => m.topic.endsWith("sta/a-14/status")).at(-1)?.body;
    await until("ready", () => last()?.state === "ready");
    await page.evaluate(() => {
      const now = Date.now.bind(Date);
      Date.now = () => now() + 14.1 * 3_600_000;
    });
    await visible(page, ".start");
    await until("away", () => last().state === "away" && last().user === null);
    // Nor does one that is in the memory of a tablet that was off for days begin again.
    const started_at = new Date(Date.now() - 60 * 3_600_000).toISOString();
    await page.evaluate((shift) => localStorage.setItem("ichd.shift", JSON.stringify(shift)), { user: "Li Na", started_at, sound_ok: true });
    await page.reload();
    await visible(page, ".start");
    assert.equal(await page.locator(".person").count(), 0);
  });

  test("an action says when it is void only on a page that knows the box's clock", async () => {
    await wire.alert(alert({ alert_id: "01CLOCK" }));
    const page = await fresh("a-15", {
      prepare: (page) => page.addInitScript(() => {
        const now = Date.now.bind(Date);
        Date.now = () => now() - 3_600_000;
      }),
    });
    await page.locator("[data-alert='01CLOCK'] .ack").click();
    assert.equal((await action("a-15", "ack")).body.expires_at, undefined, "an hour slow, and only kept documents so far");
    await wire.alert(alert({ alert_id: "01CLOCK", rev: 2 }));
    await until("the revision", async () => (await page.locator("[data-alert='01CLOCK']").getAttribute("data-rev")) === "2");
    await page.locator("[data-alert='01CLOCK'] .actions button").nth(1).click();
    const left = Date.parse((await action("a-15", "claim")).body.expires_at) - Date.now();
    assert.ok(left > 0 && left < 600_000, `${left} ms`);
    await wire.say("dev/ct-1/alert/01CLOCK", "", true);
  });

  test("without its worker a page still ticks: it sounds, and says when the box is silent", async () => {
    const page = await fresh("a-16", { prepare: (page) => page.addInitScript(brokenWorker) });
    await until("linked", async () => (await look(page, "link")) === "ok");
    // What comes in would tick as well.
    wire.silence();
    const classes = new Set();
    await until("the ring goes in and out with the tick", async () => classes.add(await page.locator(".ring").getAttribute("class")).size === 2);
    assert.equal(await page.locator(".ring").evaluate((ring) => getComputedStyle(ring, "::after").animationName), "none", "nothing breathes without a tick");
    await page.evaluate(later, 61_000);
    await visible(page, ".unavailable");
    await wire.alert(alert({ alert_id: "01TICK" }));
    await sounds(page, "urgent", 2);
    await wire.say("dev/ct-1/alert/01TICK", "", true);
    await wire.beat();
  });

  test("who hears the page instead of seeing it: alerts are announced, the shift's dialog keeps the keys", async () => {
    const page = await fresh("a-17");
    const said = page.locator(".unseen[role='alert']");
    assert.equal(await said.textContent(), "");
    await wire.alert(alert({ alert_id: "01SAID", age_ms: 60_000 }));
    await until("announced", async () => (await said.textContent()) === "Suspected intracranial hemorrhage, K3J-26, left · intraparenchymal, intraventricular");
    await wire.alert(alert({ alert_id: "01NEXT", subject: { ref: "T4T-11" }, finding: null }));
    await until("the newest", async () => (await said.textContent()) === "Suspected intracranial hemorrhage, T4T-11");
    for (const id of ["01SAID", "01NEXT"]) await wire.say(`dev/ct-1/alert/${id}`, "", true);
    await page.locator(".person").click();
    const focused = () => page.evaluate(() => document.activeElement.closest(".sheet") !== null);
    for (let i = 0; i < 7; i++) {
      assert.equal(await focused(), true, `after ${i} tabs`);
      await page.keyboard.press(i < 5 ? "Tab" : "Shift+Tab");
    }
    await page.keyboard.press("Escape");
    await gone(page, ".sheet");
    assert.equal(await page.evaluate(() => document.activeElement.className), "person", "focus is back where it was");
  });

  test("a station that dies is said offline by its will; a second tab takes over quietly", async () => {
    const page = await fresh("a-7");
    const tab = await page.context().newPage();
    await tab.goto(daemon.page);
    await visible(tab, ".plain button");
    await tab.locator(".plain button").click();
    await visible(tab, ".vitals");
    await visible(page, ".plain button");
    await until("the second tab is linked", async () => (await look(tab, "link")) === "ok");
    await page.context().close();
    await wire.next("offline", (m) => m.topic.endsWith("sta/a-7/status") && m.body.state === "offline");
  });

  test("after a reload the shift goes on, and a page that may not sound yet says so", async () => {
    const page = await fresh("a-8");
    await page.reload();
    await visible(page, ".soundbar");
    await until("sound_ok is taken back", () => wire.seen.filter((m) => m.topic.endsWith("sta/a-8/status")).at(-1).body.sound_ok === false);
    await page.locator(".soundbar").click();
    await gone(page, ".soundbar");
    await until("sound_ok is back", () => wire.seen.filter((m) => m.topic.endsWith("sta/a-8/status")).at(-1).body.sound_ok);
  });

  test("Chinese, on a phone", async () => {
    const page = await fresh("zh-1", { language: "zh", ward: "神经内科三病区", user: "李娜", size: { width: 414, height: 896 } });
    const addendum = ["the complete series could not be analysed: crashed"];
    await wire.alert(alert({ alert_id: "01ZH", stage: "provisional", state: "escalated", escalation: { step: 1, next_in_ms: 180_000 }, addendum }));
    await says(page, ".card .note", /完整序列无法分析：分析程序崩溃/);
    assert.doesNotMatch(await page.locator(".card .facts").innerText(), /仍在传输/, "what could not be read has arrived");
    await says(page, ".card", /疑似颅内出血.*左侧 · 脑实质内, 脑室内/s);
    await shot(page, "phone-zh");
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true, "nothing is cut off");
    await wire.say("dev/ct-1/alert/01ZH", "", true);
  });

  test("a viewer looks on and says nothing", async () => {
    const page = await fresh("look-1", { role: "viewer", user: "" });
    await wire.alert(alert({ alert_id: "01VIEW" }));
    await says(page, ".card", /only looks on/);
    assert.equal(await page.locator(".ack").count(), 0);
    assert.ok(!wire.seen.some((m) => m.topic.includes("sta/look-1/")));
    await wire.say("dev/ct-1/alert/01VIEW", "", true);
  });
});

describe("HTTPS", () => {
  let dir, tls, broker, daemon;
  before(async () => {
    dir = mkdtempSync(join(tmpdir(), "ichd-tls-"));
    tls = peers.certificates(dir);
    broker = await peers.Mosquitto.start(tls);
  });
  after(async () => {
    await broker?.stop();
    rmSync(dir, { recursive: true, force: true });
  });
  const fetch = (path, more = {}) =>
    new Promise((done, fail) => {
      const request = get(`${daemon.page}${path}`, { ca: readFileSync(tls("ca.crt")), agent: false, ...more }, (response) => {
        response.resume().on("end", () => done(response));
      });
      request.on("error", fail);
    });

  test("page and broker over TLS, in a browser", async () => {
    daemon = await peers.Daemon.start(broker, { tls });
    try {
      const page = await station(chromium, daemon.page, { name: "tls-1" });
      await until("linked over wss", async () => (await look(page, "link")) === "ok");
      await gone(page, ".unavailable");
      // Our authority is in no store of this Chromium: it keeps no page of ours, and shows it all the same.
      assert.deepEqual(complaints(page).filter((line) => !line.startsWith("An SSL certificate error")), []);
      const response = await fetch("/");
      assert.match(response.headers["strict-transport-security"], /max-age/);
      assert.match(response.headers["content-security-policy"], /default-src 'none'/);
    } finally {
      await daemon.stop();
    }
  });

  test("with station.tls.ca, who shows no certificate gets no page", async () => {
    daemon = await peers.Daemon.start(broker, { tls, station: `ca = "${tls("ca.crt")}"\n` });
    try {
      await assert.rejects(fetch("/config.json"));
      const mine = { cert: readFileSync(tls("ward-3.crt")), key: readFileSync(tls("ward-3.key")) };
      assert.equal((await fetch("/config.json", mine)).statusCode, 200);
    } finally {
      await daemon.stop();
    }
  });
});
