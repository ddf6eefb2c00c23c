//! The station: what was heard, what is shown, what is said back. Views read its fields and call its methods; decisions
//! are in the pure files beside it (`reducer`, `liveness`, `alarm`).

import * as alarm from "./alarm.ts";
import { Link } from "./link.ts";
import { type Box, type Link as LinkState, troubles, type Trouble } from "./liveness.ts";
import { Receipts } from "./receipts.ts";
import { type Alerts, reduce } from "./reducer.ts";
import { isOn, loadShift, saveShift, type Settings, type Shift } from "./settings.ts";
import * as sound from "./sound.ts";
import * as subject from "./subject.ts";
import * as wire from "./wire.ts";

/** When a document reached this page; monotonic ms. */
interface Arrival {
  /** When the alert was raised, by its age. */
  bornAt: number;
  publishedAt: number;
  /** Attempt of this page to connect in which the broker last showed it. */
  attempt: number;
}

/** An alert as a card shows it. */
export interface Shown {
  key: string;
  device: string;
  alert: wire.Alert;
  arrival: Arrival;
  /** The broker did not show it again on this connection. */
  unconfirmed: boolean;
  pending?: Pending;
}

/** An action on its way, and what became of it. */
export interface Pending {
  device: string;
  action: wire.Action;
  at: number;
  state: "sending" | "not_sent" | "no_answer" | "accepted" | "duplicate" | "refused";
  reply?: wire.Reply;
}

/** What was asked of a box, and what it answered. */
export interface Question {
  device: string;
  request: wire.Request;
  at: number;
  state: "sending" | "not_sent" | "no_answer" | "answered";
  answer?: wire.Answer;
}

/** One line of the engineer's log. */
export interface LogLine {
  wall: number;
  text: string;
}

const STATUS_EXPIRY_NONE = { retain: true };
const RECEIPT_EXPIRY_S = 600;
const ACTION_EXPIRY_S = 600;
const ACTION_LIFE_MS = 300_000;
const ANSWER_MS = 8_000;
/** A proof of life or a replay takes its time; longer than this nobody waits. */
const REQUEST_MS = 150_000;
const REQUEST_EXPIRY_S = 60;
const QUESTIONS_MAX = 50;
/** How long an answer stays on the card. */
const ANSWER_SHOWN_MS = 6_000;
/** After connecting, the broker and a returning box have this long to show an alert again. */
const CONFIRM_MS = 45_000;
const WITHDRAWN_SHOWN_MS = 30 * 60_000;
const QUIET_MS = 15 * 60_000;
const DISPOSITIONS_MAX = 200;
const LOG_MAX = 100;
const STATIONS_MAX = 500;
const SUBJECTS_MAX = 100;
const HELD_MAX_MS = 12 * 3_600_000;

const now = (): number => performance.now();

/** The storm that an alert belongs to. */
const group = ({ device, alert }: Shown): string => `${device}/${alert.group ?? alert.alert_id}`;

const questionKey = (device: string, command: string, seriesRef: string | null): string =>
  [device, command, seriesRef ?? ""].join("|");

export class Station {
  readonly config: wire.PageConfig;
  readonly settings: Settings;
  shift: Shift | undefined = loadShift();

  link: LinkState = "connecting";
  linkDetail = "";
  linkedAt: number | undefined;
  connections = 0;
  messages = 0;
  refused = 0;
  /** Since when the boxes are waited for: the last connection. */
  since = now();

  readonly boxes = new Map<string, Box>();
  readonly stations = new Map<string, Partial<wire.StationStatus>>();
  readonly dispositions: (wire.Disposition & { device: string })[] = [];
  /** The last question of each kind, by device, command and series. */
  readonly questions = new Map<string, Question>();
  readonly ledgers = new Map<string, wire.LedgerLine[]>();
  readonly log: LogLine[] = [];
  wakeLock: WakeLockSentinel | undefined;

  troubles: Trouble[] = [];
  #troubledAt: number | undefined;
  #unavailableSoundedAt: number | undefined;
  #quiet: { until: number; codes: Set<string> } | undefined;

