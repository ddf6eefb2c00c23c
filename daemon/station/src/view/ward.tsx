import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { age, t, word } from "../i18n.ts";
import { proofAge, proofInterval } from "../liveness.ts";
import type { Shown, Station } from "../station.ts";
import type { Feedback } from "../wire.ts";
import { isOpen, isWaiting } from "../wire.ts";
import { Card, finding, headline, type Question } from "./card.tsx";
import { StartShift } from "./shift.tsx";

interface Props {
  station: Station;
  tab: "ward" | "engineer";
  onTab(tab: "ward" | "engineer"): void;
  onSetup(): void;
  children?: preact.ComponentChildren;
}

/** The whole page: who this is, whether the AI is there, the alerts, and the vital signs of the box at the bottom. */
export function Ward({ station, tab, onTab, onSetup, children }: Props) {
  const [starting, setStarting] = useState(false);
  const open = station.open;
  const waiting = open.filter(({ alert, unconfirmed }) => isWaiting(alert) && !unconfirmed);
  useNew(waiting.map(({ key }) => key), () => {
    // Whoever looks at figures is brought back to the patients; an engineer sees the count and stays.
    if (tab === "engineer" && station.settings.role !== "engineer") onTab("ward");
  });
  useEffect(() => {
    document.title = `${waiting.length > 0 ? "▲ " : station.troubles.length > 0 ? "✕ " : ""}${t("title")}`;
    const frame = requestAnimationFrame(() => station.displayed(starting ? new Set() : onScreen()));
    return () => cancelAnimationFrame(frame);
  });
  return (
    <>
      <Top station={station} tab={tab} waiting={waiting.length} onTab={onTab} onSetup={onSetup} onShift={() => setStarting(true)} />
      <Unavailable station={station} />
      <Bars station={station} onSetup={onSetup} onShift={() => setStarting(true)} />
      <Announcement waiting={waiting} />
      {children ?? <Alerts station={station} open={open} onShift={() => setStarting(true)} />}
      <Vitals station={station} short={open.length > 0 && !children} />
      {starting && <StartShift station={station} onDone={() => setStarting(false)} />}
    </>
  );
}

/** Cards of which at least the head can be read: not below the fold, not under the vital signs. */
function onScreen(): Set<string> {
  const bottom = document.querySelector(".vitals")?.getBoundingClientRect().top ?? innerHeight;
  const cards = [...document.querySelectorAll<HTMLElement>("[data-alert]")].filter((card) => {
    const { top } = card.getBoundingClientRect();
    return top >= 0 && top + HEAD_PX < bottom;
  });
  return new Set(cards.map((card) => card.dataset["alert"] ?? ""));
}
const HEAD_PX = 120;

/** Calls `onNew` when a key appears that was not there before. */
function useNew(keys: string[], onNew: () => void): void {
  const known = useRef(new Set(keys));
  useEffect(() => {
    const isNew = keys.some((key) => !known.current.has(key));
    known.current = new Set(keys);
    if (isNew) onNew();
  }, [keys.join()]);
}

/** True for a moment after cards have changed places: a finger on its way must not acknowledge another alert. */
function useMoving(order: string): boolean {
  const [last, setLast] = useState(order);
  const [moving, setMoving] = useState(false);
  if (last !== order) {
    setLast(order);
    if (last !== "") setMoving(true);
  }
  useEffect(() => {
    if (!moving) return;
    const timer = setTimeout(() => setMoving(false), MOVING_MS);
    return () => clearTimeout(timer);
  }, [moving, order]);
  return moving;
}
const MOVING_MS = 600;

function Top({ station, tab, waiting, onTab, onSetup, onShift }: Omit<Props, "children"> & { waiting: number; onShift: () => void }) {
  const { settings, config, shift } = station;
  return (
    <header class="top">
      <button class="name" onClick={onSetup} title={t("setup")}>
        <b>{settings.ward || settings.station}</b>
        <span>{[settings.ward ? settings.station : "", word("role_", settings.role), config.site].filter(Boolean).join(" · ")}</span>
      </button>
      <nav>
        {(["ward", "engineer"] as const).map((name) => (
          <button class={tab === name ? "tab on" : "tab"} aria-current={tab === name} onClick={() => onTab(name)}>
            {name === "ward" && tab !== "ward" && waiting > 0 && <b class="badge">▲ {waiting}</b>}
            {t(name === "ward" ? "tab_station" : "tab_engineer")}
          </button>
        ))}
      </nav>
      {shift ? (
        <button class="person" onClick={onShift}>
          <b>{shift.user}</b>
          <span>{t("shift")} {clock(new Date(shift.started_at))}</span>
        </button>
      ) : (
        <button class="start" onClick={onShift}>{t("start_shift")}</button>
      )}
    </header>
  );
}

