//! What a person sees at night, at four sizes and in both languages: nothing is cut off, the button is under the thumb,
//! what matters is read from three metres, and by eyes that do not tell red from green. Pictures in target/station.

import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";

import { sealed } from "./jwe.mjs";
import * as peers from "./peers.mjs";
import { alert, shot, station, until } from "./peers.mjs";

const SIZES = {
  phone: { width: 390, height: 844 }, small: { width: 360, height: 640 }, tablet: { width: 1024, height: 768 }, wall: { width: 1920, height: 1080 },
};
const VIEWS = Object.keys(SIZES).flatMap((size) => ["en", "zh"].map((language) => [`${size}-${language}`, { size: SIZES[size], language }]));

const waiting = (id, more) => alert({ alert_id: id, subject: { ref: "K3J-26", location: "CT 1, emergency" }, ...more });
const MANY = [
  waiting("01M1", { quality: { ok: true, flags: ["missing_slices", "tilted"] } }),
  waiting("01M2", { priority: 2, stage: "provisional", subject: { ref: "T4T-11" }, age_ms: 300_000, state: "escalated", addendum: ["declined by Wang Fang, icu-2"] }),
  waiting("01M3", { subject: { ref: "P9W-83" }, state: "acknowledged", ack: { station: "icu-2", user: "Wang Fang" }, claimed_by: { station: "icu-2", user: "Wang Fang" } }),
  waiting("01M4", { subject: { ref: "Q2M-55" }, state: "withdrawn" }),
  waiting("01M5", { kind: "technical", priority: 2, subject: { ref: "" }, finding: null, technical: { code: "nobody_listening", text: "no station that was called has shown alert Q2M-55 after 10 s" } }),
];
const STORM = Array.from({ length: 14 }, (_, n) => waiting(`01S${n}`, { group: "01S0", subject: { ref: `S7X-${20 + n}` }, age_ms: 1_000 * n }));