  #alerts: Alerts<wire.Alert> = new Map();
  #arrivals = new Map<string, Arrival>();
  #sounded = new Map<string, alarm.Sounded>();
  /** By the first alert of a storm; an alert of none is its own. */
  #soundedGroups = new Map<string, alarm.Sounded>();
  #dismissed = new Set<string>();
  #receipts = new Receipts();
  #pending = new Map<string, Pending>();
  #subjects = new Map<string, subject.Subject | "opening" | "locked">();
  /** Clock of each box less ours, ms, from documents that were not kept by the broker. */
  #offsets = new Map<string, number>();
  /** Attempts that have ended: what is retained comes before the last SUBACK, so before a link is called one. */
  #attempt = 0;
  #mqtt: Link | undefined;
  #listeners = new Set<() => void>();
  #statusSent = "";

  constructor(config: wire.PageConfig, settings: Settings) {
    this.config = config;
    this.settings = settings;
    this.connect();
    document.addEventListener("visibilitychange", () => {
      this.#sendStatus();
      void this.#keepAwake();
    });
  }

  // Link.

  connect(): void {
    const { site, broker_url } = this.config;
    const { station, password } = this.settings;
    this.link = "connecting";
    this.#attempt += 1;
    const dev = `ichd/1/${site}/dev/+`;
    this.#mqtt?.stop();
    this.#mqtt = new Link({
      url: broker_url,
      station,
      ...(password ? { password } : {}),
      topics: [`${dev}/status`, `${dev}/heartbeat`, `${dev}/alert/+`],
      niceTopics: [
        `${dev}/study/+`,
        `${dev}/reply/${station}`,
        // Other stations, and answers to requests, are for who looks after the boxes.
        ...(this.settings.role === "engineer" ? [`${dev}/answer/${station}`, `ichd/1/${site}/sta/+/status`] : []),
      ],
      ...(this.speaks ? { will: { topic: this.#topic("status"), payload: JSON.stringify(this.status("offline")) } } : {}),
      onState: (state, detail) => this.#onLink(state, detail),
      onMessage: (topic, payload, retained) => this.#onMessage(topic, payload, retained),
    });
    this.changed();
  }

  /** Another tab takes over: leave without a word, it speaks under the same name. */
  leave(): void {
    this.#mqtt?.stop();
    this.#onLink("replaced");
  }

  #onLink(state: LinkState, detail = ""): void {
    if (state !== this.link) this.#note(`link ${state}${detail ? `: ${detail}` : ""}`);
    this.link = state;
    this.linkDetail = detail;
    if (state === "connected") {
      this.connections += 1;
      this.linkedAt = this.since = now();
      this.#statusSent = "";
      this.#sendStatus();
      for (const pending of this.#pending.values()) if (pending.state === "sending") void this.#send(pending);
    } else {
      this.linkedAt = undefined;
      this.#attempt += 1;
    }
    this.tick();
  }

  #topic(rest: string): string {
    return `ichd/1/${this.config.site}/sta/${this.settings.station}/${rest}`;
  }

  // What is heard.