/** The banner that must never be missing by accident: it is what the page shows unless told otherwise. */
function Unavailable({ station }: { station: Station }) {
  if (station.troubles.length === 0) return null;
  const quiet = station.quietFor;
  return (
    <section class="unavailable" role="alert" data-codes={station.troubles.map((t) => t.code).join(" ")}>
      <div>
        <h1>✕ {t("unavailable")}</h1>
        <p>{t("unavailable_do")}</p>
        <ul>
          {station.troubles.map(({ code, device, detail }) => (
            <li>
              {t(`trouble_${code}`, { device: device ?? "", detail: detail ? word("state_", detail) : "" })}
              {!device && station.linkDetail ? <small> ({station.linkDetail})</small> : null}
            </li>
          ))}
        </ul>
      </div>
      {station.link === "replaced" ? (
        <button onClick={() => station.connect()}>{t("connect_again")}</button>
      ) : quiet === undefined ? (
        <button onClick={() => station.quiet()}>{t("quiet_sound")}</button>
      ) : (
        <span class="dim">{t("quieted", { age: age(quiet) })}</span>
      )}
    </section>
  );
}

/** What keeps this station from being heard, in bars under the head. */
function Bars({ station, onSetup, onShift }: { station: Station; onSetup: () => void; onShift: () => void }) {
  const several = station.config.devices.length > 1;
  return (
    <>
      {station.misplaced && (
        <button class="soundbar" data-bar="role" onClick={onSetup}>
          ✕ {t("misplaced", { role: word("role_", station.settings.role) })}
        </button>
      )}
      {station.silences.map(({ device, silence, until }) => (
        <p key={device} class="soundbar" role="status" data-bar="silence">
          ✕♪ {several ? `${device}: ` : ""}
          {t(silence.kind === "maintenance" ? "muted_by_work" : "muted_by", { user: silence.author ?? "", time: when(until) })}
          {silence.reason ? `: ${silence.reason}` : ""}
        </p>
      ))}
      <SoundBar station={station} onShift={onShift} />
    </>
  );
}

/** The newest alert that waits, for who hears the page instead of seeing it: said once, when it comes. */
function Announcement({ waiting }: { waiting: Shown[] }) {
  const newest = waiting.reduce<Shown | undefined>((last, shown) => (last && last.arrival.bornAt >= shown.arrival.bornAt ? last : shown), undefined);
  return <p class="unseen" role="alert">{newest && [headline(newest), newest.alert.subject?.ref, finding(newest)].filter(Boolean).join(", ")}</p>;
}

function SoundBar({ station, onShift }: { station: Station; onShift: () => void }) {
  if (!station.shift) return null;
  if (!station.soundRuns) {
    return <button class="soundbar" onClick={() => void station.unlockSound()}>✕♪ {t("sound_off")}</button>;
  }
  if (!station.shift.sound_ok) return <button class="soundbar" onClick={onShift}>✕♪ {t("sound_unconfirmed")}</button>;
  return null;
}

