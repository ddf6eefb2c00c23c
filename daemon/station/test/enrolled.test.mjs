//! A tablet as the hospital sets it up: what `ichd enrol` made for it, and nothing else, in a real Chromium that trusts
//! the site's authority and has the station's certificate. Page and broker both over mutual TLS.

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

describe("a tablet of the site", () => {
  let dir, broker, daemon, chromium;
  before(async () => {
    dir = mkdtempSync(join(tmpdir(), "ichd-enrolled-"));
    const [mqtt, websockets] = [await peers.freePort(), await peers.freePort()];
    const site = join(dir, "site");
    const enrol = (...args) => execFileSync(peers.program("ichd"), ["enrol", "--dir", site, ...args], { stdio: "pipe" });
    enrol("init", "--site", "north", "--broker", "localhost", "--port", mqtt, "--websockets-port", websockets,
      "--broker-dir", join(site, "broker"), "--persistence-dir", dir);
    enrol("add", "device", "ct-1", "--address", "localhost");
    enrol("add", "station", "nurse-1", "--p12");
    writeFileSync(join(site, "broker/conf.d/test.conf"), `user ${userInfo().username}\n`);
    broker = spawn("/usr/sbin/mosquitto", ["-c", join(site, "broker/mosquitto.conf")], { stdio: "ignore" });
    await until("the broker listens", () => listens(websockets));

    // What is brought to the box; only its places are others here.
    const box = join(site, "device/ct-1");
    const enrolled = readFileSync(join(box, "40-enrolled.toml"), "utf8")
      .replaceAll("/etc/ichd/tls", box)
      .replace("/run/credentials/ichd.service/device.key", join(box, "device.key"))
      .replace("/run/credentials/ichd.service/station.key", join(box, "server.key"))
      .replace("0.0.0.0:8443", "127.0.0.1:0");
    const stations = readFileSync(join(site, "daemon/50-stations.toml"), "utf8");
    daemon = await peers.Daemon.start(
      { port: mqtt, url: `wss://localhost:${websockets}` },
      { dropIns: { "40-enrolled.toml": enrolled, "50-stations.toml": stations } },
    );

    // What is brought to the tablet.
    const mine = join(site, "station/nurse-1");
    const store = join(dir, ".pki/nssdb");
    mkdirSync(store, { recursive: true });
    const nss = (program, ...args) => execFileSync(program, ["-d", `sql:${store}`, ...args], { stdio: "pipe" });
    nss("certutil", "-N", "--empty-password");
    nss("certutil", "-A", "-n", "site", "-t", "C,,", "-i", join(mine, "ca.crt"));
    nss("pk12util", "-i", join(mine, "station.p12"), "-W", readFileSync(join(mine, "p12-password"), "utf8"), "-K", "");
    chromium = await peers.browser(dir);
  });
  after(async () => {
    await chromium?.close();
    await daemon?.stop();
    broker?.kill("SIGKILL");
    rmSync(dir, { recursive: true, force: true });
  });

  test("loads the page, reaches the broker and acknowledges, by its certificate alone", async () => {
    const page = await station(chromium, daemon.page.replace(/^http:..127.0.0.1/, "https://localhost"), {
      name: "nurse-1", user: "Li Na", strict: true,
    });
    const tile = (name) => page.locator(`[data-tile="${name}"]`).getAttribute("data-look");
    await until("linked over wss", async () => (await tile("link")) === "ok");
    await until("the box is ready", async () => (await tile("box-ct-1")) === "ok");
    daemon.scan(12, "intraparenchymal", "--side", "left", "--volume-ml", "45");
    await until("the alert", () => page.locator(".card.waiting").first().isVisible());
    await page.locator(".ack").click();
    const records = () =>
      execFileSync(peers.program("ichd"), ["records", "--csv", "--config", join(daemon.dir, "ichd.toml")], { encoding: "utf8" });
    await until("the record names who took it", () => /Li Na/.test(records()) && /nurse-1/.test(records()));
    // Kept by the browser as well: it works on when the box is away.
    assert.ok(await page.evaluate(() => navigator.serviceWorker.ready.then((worker) => worker.active !== null)));
    // The first websocket is refused for want of a choice, and the plain request that makes the choice is no websocket.
    const expected = /^WebSocket connection to|^Failed to load resource: net::ERR_(CONNECTION_CLOSED|EMPTY_RESPONSE)/;
    assert.deepEqual(page.problems.filter((line) => !expected.test(line)), []);
  });
});
