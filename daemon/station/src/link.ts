//! The link to the broker: MQTT 5 over websockets. One client per connection, thrown away when it ends, as the daemon
//! does; what must arrive is kept by the caller until its PUBACK. Timers live in a worker.

import mqtt, { type IClientOptions, type MqttClient } from "mqtt";
import { type Link as State } from "./liveness.ts";
import { after, clear, every } from "./timer.ts";

const KEEP_ALIVE_S = 15;
const CONNECT_MS = 8_000;
/** Long enough for a person to choose a certificate. */
const CHOICE_MS = 30_000;
const BACKOFF_MIN_MS = 500;
const BACKOFF_MAX_MS = 5_000;
/** As the daemon's: a will waits for its delay only while the session lives. */
const WILL_DELAY_S = 10;

const SESSION_TAKEN_OVER = 0x8e;
/** CONNACK and SUBACK codes that no second try mends: bad credentials, not authorised, banned, client id refused. */
const DENIED: readonly number[] = [0x85, 0x86, 0x87, 0x8a, 0x8c];

export interface LinkOptions {
  url: string;
  station: string;
  password?: string;
  topics: string[];
  /** Topics that the broker may keep from this station without making it deaf. */
  niceTopics: string[];
  /** A viewer may say nothing, not even its end. */
  will?: { topic: string; payload: string };
  onState(state: State, detail?: string): void;
  /** `retained`: it was kept by the broker, so it may be old. */
  onMessage(topic: string, payload: string, retained: boolean): void;
}

/** Uint8Array as the bundled client makes it; text is UTF-8. */
const decode = (payload: Uint8Array): string => new TextDecoder().decode(payload);

export class Link {
  #options: LinkOptions;
  #client: MqttClient | undefined;
  #ready = false;
  #stopped = false;
  /** This browser has reached the broker before, with whatever certificate that took. */
  #known = false;
  #retry: number | undefined;
  #backoff = BACKOFF_MIN_MS;
  /** Publishes without a PUBACK; a connection that ends answers them with "no". */
  #unanswered = new Set<(sent: boolean) => void>();

  constructor(options: LinkOptions) {
    this.#options = options;
    this.#connect();
  }

  /** Whether the broker took it (PUBACK). Nothing is queued without a link: the caller tries again. */
  publish(topic: string, document: object, more: { retain?: boolean; expiry_s?: number } = {}): Promise<boolean> {
    const client = this.#client;
    if (client === undefined || !this.#ready) return Promise.resolve(false);
    const properties = {
      payloadFormatIndicator: true,
      contentType: "application/json",
      ...(more.expiry_s === undefined ? {} : { messageExpiryInterval: more.expiry_s }),
    };
    return new Promise((done) => {
      const options = { qos: 1, retain: more.retain ?? false, properties } as const;
      this.#unanswered.add(done);
      client.publish(topic, JSON.stringify(document), options, (error) => {
        this.#unanswered.delete(done);
        done(!error);
      });
    });
  }

  /** Leaves without a word; whoever leaves for good has the will to speak for it. */
  stop(): void {
    this.#stopped = true;
    if (this.#retry !== undefined) clear(this.#retry);
    this.#drop();
  }

  /** A browser that is asked for a certificate while it opens a websocket gives up instead of asking: Chromium shows only
   * one that was chosen for that host and port before. A plain request lets it, or a person, choose. Only where a
   * websocket has failed: libwebsockets takes 5 s to answer such a request, and none may be open beside it. */
  async #again(): Promise<void> {
    if (!this.#known && this.#options.url.startsWith("wss:")) {
      const plain = `https${this.#options.url.slice("wss".length)}`;
      const signal = AbortSignal.timeout(CHOICE_MS);
      await fetch(plain, { mode: "no-cors", credentials: "include", cache: "no-store", signal }).catch(() => undefined);
    }
    if (!this.#stopped) this.#connect();
  }

  #connect(): void {
    const { url, station, password, will } = this.#options;
    const options: IClientOptions = {
      protocolVersion: 5,
      clientId: `sta-${station}`,
      username: station,
      ...(password ? { password } : {}),
      clean: true,
      keepalive: KEEP_ALIVE_S,
      reconnectPeriod: 0,
      connectTimeout: CONNECT_MS,
      queueQoSZero: false,
      resubscribe: false,
      timerVariant: { set: (callback, ms) => every(ms ?? 0, callback as () => void) as never, clear: (id) => clear(id as never) },
      properties: { sessionExpiryInterval: WILL_DELAY_S },
      ...(will === undefined ? {} : { will: lastWill(will) }),
    };
    const client = mqtt.connect(url, options);
    this.#client = client;
    let detail = "";
    let final: State | undefined;
    const overdue = after(CONNECT_MS, () => this.#ended(client, "no answer"));
    client.on("connect", () => void this.#subscribe(client).finally(() => clear(overdue)));
    client.on("message", (topic, payload, packet) => {
      if (client === this.#client) this.#options.onMessage(topic, decode(payload), packet.retain);
    });
    client.on("disconnect", (packet) => {
      if (packet.reasonCode === SESSION_TAKEN_OVER) final = "replaced";
      detail = `disconnected by the broker (0x${(packet.reasonCode ?? 0).toString(16)})`;
    });
    client.on("error", (error) => {
      if ("code" in error && DENIED.includes(Number(error.code))) final = "denied";
      detail = error.message;
    });
    client.on("close", () => {
      clear(overdue);
      this.#ended(client, detail, final);
    });
  }

  /** A page that cannot hear alerts is not connected, whatever CONNACK said. */
  async #subscribe(client: MqttClient): Promise<void> {
    const denied: string[] = [];
    const { topics, niceTopics } = this.#options;
    for (const topic of [...topics, ...niceTopics]) {
      // One at a time: a refusal then has a name.
      const granted = await client.subscribeAsync(topic, { qos: 1 }).catch(() => [{ qos: 0x80 }]);
      if (granted.some((g) => g.qos >= 0x80) && topics.includes(topic)) denied.push(topic);
    }
    if (client !== this.#client || this.#stopped || !client.connected) return;
    if (denied.length > 0) return this.#ended(client, `may not read ${denied.join(", ")}`, "denied");
    this.#ready = true;
    this.#known = true;
    this.#backoff = BACKOFF_MIN_MS;
    this.#options.onState("connected");
  }

  #ended(client: MqttClient, detail: string, final: State = "lost"): void {
    if (client !== this.#client) return;
    this.#drop();
    if (this.#stopped) return;
    this.#options.onState(final, detail);
    // Two pages under one name would take the session from each other for ever: a person decides which one stays.
    if (final === "replaced") return;
    const wait_ms = final === "denied" ? BACKOFF_MAX_MS : this.#backoff;
    this.#backoff = Math.min(BACKOFF_MAX_MS, this.#backoff * 2);
    // A ward of stations must not return to a broker in step.
    this.#retry = after(wait_ms + Math.random() * 500, () => void this.#again());
  }

  #drop(): void {
    const client = this.#client;
    this.#client = undefined;
    this.#ready = false;
    for (const done of this.#unanswered) done(false);
    this.#unanswered.clear();
    client?.end(true);
  }
}

const lastWill = ({ topic, payload }: { topic: string; payload: string }) => ({
  topic,
  payload: payload as never,
  qos: 1 as const,
  retain: true,
  properties: { willDelayInterval: WILL_DELAY_S, contentType: "application/json" },
});
