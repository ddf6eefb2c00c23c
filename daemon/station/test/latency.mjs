//! Verdict to page: how long from the moment a verdict is decided until a station has painted it. Real daemon, real
//! Mosquitto, real headless Chromium on one machine, studies over DICOM; beside it the bare round trip of the same broker
//! in the same run. `npm run latency [STUDIES]`; prints p50 and p99.
//!
//! A document says when it was published and how long after its verdict (`timings_ms.verdict_to_publish`); the page says
//! when the frame with that revision had been drawn. One clock, so the difference is good to about a millisecond.

import { performance } from "node:perf_hooks";

import mqtt from "mqtt";

import * as peers from "./peers.mjs";

const studies = Number(process.argv[2] ?? 25);
const wall = () => performance.timeOrigin + performance.now();

/** In the page: when each revision was first painted. Two animation frames: the second begins after the first is drawn. */
function watch() {
  window.painted = {};
  const look = () => {
    const shown = [...document.querySelectorAll("[data-alert]")].map((c) => `${c.dataset.alert}/${c.dataset.rev}`);
    const fresh = shown.filter((key) => !(key in window.painted));
    if (fresh.length === 0) return;
    for (const key of fresh) window.painted[key] = null;
    requestAnimationFrame(() => requestAnimationFrame(() => {
      for (const key of fresh) window.painted[key] = performance.timeOrigin + performance.now();
    }));
  };
  new MutationObserver(look).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ["data-rev"] });
}

/** QoS 1 from one client to another through the broker, with a payload of the size of an alert. */
async function roundTrips(broker, bytes, n) {
  const connect = () => mqtt.connectAsync(`mqtt://127.0.0.1:${broker.port}`, { protocolVersion: 5 });
  const [from, to] = [await connect(), await connect()];
  await to.subscribeAsync("bare", { qos: 1 });
  const found = [];
  for (let i = 0; i < n; i++) {
    const payload = String(i).padEnd(bytes, ".");
    const arrived = new Promise((done) => to.once("message", () => done(performance.now())));
    const sent = performance.now();
    from.publish("bare", payload, { qos: 1 });
    found.push((await arrived) - sent);
  }
  await Promise.all([from.endAsync(true), to.endAsync(true)]);
  return found;
}

const at = (sorted, p) => sorted[Math.min(sorted.length - 1, Math.ceil(p * sorted.length) - 1)];
function line(name, values) {
  const sorted = [...values].sort((a, b) => a - b);
  const ms = (p) => at(sorted, p).toFixed(1).padStart(7);
  console.log(`${name.padEnd(38)} n=${String(sorted.length).padStart(4)}  p50 ${ms(0.5)} ms  p99 ${ms(0.99)} ms  max ${ms(1)} ms`);
}

const broker = await peers.Mosquitto.start();
const daemon = await peers.Daemon.start(broker);
const chromium = await peers.browser();
const wire = await peers.Wire.on(broker);
try {
  const page = await peers.station(chromium, daemon.page);
  await page.evaluate(watch);
  let bytes = 0;
  const bare = [];
  for (let n = 0; n < studies; n++) {
    daemon.scan(100 + n, "intraparenchymal", "--side", n % 2 ? "left" : "right", "--volume-ml", "45");
    const done = () => wire.seen.filter((m) => m.body?.schema === "ichd.study/1").length > n;
    await peers.until(`study ${n}`, done, 120_000);
    // What is on the screen is taken and closed, so that the next one is at the top, as at night.
    const alerts = wire.seen.filter((m) => m.body?.schema === "ichd.alert/1");
    const { alert_id, rev } = alerts.at(-1)?.body ?? {};
    bytes = Math.max(bytes, JSON.stringify(alerts.at(-1)?.body ?? {}).length);
    await new Promise((done) => setTimeout(done, 500));
    bare.push(...(await roundTrips(broker, bytes, 20)));
    if (alert_id) {
      await wire.say("sta/ward-3/action/ct-1", {
        schema: "ichd.action/1", action_id: crypto.randomUUID(), alert_id, rev, verb: "resolve", user: "Li Na",
      });
      await peers.until("it is closed", () => wire.seen.some((m) => m.topic.endsWith(`/alert/${alert_id}`) && m.body === undefined), 30_000);
    }
  }
  const painted = await page.evaluate(() => window.painted);
  const held = new Map();
  const toPublish = [], toPage = [];
  for (const { topic, body } of wire.seen) {
    if (body?.schema !== "ichd.alert/1" || body.kind !== "finding") continue;
    // Only what a verdict said: the first revision, and those with another finding or stage.
    const content = JSON.stringify([body.stage, body.finding]);
    const news = held.get(topic) !== content;
    held.set(topic, content);
    const shown = painted[`${body.alert_id}/${body.rev}`];
    if (!news || !shown) continue;
    const published = Date.parse(body.published_at);
    toPublish.push(body.timings_ms.verdict_to_publish);
    toPage.push(shown - (published - body.timings_ms.verdict_to_publish));
  }
  console.log(`${studies} studies, alerts of up to ${bytes} bytes, ${new Date(wall()).toISOString()}`);
  line("bare Mosquitto round trip (QoS 1)", bare);
  line("verdict -> handed to the broker", toPublish);
  line("verdict -> painted in Chromium", toPage);
} finally {
  await chromium.close();
  await wire.stop();
  await daemon.stop();
  await broker.stop();
}
