//! Tablets as the hospital sets them up: what `ichd enrol` made for them, and nothing else, in a real Chromium that trusts
//! the site's authority. Page and broker over TLS; who it is, says a certificate, or a name with a password.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import * as peers from "./peers.mjs";
import { station, until } from "./peers.mjs";

const listens = (port) =>
  new Promise((done) => {
    const socket = connect(port, "127.0.0.1").on("error", () => done(false)).on("connect", () => socket.end(() => done(true)));
  });

describe("tablets of the site", () => {
  let dir, site, broker, ports;
  /** What `ichd enrol add` printed, by name. */
  const printed = {};
  before(async () => {
    dir = mkdtempSync(join(tmpdir(), "ichd-enrolled-"));
    site = join(dir, "site");
    ports = { mqtt: await peers.freePort(), certificate: await peers.freePort(), password: await peers.freePort() };
    const enrol = (...args) => execFileSync(peers.program("ichd"), ["enrol", "--dir", site, ...args], { stdio: "pipe" });
    enrol("init", "--site", "north", "--broker", "localhost", "--port", ports.mqtt, "--websockets-port", ports.certificate,
      "--websockets-password-port", ports.password, "--broker-dir", join(site, "broker"), "--persistence-dir", dir);
    enrol("add", "device", "ct-1", "--address", "localhost");
    printed["nurse-1"] = String(enrol("add", "station", "nurse-1", "--p12"));
    printed["nurse-2"] = String(enrol("add", "station", "nurse-2", "--password"));
    writeFileSync(join(site, "broker/conf.d/test.conf"), `user ${userInfo().username}\n`);
    broker = spawn(peers.mosquitto, ["-c", join(site, "broker/mosquitto.conf")], { stdio: "ignore" });
    await until("the broker listens", () => listens(ports.password));
  });
  after(() => {
    broker?.kill("SIGKILL");
    rmSync(dir, { recursive: true, force: true });
  });

  /** A box with what was brought to it, only in other places; `more`: a drop-in of the site's own. */
  function box(more) {
    const folder = join(site, "device/ct-1");
    const enrolled = readFileSync(join(folder, "40-enrolled.toml"), "utf8")
      .replaceAll("/etc/ichd/tls", folder)
      .replace("/run/credentials/ichd.service/device.key", join(folder, "device.key"))
      .replace("/run/credentials/ichd.service/station.key", join(folder, "server.key"))
      .replace("0.0.0.0:8443", "127.0.0.1:0");
    const stations = readFileSync(join(site, "daemon/50-stations.toml"), "utf8");
    const dropIns = { "40-enrolled.toml": enrolled, "50-stations.toml": stations, "90-site.toml": more };
    return peers.Daemon.start({ port: ports.mqtt, url: `wss://localhost:${ports.certificate}` }, { dropIns });
  }

  /** The home folder of a tablet with what was brought to it: the authority, and a certificate where it has one. */
  function tablet(name, p12) {
    const [mine, home] = [join(site, "station", name), join(dir, name)];
    const store = join(home, ".pki/nssdb");
    mkdirSync(store, { recursive: true });
    const nss = (program, ...args) => execFileSync(program, ["-d", `sql:${store}`, ...args], { stdio: "pipe" });
    nss("certutil", "-N", "--empty-password");
    nss("certutil", "-A", "-n", "site", "-t", "C,,", "-i", join(mine, "ca.crt"));
    if (p12) nss("pk12util", "-i", join(mine, "station.p12"), "-W", readFileSync(join(mine, "p12-password"), "utf8"), "-K", "");
    return home;
  }

  async function acknowledges(name, { more = "", p12 = false, password, seed }) {
    const daemon = await box(more);
    const chromium = await peers.browser(tablet(name, p12));
    try {
      const url = daemon.page.replace(/^http:..127.0.0.1/, "https://localhost");
      const [, hash] = printed[name].match(/https:\/\/localhost:8443\/(#\S+)/);
      const page = await station(chromium, `${url}/`, { hash, password, user: "Li Na", strict: true });
      assert.equal(await page.evaluate(() => window.ichd.station.settings.station), name);
      const tile = (of) => page.locator(`[data-tile="${of}"]`).getAttribute("data-look");
      await until("linked over wss", async () => (await tile("link")) === "ok");
      await until("the box is ready", async () => (await tile("box-ct-1")) === "ok");
      daemon.scan(seed, "intraparenchymal", "--side", "left", "--volume-ml", "45");
      await until("the alert", () => page.locator(".card.waiting").first().isVisible());
      await page.locator(".ack").click();
      const args = ["records", "--csv", "--config", join(daemon.dir, "ichd.toml")];
      const records = () => execFileSync(peers.program("ichd"), args, { encoding: "utf8" });
      await until("the record names who took it, and where", () => /Li Na/.test(records()) && records().includes(name));
      // Kept by the browser as well: it works on when the box is away.
      assert.ok(await page.evaluate(() => navigator.serviceWorker.ready.then((worker) => worker.active !== null)));
      // The first websocket ends for want of a choice; the plain request that makes it gets no answer from the listener.
      const expected = /^WebSocket connection to|^Failed to load resource: net::ERR_(CONNECTION_CLOSED|EMPTY_RESPONSE)/;
      assert.deepEqual(page.problems.filter((line) => !expected.test(line)), []);
    } finally {
      await chromium.close();
      await daemon.stop();
    }
  }

  test("one loads the page, reaches the broker and acknowledges by its certificate alone", () =>
    acknowledges("nurse-1", { p12: true, seed: 12 }));

  test("one without a certificate does so by name and password, where the site allows that", () => {
    const more = `[station]\nbroker-url = "wss://localhost:${ports.password}"\nallow-anonymous = true\n`;
    const password = readFileSync(join(site, "station/nurse-2/password"), "utf8");
    return acknowledges("nurse-2", { more, password, seed: 12 });
  });
});