describe("looks", () => {
  let chromium, broker, elsewhere, daemon, wire;
  const pages = new Map();
  before(async () => {
    chromium = await peers.browser();
    [broker, elsewhere] = [await peers.Mosquitto.start(), await peers.Mosquitto.start()];
    wire = await peers.Wire.on(broker);
    daemon = await peers.Daemon.start(elsewhere, { page: broker });
    await wire.status("ready");
    await wire.beat({ experience_week: { judged: 14, right: 11, wrong: 2, positive_predictive_value: 0.85 } });
    for (const [name, { size, language }] of VIEWS) {
      const words = language === "zh" ? { user: "李娜", ward: "神经内科三病区" } : {};
      pages.set(name, await station(chromium, daemon.page, { name, language, size, ...words }));
    }
  });
  after(async () => {
    await chromium?.close();
    await daemon?.stop();
    await wire?.stop();
    await broker?.stop();
    await elsewhere?.stop();
  });

  // What a failed test has left must not fail the next.
  afterEach(async () => {
    if (cut) return;
    await wire.status("ready");
    await purge();
  });
  let cut = false;
  const retained = [];
  /** Under an identity of its own: a page does not take an old revision of what was purged. */
  const raise = (document) => {
    const alert_id = `01LOOK${retained.length}${Date.now()}`;
    retained.push(alert_id);
    return wire.alert({ ...document, alert_id });
  };
  const purge = async () => {
    for (const alert_id of retained.splice(0)) await wire.say(`dev/ct-1/alert/${alert_id}`, "", true);
  };

  /** Every page as it should be with `cards` cards; `ack`: the first card's button can be pressed without scrolling. */
  async function all(state, cards, { ack = cards > 0, selector = ".card" } = {}) {
    for (const [name, page] of pages) {
      await until(`${name} shows ${state}`, async () => (await page.locator(selector).count()) === cards);
      await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
      await shot(page, `look-${name}-${state}`);
      const seen = await page.evaluate(look);
      assert.deepEqual(seen.cut, [], `${name}, ${state}: cut off`);
      assert.deepEqual(seen.faint, [], `${name}, ${state}: contrast below WCAG AA`);
      if (ack) assert.ok(seen.ack >= 0.5, `${name}, ${state}: ${seen.ack} of the button is on the screen`);
      if (!name.startsWith("wall")) continue;
      for (const [what, px] of Object.entries(seen.far)) assert.ok(px >= FAR_PX, `${name}, ${state}: ${what} has ${px} px`);
    }
  }
  const banner = async (codes) => {
    const says = async (page) => (await page.locator(".unavailable").count()) === 1 && (await page.locator(".unavailable").getAttribute("data-codes")) === codes;
    for (const page of pages.values()) await until(codes, () => says(page));
  };

  test("nothing open", () => all("calm", 0));

  test("one alert", async () => {
    await raise(MANY[0]);
    await all("one", 1);
  });

  test("one that waits and one in hand, as README shows them: target/station/station.png is docs/station.png", async () => {
    const key = Buffer.alloc(32, 7).toString("base64url");
    const page = await station(chromium, daemon.page, { key });
    const patient = { schema: "ichd.subject/1", study_ref: "5f1c", name: "PHANTOM HEAD", patient_id: "0012" };
    const subject = { ref: "K3J-26", location: "CT 1, emergency", enc: sealed(patient, key) };
    await raise(waiting("", { stage: "provisional", subject, age_ms: 46_000, escalation: { policy: "night", step: 0, next_in_ms: 74_000 } }));
    const by = { station: "desk-1", user: "Wang Fang" };
    await raise(waiting("", {
      subject: { ref: "M7W-83" }, age_ms: 1_270_000, priority: 2, state: "acknowledged", ack: by, feedback: [{ ...by, value: "right" }],
      finding: { subtypes: ["subdural"], side: "right", slice_range: [14, 22], volume_ml: 12.3 }, quality: { ok: true, flags: ["missing_slices"] },
    }));
    await until("the patient", () => page.getByText("PHANTOM HEAD, 0012").isVisible());
    await until("both stand still", async () => (await page.locator(".card").count()) === 2 && (await page.locator(".moving").count()) === 0);
    await shot(page, "station");
    await page.context().close();
  });

  test("one of everything", async () => {
    for (const document of MANY) await raise(document);
    await all("many", MANY.length);
    const count = await pages.get("wall-en").locator(".count").innerText();
    assert.match(count, /3 waiting.*1 in hand/s);
    const zh = await pages.get("wall-zh").locator(".alerts").innerText();
    for (const words of ["缺少层面", "提醒无人接收", "无法处理：Wang Fang, icu-2"]) assert.ok(zh.includes(words), words);
  });

  test("keys alone: choose the second, take it, call the next, say unsure, close what is in hand", async () => {
    const page = pages.get("wall-en");
    for (const document of MANY.slice(0, 3)) await raise(document);
    const [, second, third] = retained;
    const said = (verb, id) => wire.next(`${verb} by key`, (m) => m.topic.endsWith("sta/wall-en/action/ct-1") && m.body.verb === verb && m.body.alert_id === id);
    await until("three cards that stand still", async () => (await page.locator(".card").count()) === 3 && (await page.locator(".moving").count()) === 0);
    await page.keyboard.press("ArrowDown");
    await until("the second is chosen", async () => (await page.locator(".card.selected").getAttribute("data-alert")) === second);
    await page.keyboard.press("c");
    await said("claim", second);
    await page.keyboard.press("e");
    await said("escalate", second);
    await page.keyboard.press("ArrowDown");
    await until("the third is chosen", async () => (await page.locator(".card.selected").getAttribute("data-alert")) === third);
    await page.keyboard.press("3");
    assert.equal((await said("feedback", third)).body.feedback, "unsure");
    await page.keyboard.press("r");
    await until("the question", () => page.locator(".card.selected .question").isVisible());
    assert.ok(!wire.seen.some((m) => m.body?.verb === "resolve"), "a key asks what its button asks");
    await page.keyboard.press("Enter");
    await said("resolve", third);
    await page.keyboard.press("ArrowUp");
    await page.keyboard.press("d");
    await until("why", () => page.locator(".card.selected .question").isVisible());
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    assert.equal((await said("decline", second)).body.reason, "not_mine");
    assert.ok(!wire.seen.some((m) => m.body?.verb === "ack"), "no key that nobody pressed");
  });

  test("a storm: all are there, most can be seen from the corridor", async () => {
    for (const document of STORM) await raise(document);
    await all("storm", STORM.length);
    const whole = await pages.get("wall-en").evaluate(() => {
      const bottom = document.querySelector(".vitals").getBoundingClientRect().top;
      return [...document.querySelectorAll(".card .ref")].filter((ref) => ref.getBoundingClientRect().bottom <= bottom).length;
    });
    assert.ok(whole >= 6, `${whole} of 14 on the wall`);
  });

  test("alerts are silenced, and this station is set up as something else", async () => {
    await raise(MANY[0]);
    const silence = { kind: "silence", author: "Zhao Lei", reason: "scanner test", until: new Date(Date.now() + 3_600_000).toISOString() };
    const roles = VIEWS.map(([name]) => `station_role:${name}`);
    await wire.status("degraded", roles, { silence });
    for (const page of pages.values()) await until("both bars", async () => (await page.locator("[data-bar]").count()) === 2);
    await all("muted", 1);
  });

  test("the box is in maintenance while an alert waits; then it is alone", async () => {
    await raise(STORM[0]);
    await wire.status("maintenance");
    await banner("status");
    await all("unavailable", 1);
    await purge();
    await all("unavailable-calm", 0);
    for (const page of pages.values()) assert.doesNotMatch(await page.locator(".calm").innerText(), /No open alert|没有未处理/);
  });

  test("a new alert brings a nurse back from the figures, and counts for an engineer", async () => {
    for (const page of pages.values()) await page.locator(".tab").nth(1).click();
    await all("engineer", 1, { ack: false, selector: ".engineer" });
    const bench = await station(chromium, daemon.page, { name: "bench", role: "engineer" });
    await raise(MANY[0]);
    await all("back", 1);
    await until("the count", async () => /1/.test(await bench.locator(".badge").innerText()));
    assert.equal(await bench.locator(".engineer").count(), 1);
    await bench.context().close();
  });

  test("the shift", async () => {
    for (const page of pages.values()) await page.locator(".person").click();
    await all("shift", 1, { ack: false, selector: ".sheet form" });
    for (const page of pages.values()) await page.locator(".sheet .plain-button").first().click();
  });

  test("amber, blue and red are told apart without red, green or blue cones, and each has its own sign", async () => {
    const page = pages.get("wall-en");
    const colours = await page.evaluate(() => {
      const root = getComputedStyle(document.documentElement);
      return ["--amber", "--blue", "--red", "--text"].map((name) => [name, root.getPropertyValue(name).trim()]);
    });
    for (const [eyes, matrix] of Object.entries(EYES)) {
      for (const [i, [a, one]] of colours.entries()) {
        for (const [b, other] of colours.slice(i + 1)) {
          const d = distance(lab(one, matrix), lab(other, matrix));
          assert.ok(d >= 20, `${eyes}: ${a} and ${b} are ${d.toFixed(1)} apart`);
        }
      }
    }
  });

  test("no link", async () => {
    await raise(MANY[0]);
    for (const page of pages.values()) await until("the card", async () => (await page.locator(".card").count()) === 1);
    cut = true;
    await broker.down();
    try {
      await banner("link");
      await all("no-link", 1);
    } finally {
      await broker.up();
    }
  });
});