function Alerts({ station, open, onShift }: { station: Station; open: Shown[]; onShift: () => void }) {
  const [chosen, choose] = useState<string>();
  const [asked, ask] = useState<Asked>();
  const selected = open.find(({ key }) => key === chosen) ?? open[0];
  const moving = useMoving(open.map(({ key }) => key).join());
  const waiting = open.filter(({ alert }) => isWaiting(alert)).map(({ key }) => key).join();
  // What is new and waits is at the top.
  useEffect(() => waiting && !document.querySelector("[role=dialog]") ? scrollTo({ top: 0 }) : undefined, [waiting]);
  // In place before the page shows who is chosen: an effect after the paint would let a quick key act on the one before.
  useLayoutEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      const inField = event.target instanceof HTMLElement && /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (inField || event.ctrlKey || event.metaKey || event.altKey || event.repeat || !selected || moving) return;
      if (document.querySelector("[role=dialog]")) return;
      const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
      if (step !== 0) {
        event.preventDefault();
        const at = open.findIndex(({ key }) => key === selected.key);
        const next = open[Math.min(open.length - 1, Math.max(0, at + step))];
        choose(next?.key);
        document.querySelector(`[data-alert="${next?.alert.alert_id}"]`)?.scrollIntoView({ block: "nearest" });
      } else onShortcut(station, selected, event.key.toLowerCase(), ask);
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  });
  const earlier = station.earlier;
  return (
    <main class={`${open.length > 0 ? "alerts" : "calm"}${open.length >= DENSE_FROM ? " dense" : ""}${moving ? " moving" : ""}`}>
      <Count station={station} open={open} />
      {open.length === 0 && <Calm station={station} onShift={onShift} />}
      {open.map((shown) => (
        <Card key={shown.key} station={station} shown={shown} selected={open.length > 1 && shown.key === selected?.key}
          asking={asked?.key === shown.key ? asked.what : undefined} onAsk={(what) => ask(what && { key: shown.key, what })}
          onSelect={() => choose(shown.key)} />
      ))}
      {earlier.length > 0 && (
        <section class="earlier">
          <h3>{t("earlier")}</h3>
          {earlier.map((shown) => (
            <p key={shown.key}>
              <b>{shown.alert.subject?.ref}</b>
              <span>{isOpen(shown.alert) ? t("expired") : word("", shown.alert.state)}</span>
              <span class="dim">{shown.alert.state === "withdrawn" ? "" : `${headline(shown)}: `}{finding(shown)}</span>
              <span class="dim">{age(station.age(shown))}</span>
            </p>
          ))}
        </section>
      )}
      {open.length > 0 && <p class="keys">{t("keys")}</p>}
    </main>
  );
}

/** With so many cards each is short: who does not scroll must still see most of them. */
const DENSE_FROM = 3;

/** How many there are, for whoever sees only the first of them. */
function Count({ station, open }: { station: Station; open: Shown[] }) {
  const waiting = open.filter(({ alert, unconfirmed }) => isWaiting(alert) && !unconfirmed).length;
  const taken = open.filter(({ alert, unconfirmed }) => isOpen(alert) && !isWaiting(alert) && !unconfirmed).length;
  const storm = station.storm;
  // Two cards can be counted at a glance.
  if (open.length < DENSE_FROM && waiting < 2) return null;
  return (
    <p class="count" role="status">
      {waiting > 0 && <b class="waits">▲ {t("count_waiting", { n: waiting })}</b>}
      {taken > 0 && <b class="has">✓ {t("count_taken", { n: taken })}</b>}
      {storm > 1 && <span>⁂ {t("storm", { n: storm })}</span>}
    </p>
  );
}

/** The question that a card asks before it acts. */
interface Asked {
  key: string;
  what: Question;
}

const FEEDBACK: Record<string, Feedback> = { "1": "right", "2": "wrong", "3": "unsure" };

/** A key does what its button does, and asks what its button asks. */
function onShortcut(station: Station, shown: Shown, key: string, ask: (asked: Asked) => void): void {
  if (!station.mayAct || station.link !== "connected" || !isOpen(shown.alert)) return;
  const feedback = FEEDBACK[key];
  const waiting = isWaiting(shown.alert);
  if (feedback && shown.alert.kind === "finding" && !waiting) return station.act(shown, "feedback", { feedback });
  if (key === "c") station.act(shown, "claim");
  else if (key === "e") station.act(shown, "escalate");
  // What is taken can be closed; what is not must first be taken.
  else if (key === "a" && waiting) station.act(shown, "ack");
  else if (key === "d" && waiting) ask({ key: shown.key, what: "decline" });
  else if (key === "r" && !waiting) ask({ key: shown.key, what: "resolve" });
}

/** Nothing to do. A ring that breathes with the tick shows that the page is alive; no word says that a patient is well. */
function Calm({ station, onShift }: { station: Station; onShift: () => void }) {
  const well = station.link === "connected" && station.troubles.length === 0;
  return (
    <div class="centre">
      <div class={!well ? "ring still" : Math.floor(performance.now() / BREATH_MS) % 2 ? "ring full" : "ring"}><span>{clock(new Date())}</span></div>
      <h1>{t(well ? "no_alerts" : "alerts_unknown")}</h1>
      {well && <p class="dim">{t("no_alerts_note")}</p>}
      {!station.shift && <button class="big" onClick={onShift}>{t("start_shift")}</button>}
    </div>
  );
}