  #onMessage(topic: string, payload: string, retained: boolean): void {
    this.messages += 1;
    const [, , , kind, name, what, id] = topic.split("/");
    if (kind === "sta" && name && what === "status") this.#onStation(name, payload);
    if (kind !== "dev" || !name) return;
    if (what === "alert" && id) this.#onAlert(name, id, payload, retained);
    else if (what === "status") this.#onBox(name, "ichd.status/1", payload, (box, v) => (box.status = v as never));
    else if (what === "heartbeat") {
      this.#onBox(name, "ichd.heartbeat/1", payload, (box, v) => {
        box.heartbeat = v as wire.Heartbeat;
        box.heartbeatAt = now();
      });
    } else if (what === "study") this.#onStudy(name, payload);
    else if (what === "reply") this.#onReply(payload);
    else if (what === "answer") this.#onAnswer(name, payload);
    this.tick();
  }

  #onBox(device: string, schema: string, payload: string, apply: (box: Box, value: object) => void): void {
    const value = wire.parse(payload, schema);
    if (value === undefined) return this.#refuse(`${schema} of ${device}`);
    const box = this.boxes.get(device) ?? {};
    apply(box, value);
    this.boxes.set(device, box);
  }

  #onStation(name: string, payload: string): void {
    if (payload === "") this.stations.delete(name);
    else if (this.stations.size < STATIONS_MAX || this.stations.has(name)) {
      const status = wire.parse(payload, "ichd.station/1");
      if (status) this.stations.set(name, status);
    }
  }

  #onStudy(device: string, payload: string): void {
    const value = wire.parse(payload, "ichd.study/1");
    if (value === undefined) return this.#refuse(`ichd.study/1 of ${device}`);
    const line = { ...(value as wire.Disposition), device };
    // A late slice revises the line of its series.
    const old = this.dispositions.findIndex((d) => d.series_ref === line.series_ref && d.device === device);
    if (old >= 0) this.dispositions.splice(old, 1);
    this.dispositions.unshift(line);
    this.dispositions.length = Math.min(this.dispositions.length, DISPOSITIONS_MAX);
  }

  #onAlert(device: string, id: string, payload: string, retained: boolean): void {
    const [alerts, change] = reduce(this.#alerts, device, id, payload, wire.parseAlert);
    this.#alerts = alerts;
    const key = `${device}/${id}`;
    if (change === "refused") return this.#refuse(`alert ${id} of ${device}`);
    const alert = alerts.get(key)?.document;
    if (!alert) {
      for (const map of [this.#arrivals, this.#sounded, this.#dismissed]) map.delete(key);
      this.#forgetGroups();
      return this.#receipts.forget(key);
    }
    if (change !== "applied" && change !== "repeated") return;
    this.#arrive(key, device, alert, retained);
    // A box that says the same revision again has not heard of us yet.
    const known = alert.receipts?.some((r) => r.station === this.settings.station);
    const again = change === "repeated" && !known;
    this.#receipts.say(key, device, alert, "received", again);
    if (again) {
      for (const stage of ["displayed", "sounded"] as const) {
        if (this.#receipts.has(key, stage)) this.#receipts.say(key, device, alert, stage, true);
      }
    }
    void this.#openSubject(alert);
    this.#flush();
  }

  /** How old it is: by the monotonic age it was published with, plus the time the broker kept it. */
  #arrive(key: string, device: string, alert: wire.Alert, retained: boolean): void {
    const published = Date.parse(alert.published_at ?? "");
    if (!retained && published) this.#offsets.set(device, published - Date.now());
    const kept = retained && published ? this.#boxWall(device) - published : 0;
    // A clock that is wrong by more than an alert lives says nothing.
    const publishedAt = now() - (kept > 0 && kept < HELD_MAX_MS ? kept : 0);
    const old = this.#arrivals.get(key);
    const bornAt = Math.min(publishedAt - alert.age_ms, old?.bornAt ?? Infinity);
    this.#arrivals.set(key, { bornAt, publishedAt, attempt: this.#attempt });
  }

  #forgetGroups(): void {
    const alive = new Set(this.#all().map(group));
    for (const key of this.#soundedGroups.keys()) if (!alive.has(key)) this.#soundedGroups.delete(key);
  }

  #boxWall(device: string): number {
    return Date.now() + (this.#offsets.get(device) ?? 0);
  }

  async #openSubject({ subject: sealed, study }: wire.Alert): Promise<void> {
    const enc = sealed?.enc;
    if (!enc || this.#subjects.has(enc)) return;
    this.#subjects.set(enc, "opening");
    // Memory holds the patients of open alerts, and of a few more.
    for (const old of [...this.#subjects.keys()].slice(0, -SUBJECTS_MAX)) this.#subjects.delete(old);
    const keys = subject.keysOf(this.settings.key ?? "");
    this.#subjects.set(enc, (await subject.open(enc, keys, study?.study_ref)) ?? "locked");
    this.changed();
  }

  /** What the site lets us know of the patient. */
  subject(alert: wire.Alert): subject.Subject | "locked" | undefined {
    const opened = alert.subject?.enc ? this.#subjects.get(alert.subject.enc) : undefined;
    const location = alert.subject?.location;
    const clear = location ? { location } : undefined;
    if (opened === "locked") return clear ?? "locked";
    return opened === "opening" || opened === undefined ? clear : { ...clear, ...opened };
  }

  #refuse(what: string): void {
    this.refused += 1;
    this.#note(`refused: ${what}`);
  }

  // What is shown.

  /** Cards: waiting ones first, then by priority, then the oldest first. */
  get open(): Shown[] {
    const shown = this.#all().filter(
      ({ key, alert, arrival }) =>
        alert.kind !== "test" &&
        ((wire.isOpen(alert) && !this.#isOver(alert, arrival)) ||
          (alert.state === "withdrawn" && !this.#dismissed.has(key) && now() - arrival.publishedAt < WITHDRAWN_SHOWN_MS)),
    );
    const rank = ({ alert, unconfirmed }: Shown): number =>
      unconfirmed ? 3 : alert.state === "withdrawn" ? 2 : wire.isWaiting(alert) ? 0 : 1;
    return shown.sort(
      (a, b) => rank(a) - rank(b) || a.alert.priority - b.alert.priority || a.arrival.bornAt - b.arrival.bornAt,
    );
  }

  /** Open alerts of storms: how many came in so short a time that they sound as one. */
  get storm(): number {
    const open = this.open.filter(({ alert }) => wire.isWaiting(alert));
    const groups = new Set(open.filter(({ alert }) => alert.group).map(group));
    return open.filter((shown) => groups.has(group(shown))).length;
  }

  /** What was closed, newest first; a few lines under the cards. */
  get earlier(): Shown[] {
    const open = new Set(this.open.map((s) => s.key));
    return this.#all()
      .filter(({ key, alert }) => !open.has(key) && alert.kind !== "test")
      .sort((a, b) => b.arrival.publishedAt - a.arrival.publishedAt)
      .slice(0, 6);
  }

  /** The last drill or proof of life, shown small. */
  get test(): Shown | undefined {
    return this.#all().filter(({ alert }) => alert.kind === "test").sort((a, b) => b.arrival.bornAt - a.arrival.bornAt)[0];
  }

  #all(): Shown[] {
    const settled = this.link === "connected" && now() - this.since > CONFIRM_MS;
    return [...this.#alerts].flatMap(([key, { document: alert }]) => {
      const arrival = this.#arrivals.get(key);
      if (!alert || !arrival) return [];
      const pending = this.#pendingOf(alert.alert_id);
      const unconfirmed = settled && arrival.attempt !== this.#attempt;
      return [{ key, device: key.split("/")[0]!, alert, arrival, unconfirmed, ...(pending ? { pending } : {}) }];
    });
  }

  /** The box renews what is open within half its life; by its own count that begins at delivery, however old the alert. */
  #isOver(alert: wire.Alert, arrival: Arrival): boolean {
    const life = Date.parse(alert.expires_at ?? "") - Date.parse(alert.raised_at ?? "");
    return life > 0 && now() - arrival.publishedAt > life;
  }

  /** Seconds since it was raised. */
  age = (shown: Shown): number => (now() - shown.arrival.bornAt) / 1000;

  /** Seconds until the box calls the next person. */
  nextIn(shown: Shown): number | undefined {
    const next = shown.alert.escalation?.next_in_ms;
    if (typeof next !== "number" || !wire.isWaiting(shown.alert)) return undefined;
    return Math.max(0, (next - (now() - shown.arrival.publishedAt)) / 1000);
  }

  /** A withdrawn alert was read. */
  dismiss(key: string): void {
    this.#dismissed.add(key);
    this.changed();
  }

  /** Alerts that are really on the screen; called from an animation frame, which a hidden page does not get. */
  displayed(onScreen: ReadonlySet<string>): void {
    for (const { key, device, alert } of this.#all()) {
      if (alert.kind === "test" || onScreen.has(alert.alert_id)) this.#receipts.say(key, device, alert, "displayed");
    }
    this.#flush();
  }

  // What is sounded.

  /** A touch or key: the only moment a browser lets a page begin to sound. */
  async unlockSound(): Promise<boolean> {
    const running = await sound.unlock();
    this.#sendStatus();
    this.changed();
    return running;
  }

  get soundRuns(): boolean {
    return sound.isRunning();
  }

  /** Silences and maintenance windows of boxes. A box takes its own back; one that is lost cannot, but a clock of ours that
   * is not known to be right does not speak for it. */
  get silences(): { device: string; silence: wire.Silence; until: Date }[] {
    return [...this.boxes].flatMap(([device, { status }]) => {
      const until = Date.parse(status?.silence?.until ?? "");
      const over = this.#offsets.has(device) && this.#boxWall(device) > until;
      return status?.silence && !over ? [{ device, silence: status.silence, until: new Date(until) }] : [];
    });
  }

  /** A box has this station enrolled for another role: it would sound when others are called. */
  get misplaced(): boolean {
    const reason = `station_role:${this.settings.station}`;
    return [...this.boxes.values()].some(({ status }) => status?.reasons?.includes(reason));
  }

  get quietFor(): number | undefined {
    return this.#quiet && this.#quiet.until > now() ? (this.#quiet.until - now()) / 1000 : undefined;
  }

  /** Silences the sound of an unavailable AI for these reasons; never that of an alert, and never the banner. */
  quiet(): void {
    this.#quiet = { until: now() + QUIET_MS, codes: new Set(this.troubles.map((t) => t.code + t.device)) };
    this.changed();
  }

  /** Runs every second and after every message. */
  tick(): void {
    const found = troubles(this.link, this.boxes, this.config, this.since, now());
    this.troubles = this.link === "connecting" ? [] : found;
    this.#troubledAt = this.troubles.length > 0 ? (this.#troubledAt ?? now()) : undefined;
    if (this.#troubledAt === undefined) this.#unavailableSoundedAt = this.#quiet = undefined;
    this.#sound();
    if (this.shift && !isOn(this.shift, Date.now())) this.endShift();
    for (const pending of this.#pending.values()) {
      if (pending.state === "sending" && now() - pending.at > ANSWER_MS) pending.state = "no_answer";
    }
    for (const question of this.questions.values()) {
      if (question.state === "sending" && now() - question.at > REQUEST_MS) question.state = "no_answer";
    }
    this.#flush();
    this.changed();
  }

  #sound(): void {
    const dues = new Map<alarm.Tone, Shown[]>();
    for (const shown of this.#all()) {
      if (shown.unconfirmed || this.#isOver(shown.alert, shown.arrival)) continue;
      const sounded = this.#sounded.get(shown.key);
      const said = this.#soundedGroups.get(group(shown));
      const tone = alarm.due(shown.alert, sounded, now(), this.#boxWall(shown.device), this.settings.role, said);
      if (tone) dues.set(tone, [...(dues.get(tone) ?? []), shown]);
    }
    if (this.#isUnavailableDue()) dues.set("unavailable", []);
    const tone = alarm.ORDER.find((tone) => dues.has(tone));
    if (tone === undefined || now() < this.#soundBusyUntil || !sound.play(tone)) return;
    this.#soundBusyUntil = now() + 1_500;
    if (tone === "unavailable") this.#unavailableSoundedAt = now();
    for (const shown of dues.get(tone) ?? []) {
      const { key, device, alert } = shown;
      const { priority, state } = alert;
      this.#sounded.set(key, { at: now(), priority, state });
      const said = this.#soundedGroups.get(group(shown))?.priority ?? priority;
      this.#soundedGroups.set(group(shown), { at: now(), priority: Math.min(priority, said), state });
      if (tone !== "withdrawn") this.#receipts.say(key, device, alert, "sounded");
    }
    this.#flush();
  }
  #soundBusyUntil = 0;

  #isUnavailableDue(): boolean {
    if (this.#troubledAt === undefined || now() - this.#troubledAt < alarm.UNAVAILABLE_AFTER_MS) return false;
    const quiet = this.#quiet;
    const isNew = quiet !== undefined && this.troubles.some((t) => !quiet.codes.has(t.code + t.device));
    if (this.quietFor !== undefined && !isNew) return false;
    return this.#unavailableSoundedAt === undefined || now() - this.#unavailableSoundedAt > alarm.UNAVAILABLE_REPEAT_MS;
  }

  // What is said back.

  /** A viewer only listens: the broker would refuse its words. */
  get speaks(): boolean {
    return this.settings.role !== "viewer";
  }

  status(state?: "offline"): wire.StationStatus {
    const { role, ward } = this.settings;
    return {
      schema: "ichd.station/1",
      state: state ?? (this.shift ? "ready" : "away"),
      role,
      ward,
      user: this.shift?.user ?? null,
      sound_ok: (this.shift?.sound_ok ?? false) && sound.isRunning(),
      visible: document.visibilityState === "visible",
      version: this.config.version,
      shift_started_at: this.shift?.started_at ?? null,
      kind: "page",
    };
  }

  #sendStatus(): void {
    const status = this.status();
    const text = JSON.stringify(status);
    if (text === this.#statusSent || this.link !== "connected" || !this.speaks) return;
    this.#statusSent = text;
    void this.#mqtt?.publish(this.#topic("status"), status, STATUS_EXPIRY_NONE).then((sent) => {
      if (!sent) this.#statusSent = "";
    });
  }

  startShift(user: string, soundOk: boolean): void {
    this.shift = { user, started_at: new Date().toISOString(), sound_ok: soundOk };
    saveShift(this.shift);
    this.#sendStatus();
    void this.#keepAwake();
    this.changed();
  }

  endShift(): void {
    this.shift = undefined;
    saveShift(undefined);
    this.#sendStatus();
    void this.wakeLock?.release();
    this.changed();
  }

  async #keepAwake(): Promise<void> {
    if (!this.shift || document.visibilityState !== "visible" || (this.wakeLock && !this.wakeLock.released)) return;
    this.wakeLock = await navigator.wakeLock?.request("screen").catch(() => undefined);
    this.changed();
  }

  get mayAct(): boolean {
    return this.speaks && this.shift !== undefined;
  }

  /** Says what a person does about an alert. Asking again before an answer sends the same action again. */
  act({ device, alert }: Shown, verb: wire.Verb, more: { feedback?: wire.Feedback; reason?: string } = {}): void {
    if (!this.mayAct || !this.shift) return;
    const old = this.#pendingOf(alert.alert_id);
    const same = old?.action.verb === verb && old.action.feedback === (more.feedback ?? null);
    if (old?.state === "sending" && same) return;
    if (old && same && (old.state === "no_answer" || old.state === "not_sent") && old.action.rev === alert.rev) {
      return void this.#send(old);
    }
    // A clock that may be wrong must not make it void: what the broker keeps is void after as long.
    const wall = this.#offsets.has(device) ? Math.max(this.#boxWall(device), Date.parse(alert.published_at ?? "") || 0) : undefined;
    const action: wire.Action = {
      schema: "ichd.action/1",
      action_id: crypto.randomUUID(),
      alert_id: alert.alert_id,
      rev: alert.rev,
      verb,
      user: this.shift.user,
      reason: more.reason ?? null,
      feedback: more.feedback ?? null,
      ...(wall === undefined ? {} : { expires_at: new Date(wall + ACTION_LIFE_MS).toISOString() }),
    };
    const pending: Pending = { device, action, at: now(), state: "sending" };
    this.#pending.set(action.action_id, pending);
    void this.#send(pending);
  }

  async #send(pending: Pending): Promise<void> {
    const { device, action } = pending;
    [pending.state, pending.at] = ["sending", now()];
    this.changed();
    const sent = await this.#mqtt?.publish(this.#topic(`action/${device}`), action, { expiry_s: ACTION_EXPIRY_S });
    this.#note(`${action.verb} ${action.alert_id} rev ${action.rev}: ${sent ? "sent" : "not sent"}`);
    if (!sent && pending.state === "sending" && this.link !== "connected") pending.state = "not_sent";
    this.changed();
  }

  #onReply(payload: string): void {
    const reply = wire.parse(payload, "ichd.reply/1") as unknown as wire.Reply | undefined;
    const pending = reply && this.#pending.get(reply.action_id);
    if (!reply || !pending) return;
    [pending.state, pending.reply, pending.at] = [reply.result, reply, now()];
    this.#note(`${pending.action.verb} ${pending.action.alert_id}: ${reply.result} ${reply.code ?? ""}`);
  }

  /** Asks a box for something that changes no alert; only an engineer's station may, and in somebody's name. */
  ask(device: string, command: wire.Request["command"], seriesRef: string | null = null): void {
    if (!this.mayAsk || !this.shift || this.question(device, command, seriesRef)?.state === "sending") return;
    const request: wire.Request = {
      schema: "ichd.request/1",
      request_id: crypto.randomUUID(),
      command,
      user: this.shift.user,
      series_ref: seriesRef,
      expires_at: new Date(this.#boxWall(device) + REQUEST_EXPIRY_S * 1000).toISOString(),
    };
    const question: Question = { device, request, at: now(), state: "sending" };
    const key = questionKey(device, command, seriesRef);
    this.questions.delete(key);
    this.questions.set(key, question);
    for (const old of [...this.questions.keys()].slice(0, -QUESTIONS_MAX)) this.questions.delete(old);
    void this.#mqtt?.publish(this.#topic(`request/${device}`), request, { expiry_s: REQUEST_EXPIRY_S }).then((sent) => {
      if (!sent && question.state === "sending") question.state = "not_sent";
      this.changed();
    });
    this.changed();
  }

  /** The last question of its kind. */
  question = (device: string, command: wire.Request["command"], seriesRef: string | null = null): Question | undefined =>
    this.questions.get(questionKey(device, command, seriesRef));

  get mayAsk(): boolean {
    return this.settings.role === "engineer" && this.shift !== undefined && this.link === "connected";
  }

  #onAnswer(device: string, payload: string): void {
    const answer = wire.parse(payload, "ichd.answer/1") as unknown as wire.Answer | undefined;
    const question = [...this.questions.values()].find((q) => q.request.request_id === answer?.request_id);
    if (!answer || question?.device !== device) return;
    [question.state, question.answer] = ["answered", answer];
    if (Array.isArray(answer.ledger)) this.ledgers.set(device, answer.ledger);
    this.#note(`${question.request.command} of ${device}: ${answer.code} ${answer.message ?? ""}`);
  }

  #pendingOf(alertId: string): Pending | undefined {
    let last: Pending | undefined;
    for (const [id, pending] of this.#pending) {
      const answered = pending.state === "accepted" || pending.state === "duplicate" || pending.state === "refused";
      if (now() - pending.at > (answered ? ANSWER_SHOWN_MS : ACTION_LIFE_MS)) this.#pending.delete(id);
      else if (pending.action.alert_id === alertId) last = pending;
    }
    return last;
  }

  #flush(): void {
    if (this.link !== "connected" || !this.speaks) return;
    void this.#receipts.flush(async (device, receipt) => {
      const options = { expiry_s: RECEIPT_EXPIRY_S };
      return (await this.#mqtt?.publish(this.#topic(`receipt/${device}`), receipt, options)) ?? false;
    });
  }

  #note(text: string): void {
    this.log.unshift({ wall: Date.now(), text });
    this.log.length = Math.min(this.log.length, LOG_MAX);
  }

  // Views.

  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  changed(): void {
    for (const listener of this.#listeners) listener();
  }
}