/** Ten arc minutes at three metres (what eyes of 20/40 read) on a 32-inch screen of 1080 lines: 8.7 mm, 24 px of capital. */
const FAR_PX = 24;

/** Runs in the page: what is cut off, what is faint, how much of the first button can be seen, how tall what matters is. */
function look() {
  const shown = (e) => e.getClientRects().length > 0 && getComputedStyle(e).visibility === "visible";
  const elements = [...document.querySelectorAll("#station *")].filter(shown);
  const named = (e) => `${e.tagName.toLowerCase()}.${e.className} "${e.textContent.slice(0, 30)}"`;
  const cut = elements.filter((e) => {
    const style = getComputedStyle(e);
    if (style.display === "inline" || style.display === "contents" || e.closest(".scroll, select, .unseen")) return false;
    return e.scrollWidth > e.clientWidth + 1 && style.textOverflow !== "ellipsis";
  });
  if (document.documentElement.scrollWidth > innerWidth) cut.push(document.documentElement);

  const parse = (colour) => {
    const n = colour.match(/[\d.]+/g).map(Number);
    return colour.startsWith("color(srgb") ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  /** Grounds an element may stand on: every colour of a gradient is one. */
  const grounds = (e) => {
    if (!e) return [[12, 18, 25]];
    const { backgroundColor, backgroundImage } = getComputedStyle(e);
    const stops = backgroundImage === "none" ? [] : (backgroundImage.match(/rgba?\([^)]*\)|color\([^)]*\)/g) ?? []);
    const under = grounds(e.parentElement);
    const own = parse(backgroundColor);
    if (stops.length > 0) return stops.flatMap((stop) => under.map((u) => over(parse(stop), u)));
    return own[3] === 0 ? under : under.map((u) => over(own, u));
  };
  const faint = elements.filter((e) => {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) return false;
    // What cannot be pressed is dimmed on purpose, and what is behind a sheet is not to be read.
    if (e.closest(":disabled, .moving .actions") || (document.querySelector(".sheet") && !e.closest(".sheet"))) return false;
    const { color, fontSize, fontWeight } = getComputedStyle(e);
    const large = parseFloat(fontSize) >= 24 || (parseFloat(fontSize) >= 18.66 && Number(fontWeight) >= 700);
    let opacity = 1;
    for (let p = e; p; p = p.parentElement) opacity *= Number(getComputedStyle(p).opacity);
    const ink = parse(color);
    return grounds(e).some((ground) => contrast(over([ink[0], ink[1], ink[2], ink[3] * opacity], ground), ground) < (large ? 3 : 4.5));
  });

  const button = document.querySelector(".ack")?.getBoundingClientRect();
  const bottom = document.querySelector(".vitals")?.getBoundingClientRect().top ?? innerHeight;
  const ack = button ? Math.max(0, Math.min(button.bottom, bottom) - Math.max(0, button.top)) / button.height : 0;
  const far = {};
  for (const selector of [".unavailable h1", ".card.waiting .ref", ".card.waiting .age", ".count b", ".ring span"]) {
    const e = document.querySelector(selector);
    // A capital is about 0.72 of the size of these fonts.
    if (e && shown(e)) far[selector] = Math.round(0.72 * parseFloat(getComputedStyle(e).fontSize));
  }
  return { cut: cut.map(named), faint: faint.map(named), ack, far };
}

/** Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB. */
const EYES = {
  usual: [1, 0, 0, 0, 1, 0, 0, 0, 1],
  protan: [0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216, -0.003882, -0.048116, 1.051998],
  deutan: [0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.01182, 0.04294, 0.968881],
  tritan: [1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.3039],
};

/** CIE L*a*b* (D65) of a colour as such eyes see it. */
function lab(hex, m) {
  const linear = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  const [r, g, b] = [0, 3, 6].map((i) => Math.min(1, Math.max(0, m[i] * linear[0] + m[i + 1] * linear[1] + m[i + 2] * linear[2])));
  const f = (t) => (t > 0.008856 ? Math.cbrt(t) : 7.787 * t + 16 / 116);
  const [x, y, z] = [(0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505, 0.2126 * r + 0.7152 * g + 0.0722 * b, (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089].map(f);
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
