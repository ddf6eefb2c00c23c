//! The documents on the wire as the page reads and writes them (MQTT root `ichd/1/{site}`). Unknown fields are ignored.

export type Subtype = "epidural" | "intraparenchymal" | "intraventricular" | "subarachnoid" | "subdural";
export type AlertState =
  | "raised" | "delivered" | "acknowledged" | "escalated" | "resolved" | "withdrawn" | "expired";
/** A role of the site's ladder, or `engineer`, or `viewer`. */
export type Role = string;
export type Verb = "ack" | "claim" | "release" | "decline" | "escalate" | "resolve" | "feedback";
export type Feedback = "right" | "wrong" | "unsure";
export type ReceiptStage = "received" | "displayed" | "sounded";

/** `ichd.alert/1`, as far as the page uses it. */
export interface Alert {
  schema: "ichd.alert/1";
  alert_id: string;
  rev: number;
  kind: "finding" | "technical" | "test";
  stage: "provisional" | "final";
  state: AlertState;
  /** 1 is the most urgent. */
  priority: number;
  device: string;
  raised_at?: string;
  published_at?: string;
  /** Monotonic age at publication. */
  age_ms: number;
  expires_at?: string;
  subject?: { ref?: string; location?: string; enc?: string };
  study?: { study_ref?: string; acquired_at?: string | null; slices?: number };
  finding?: {
    subtypes?: string[];
    side?: "left" | "right" | "both" | "midline" | null;
    slice_range?: [number, number] | null;
    volume_ml?: number | null;
  };
  quality?: { ok?: boolean; flags?: string[] };
  escalation?: { policy?: string; step?: number; roles?: string[]; next_in_ms?: number | null; muted_until?: string | null };
  receipts?: { station?: string; role?: string; stage?: string; rev?: number; at?: string }[];
  ack?: { station?: string; user?: string; at?: string } | null;
  claimed_by?: { station?: string; user?: string; at?: string } | null;
  feedback?: { station?: string; user?: string; value?: string; at?: string }[];
  technical?: { code?: string; text?: string };
  /** First alert of a storm: one sound for all of it. */
  group?: string | null;
  addendum?: string[];
  disclaimer?: string;
}

/** A silence or maintenance window: no alert sounds until it ends. */
export interface Silence {
  kind?: "silence" | "maintenance";
  author?: string;
  reason?: string;
  until?: string;
}

/** `ichd.status/1`. */
export interface DeviceStatus {
  state: "init" | "ready" | "degraded" | "maintenance" | "offline" | "lost";
  boot?: number;
  conn?: number;
  version?: string;
  slot?: string | null;
  model?: { id?: string; version?: string; sha256?: string } | null;
  reasons?: string[];
  /** What will be a reason if nobody sees to it. */
  warnings?: string[];
  silence?: Silence | null;
}

/** `ichd.heartbeat/1`; the engineer view lists whatever else is in it. */
export interface Heartbeat {
  uptime_s?: number;
  last_study_age_s?: number | null;
  last_proof_age_s?: number | null;
  proof_interval_s?: number | null;
  open_alerts?: number;
  /** The receiver, the reader, room on the disk. */
  dicom_ok?: boolean;
  infer_ok?: boolean;
  disk_ok?: boolean;
  /** What people said of the alerts of the last seven days. */
  experience_week?: { judged?: number; right?: number; wrong?: number; positive_predictive_value?: number | null };
  [field: string]: unknown;
}

/** `ichd.study/1`. */
export interface Disposition {
  study_ref?: string;
  series_ref?: string;
  disposition?: string;
  reason?: string | null;
  instances?: number;
  revision?: number;
  flags?: string[];
  decided_at?: string;
}

/** `ichd.action/1`. */
export interface Action {
  schema: "ichd.action/1";
  action_id: string;
  alert_id: string;
  rev: number;
  verb: Verb;
  user: string;
  reason: string | null;
  feedback: Feedback | null;
  /** By the box's clock; left out by a page that does not know it. */
  expires_at?: string;
}

/** `ichd.reply/1`. */
export interface Reply {
  action_id: string;
  alert_id?: string;
  result: "accepted" | "duplicate" | "refused";
  code?: string;
  message?: string;
  rev?: number;
}

/** `ichd.request/1`: what an engineer's station asks of a box. */
export interface Request {
  schema: "ichd.request/1";
  request_id: string;
  command: "proof" | "ledger" | "replay";
  user: string;
  series_ref: string | null;
  expires_at: string;
}

/** One series as the box holds it. */
export interface LedgerLine extends Disposition {
  stage?: string;
  test?: boolean;
  purged?: boolean;
}

/** `ichd.answer/1`. */
export interface Answer {
  request_id: string;
  code: "ok" | "not_allowed" | "busy" | "expired" | "unknown_series" | "failed";
  message?: string;
  proof?: { reached?: string; took_ms?: number | null; failure?: string | null };
  ledger?: LedgerLine[];
  replay?: { series_ref?: string; equal?: boolean; difference?: string | null };
}

/** `ichd.station/1`, retained, and the will. */
export interface StationStatus {
  schema: "ichd.station/1";
  state: "ready" | "away" | "offline";
  role: Role;
  ward: string;
  user: string | null;
  sound_ok: boolean;
  visible: boolean;
  version: string;
  shift_started_at: string | null;
  kind: "page";
}

/** `GET /config.json`: what the box tells its page. No secret in it. */
export interface PageConfig {
  schema: "ichd.page/1";
  site: string;
  devices: string[];
  broker_url: string;
  heartbeat_s: number;
  proof_interval_s: number | null;
  version: string;
}

const record = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** JSON with the schema expected, or nothing; what a peer sends is never trusted further than this. */
export function parse(payload: string, schema: string): Record<string, unknown> | undefined {
  let value: unknown;
  try {
    value = JSON.parse(payload);
  } catch {
    return undefined;
  }
  return record(value) && value["schema"] === schema ? value : undefined;
}

/** An alert document that has what the page cannot do without. */
export function parseAlert(payload: string): Alert | undefined {
  const value = parse(payload, "ichd.alert/1");
  const sound =
    value !== undefined &&
    typeof value["alert_id"] === "string" &&
    Number.isSafeInteger(value["rev"]) && (value["rev"] as number) >= 0 &&
    typeof value["state"] === "string" &&
    typeof value["kind"] === "string" &&
    typeof value["priority"] === "number" &&
    typeof value["age_ms"] === "number";
  return sound ? (value as unknown as Alert) : undefined;
}

/** Still waits for a person to act or to close it. */
export const isOpen = (alert: Alert): boolean =>
  alert.state === "raised" || alert.state === "delivered" || alert.state === "escalated" || alert.state === "acknowledged";

/** Open, and nobody has taken it. */
export const isWaiting = (alert: Alert): boolean => isOpen(alert) && alert.state !== "acknowledged" && !alert.ack;