/** In, or out; as in the style. */
const BREATH_MS = 3_000;

/** Vital signs: each with a sign, a word and a figure. */
function Vitals({ station, short }: { station: Station; short: boolean }) {
  const { link, shift } = station;
  const linkLook = link === "connected" ? "ok" : link === "connecting" ? "dim" : "bad";
  const muted = station.silences.length > 0;
  const soundOk = shift?.sound_ok && station.soundRuns && !muted;
  const soundWord = muted ? "sound_muted" : soundOk ? "sound_ok" : shift && !station.soundRuns ? "sound_locked" : "sound_not";
  const test = station.test;
  const fresh = test && station.age(test) < 60 ? `${t("test")} ${test.alert.subject?.ref ?? ""}` : undefined;
  return (
    <footer class={short ? "vitals short" : "vitals"}>
      <Tile name={t("eng_link")} look={linkLook} id="link">{t(`link_${link}`)}</Tile>
      {station.config.devices.map((device) => (
        <Proof key={device} station={station} device={device} test={fresh} />
      ))}
      <Tile name={t("sound")} look={soundOk ? "ok" : shift || muted ? "bad" : "dim"} id="sound">{t(soundWord)}</Tile>
    </footer>
  );
}

function Proof({ station, device, test }: { station: Station; device: string; test: string | undefined }) {
  const box = station.boxes.get(device) ?? {};
  const overdue = station.troubles.some((trouble) => trouble.code === "proof" && trouble.device === device);
  const seconds = proofAge(box, performance.now());
  const scheduled = proofInterval(box, station.config) !== undefined;
  const none = box.heartbeat === undefined ? "–" : t(scheduled ? "proof_none" : "proof_off");
  const text = seconds !== undefined ? t("proof_ago", { age: age(seconds) }) : none;
  const study = box.heartbeat?.last_study_age_s;
  const studied =
    typeof study === "number" && box.heartbeatAt !== undefined
      ? t("proof_ago", { age: age(study + (performance.now() - box.heartbeatAt) / 1000) })
      : "–";
  const week = box.heartbeat?.experience_week;
  const judged = (week?.right ?? 0) + (week?.wrong ?? 0);
  const state = box.status?.state ?? "unknown";
  // A box that stands still calls itself degraded.
  const blind = station.troubles.some(({ code, device: of }) => of === device && code !== "proof" && code !== "heartbeat");
  const look = blind ? "bad" : state === "ready" ? "ok" : state === "degraded" ? "warn" : "bad";
  return (
    <>
      <Tile name={device} look={look} id={`box-${device}`}>{word("state_", blind && state === "degraded" ? "blind" : state)}</Tile>
      <Tile name={t("proof")} look={overdue ? "bad" : seconds === undefined ? "dim" : "ok"} id={`proof-${device}`}>
        {text}{overdue ? ` · ${t("proof_overdue")}` : ""}{test ? <em> {test}</em> : null}
      </Tile>
      <Tile name={t("last_study")} extra look="dim" id={`study-${device}`}>{studied}</Tile>
      {/* The site's own positive predictive value, of what people said of its alerts. */}
      <Tile name={t("week")} extra look="dim" id={`week-${device}`}>
        {judged > 0
          ? t("week_right", { right: week?.right ?? 0, judged, percent: Math.round((100 * (week?.right ?? 0)) / judged) })
          : t("week_none")}
      </Tile>
    </>
  );
}

const LOOKS = { ok: "●", warn: "◐", bad: "✕", dim: "○" };

/** `extra`: may give way on a small screen to alerts. */
function Tile({ name, look, id, extra, children }: {
  name: string; look: keyof typeof LOOKS; id: string; extra?: boolean; children?: preact.ComponentChildren;
}) {
  return (
    <div class={`tile ${look}${extra ? " extra" : ""}`} data-tile={id} data-look={look}>
      <small>{name}</small>
      <span><i aria-hidden="true">{LOOKS[look]}</i> {children}</span>
    </div>
  );
}

/** A time of today, or with its date. */
const when = (at: Date): string => (at.toDateString() === new Date().toDateString() ? clock(at) : `${at.toLocaleDateString()} ${clock(at)}`);

const clock = (at: Date): string =>
  at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
