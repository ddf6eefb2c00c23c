//! The peers of a station: Mosquitto with a websockets listener, the real daemon, a scripted box, a real Chromium.

import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir, userInfo } from "node:os";
import { join, resolve } from "node:path";

import Ajv from "ajv";
import mqtt from "mqtt";
import { chromium } from "playwright-core";

export const repository = resolve(import.meta.dirname, "../../..");
const target = process.env.CARGO_TARGET_DIR ?? join(repository, "target");
export const program = (name) => join(target, "debug", name);
export const shots = join(target, "station");
mkdirSync(shots, { recursive: true });

export const PATIENCE_MS = Number(process.env.ICHD_PATIENCE_MS ?? 60_000);

export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((done) => server.once("listening", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

export async function until(what, test, patience = PATIENCE_MS) {
  for (let waited = 0; waited < patience; waited += 50) {
    const found = await test();
    if (found) return found;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`waited in vain: ${what}`);
}

function folder() {
  const dir = mkdtempSync(join(tmpdir(), "ichd-station-"));
  return { dir, remove: () => rmSync(dir, { recursive: true, force: true }) };
}

/** Keys and certificates of a small site, by openssl. */
export function certificates(dir) {
  const openssl = (...args) => execFileSync("openssl", args, { cwd: dir, stdio: "ignore" });
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  openssl("req", "-x509", ...key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=site");
  writeFileSync(join(dir, "san"), "subjectAltName=DNS:localhost,IP:127.0.0.1");
  for (const name of ["box", "ward-3"]) {
    openssl("req", "-new", ...key, "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${name}`);
    openssl("x509", "-req", "-in", `${name}.csr`, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
      "-days", "2", "-extfile", "san", "-out", `${name}.crt`);
  }
  return (name) => join(dir, name);
}

/** Debian keeps it where only root looks. */
export const mosquitto = existsSync("/usr/sbin/mosquitto") ? "/usr/sbin/mosquitto" : "mosquitto";

/** Mosquitto on two free ports: MQTT and websockets (over TLS if there are certificates). It keeps nothing on disk. */
export class Mosquitto {
  static async start(tls) {
    const broker = new Mosquitto();
    Object.assign(broker, folder(), { port: await freePort(), websockets: await freePort() });
    const lines = [`listener ${broker.port} 127.0.0.1`, `listener ${broker.websockets} 127.0.0.1`, "protocol websockets"];
    if (tls) lines.push(`certfile ${tls("box.crt")}`, `keyfile ${tls("box.key")}`);
    // Started by root it would become somebody who may not read our folder.
    lines.push("allow_anonymous true", "persistence false", `user ${userInfo().username}`, "");
    writeFileSync(join(broker.dir, "mosquitto.conf"), lines.join("\n"));
    broker.url = `${tls ? "wss" : "ws"}://127.0.0.1:${broker.websockets}`;
    await broker.up();
    return broker;
  }

  async up() {
    this.child = spawn(mosquitto, ["-c", join(this.dir, "mosquitto.conf")], { stdio: "ignore" });
    const client = await until("mosquitto listens", () =>
      mqtt.connectAsync(`mqtt://127.0.0.1:${this.port}`, { reconnectPeriod: 0 }).catch(() => undefined),
    );
    await client.endAsync();
  }

  async down() {
    const gone = new Promise((done) => this.child.once("exit", done));
    this.child.kill("SIGKILL");
    await gone;
  }

  async stop() {
    await this.down();
    this.remove();
  }
}

/** Everything on the wire, as (topic, document); also speaks as a box that follows a script. */
export class Wire {
  seen = [];

  static async on(broker) {
    const wire = new Wire();
    const options = { protocolVersion: 5, reconnectPeriod: 200 };
    wire.client = await mqtt.connectAsync(`mqtt://127.0.0.1:${broker.port}`, options);
    wire.client.on("message", (topic, payload, packet) => {
      const text = payload.toString();
      wire.seen.push({ topic, body: text === "" ? undefined : JSON.parse(text), packet });
    });
    await wire.client.subscribeAsync("ichd/1/#", { qos: 1 });
    return wire;
  }

  next(what, test) {
    return until(what, () => this.seen.find(test));
  }

  say(topic, body, retain = false) {
    const options = { qos: 1, retain };
    return this.client.publishAsync(`ichd/1/north/${topic}`, body === "" ? "" : JSON.stringify(body), options);
  }

  status(state, reasons = [], more = {}) {
    const body = { schema: "ichd.status/1", state, boot: 1, conn: 1, version: "0.1.0", slot: null, model: null, reasons, ...more };
    return this.say("dev/ct-1/status", body, true);
  }

  /** Beats until it is told otherwise; `more` changes what it says. */
  beat(more = {}) {
    this.silence();
    this.pulse = setInterval(() => void this.#heartbeat(more), 500);
    return this.#heartbeat(more);
  }

  silence() {
    clearInterval(this.pulse);
  }

  #heartbeat(more) {
    const body = {
      schema: "ichd.heartbeat/1", uptime_s: 90_000, last_study_age_s: 2_340, last_proof_age_s: 312, proof_interval_s: 900,
      outbox_depth: 0, open_alerts: 0, oldest_unacknowledged_s: null, dicom_ok: true, infer_ok: true, disk_ok: true, ...more,
    };
    return this.say("dev/ct-1/heartbeat", body);
  }

  alert(document) {
    return this.say(`dev/ct-1/alert/${document.alert_id}`, document, true);
  }

  stop() {
    this.silence();
    return this.client.endAsync(true);
  }
}

const schemas = new Map();

/** What is wrong with a document by its schema in docs/contract. */
export function complaints(document) {
  if (schemas.size === 0) {
    const folder = join(repository, "docs/contract");
    const ajv = new Ajv.default({ strict: false, validateFormats: false });
    for (const file of readdirSync(folder).filter((f) => f.endsWith(".schema.json"))) {
      const schema = JSON.parse(readFileSync(join(folder, file), "utf8"));
      schemas.set(schema.title, ajv.compile(schema));
    }
  }
  const check = schemas.get(document.schema);
  if (!check) return [`no schema for ${document.schema}`];
  return check(document) ? [] : check.errors.map((e) => `${e.instancePath} ${e.message}`);
}

/** An alert document as the daemon makes it, with what a test changes. */
export function alert(more = {}) {
  return {
    schema: "ichd.alert/1", alert_id: "01JZ8QW3K5T9V7XH2M4N6P8R0A", rev: 1, kind: "finding", stage: "final", state: "raised",
    priority: 1, device: "ct-1", site: "north", boot: 1, seq: 1,
    raised_at: new Date().toISOString(), published_at: new Date().toISOString(), age_ms: 0,
    clock: { synced: true, offset_ms: 0 }, expires_at: new Date(Date.now() + 43_200_000).toISOString(),
    subject: { ref: "K3J-26" }, study: { study_ref: "5f1c", acquired_at: null, slices: 30 },
    finding: {
      subtypes: ["intraparenchymal", "intraventricular"], p: null, side: "left", slice_range: [10, 20], volume_ml: 38.2,
      operating_point: "final",
    },
    model: null, quality: { ok: true, flags: [] }, timings_ms: {}, escalation: { policy: "night", step: 0, next_in_ms: 120_000 },
    receipts: [], ack: null, claimed_by: null, feedback: [], supersedes: [], addendum: [], disclaimer: "", ...more,
  };
}

/** The real daemon, on the phantom's scanner and a page of its own. */
export class Daemon {
  /** `page`: the broker that the page is told; the daemon's own unless a test wants the wire for itself. `dropIns`: by name. */
  static async start(broker, { page = broker, tls, station = "", key, dropIns = {} } = {}) {
    const daemon = new Daemon();
    Object.assign(daemon, folder());
    const certificate = tls ? `[station.tls]\ncertificate = "${tls("box.crt")}"\nkey = "${tls("box.key")}"\n` : "";
    const config = `[site]\nname = "north"\ndevice = "ct-1"\nprofile = "assist"\n[state]\ndirectory = "${daemon.dir}"
[receive]\nlisten = "127.0.0.1:0"\ncalling-ae-titles = ["CT1"]\nfree-bytes-min = 1000
[assemble]\nquiet-ms = 400\nquiet-incomplete-ms = 1500
[infer]\nmodel = "${repository}/models/ichd-base"\ntrusted-keys = ["${repository}/models/keys/ichd-base.pub"]
[proof]\ninterval-s = 0\n[alert]\nbroker-port = ${broker.port}\n[health]\nheartbeat-s = 2
[station]\nlisten = "127.0.0.1:0"\nbroker-url = "${page.url}"\n${certificate}${station}`;
    let privacy = "";
    if (key) {
      const file = join(daemon.dir, "privacy.jwks");
      writeFileSync(file, JSON.stringify({ keys: [{ kty: "oct", alg: "A256GCM", kid: "test", k: key }] }), { mode: 0o600 });
      privacy = `[privacy]\nlevel = "image"\nkeys = "${file}"\n`;
    }
    writeFileSync(join(daemon.dir, "ichd.toml"), config + privacy);
    mkdirSync(join(daemon.dir, "ichd.toml.d"));
    for (const [name, text] of Object.entries(dropIns)) writeFileSync(join(daemon.dir, "ichd.toml.d", name), text);
    daemon.child = spawn(program("ichd"), ["run", "--config", join(daemon.dir, "ichd.toml")], {
      stdio: ["ignore", "pipe", process.env.ICHD_TEST_LOG ? "inherit" : "ignore"],
      env: { ...process.env, STATE_DIRECTORY: undefined },
    });
    let words = "";
    daemon.child.stdout.on("data", (data) => (words += data));
    const [, at, dicom] = await until("the daemon is up", () => words.match(/station=\S+:(\d+) dicom=\S+:(\d+)/));
    daemon.page = `${tls ? "https" : "http"}://127.0.0.1:${at}`;
    daemon.dicom = dicom;
    return daemon;
  }

  /** A phantom series over DCMTK's storescu. */
  scan(seed, bleed, ...more) {
    const series = join(this.dir, `series-${seed}`);
    const args = ["series", "--seed", String(seed), "--bleed", bleed, "--matrix", "256", "--slices", "30", "--out", series];
    execFileSync(program("ichd-phantom"), [...args, ...more], { stdio: "ignore" });
    const files = readdirSync(series).filter((f) => f.endsWith(".dcm")).sort().map((f) => join(series, f));
    execFileSync("storescu", ["-aet", "CT1", "-aec", "ICHD", "127.0.0.1", this.dicom, ...files], { stdio: "ignore" });
  }

  async kill() {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = new Promise((done) => this.child.once("exit", done));
    this.child.kill("SIGKILL");
    await gone;
  }

  async stop() {
    await this.kill();
    this.remove();
  }
}

/** One real headless Chromium for all tests; `home`: of a person whose certificates it has, shown without asking. */
export async function browser(home) {
  const path = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
  if (!path) throw new Error("chromium is needed (tests/run installs it)");
  const launch = { executablePath: path, args: ["--no-sandbox", "--disable-dev-shm-usage"] };
  if (home) {
    // Who manages the tablet says which certificate it shows where; here in a mount namespace of this browser's own.
    const policies = join(home, "etc/policies/managed");
    mkdirSync(policies, { recursive: true });
    const choose = JSON.stringify({ pattern: "https://localhost", filter: { ISSUER: { CN: "ichd site north" } } });
    writeFileSync(join(policies, "site.json"), JSON.stringify({ AutoSelectCertificateForUrls: [choose] }));
    launch.executablePath = join(home, "chromium");
    const inside = `mount --bind ${home}/etc /etc/chromium && exec ${path} "$@"`;
    writeFileSync(launch.executablePath, `#!/bin/sh\nexec unshare --map-root-user --mount sh -c '${inside}' sh "$@"\n`, { mode: 0o755 });
    launch.env = { ...process.env, HOME: home };
  }
  return chromium.launch(launch);
}

/** A station: a browser of its own, its setup form filled in as a person would; with `hash` name and role come from the
 * address. `prepare`: what is done to the page before it is opened. */
export async function station(browser, url, settings = {}) {
  const { name = "ward-3", ward = "Stroke ward 3", role = "nurse", user = "Li Na", language, key, password, size, strict = false, hash = "", prepare } = settings;
  const context = await browser.newContext({
    viewport: size ?? { width: 1280, height: 800 }, locale: "en-GB", ignoreHTTPSErrors: !strict,
  });
  const page = await context.newPage();
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (line) => line.type() === "error" && page.problems.push(line.text()));
  await prepare?.(page);
  await page.goto(url + hash);
  if (language === "zh") await page.getByRole("button", { name: "中文" }).click();
  if (!hash) {
    await page.locator("[name=station]").fill(name);
    await page.locator("[name=role]").selectOption(role);
  }
  await page.locator("[name=ward]").fill(ward);
  if (key || password) await page.locator("summary").click();
  if (key) await page.locator("[name=key]").fill(key);
  if (password) await page.locator("[name=password]").fill(password);
  await page.locator("form button[type=submit]").click();
  if (user) await startShift(page, user);
  return page;
}

export async function startShift(page, user) {
  await page.locator(".start").click();
  await page.locator("[name=user]").fill(user);
  await page.locator(".sheet button[type=submit]").click();
  await page.locator(".sheet .row button").first().click();
}

/** How many tones of a kind have begun to play on a page. */
export const heard = (page, tone) => page.evaluate((tone) => window.ichd?.heard[tone] ?? 0, tone);

export const shot = (page, name) => page.screenshot({ path: join(shots, `${name}.png`) });
