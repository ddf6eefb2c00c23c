//! Is the AI available? Pure: what was heard, when, and the time now. Absence of news is news here.

import type { DeviceStatus, Heartbeat, PageConfig } from "./wire.ts";

/** What this page knows of one box; times are monotonic ms of this page. */
export interface Box {
  status?: DeviceStatus;
  heartbeat?: Heartbeat;
  heartbeatAt?: number;
}

export type Link = "connecting" | "connected" | "lost" | "denied" | "replaced";

/** Why the AI is not available, as stable codes; `device` is absent for the link of this page. */
export interface Trouble {
  code: "link" | "denied" | "replaced" | "status" | "heartbeat" | "proof" | Standstill;
  device?: string;
  detail?: string;
}

/** What stands still in a box that is there: it takes, reads, writes or tells nothing. */
export type Standstill = "receiver" | "reader" | "disk" | "stage" | "alerts" | "ledger";

/** Reasons of the status that leave the AI unavailable, however well the rest works. */
const BLIND: readonly [RegExp, Standstill][] = [
  [/^stage_silent:receive$/, "receiver"],
  [/^stage_silent:infer$/, "reader"],
  [/^stage_silent:(assemble|decide|alert|watch)$/, "stage"],
  [/^disk_low$/, "disk"],
  [/^publish_(denied|refused)$/, "alerts"],
  [/^ledger_failed$/, "ledger"],
];

/** Heartbeats that may be missing before silence is alarmed. */
const HEARTBEATS_MAX = 3;
/** Proofs of life that may be missing: the age may reach this many intervals. */
const PROOFS_MAX = 2;

/** Age of the last proof of life in s, as the box says: a test alert that came here may be one of a proof that failed. */
export function proofAge(box: Box, now: number): number | undefined {
  const said = box.heartbeat?.last_proof_age_s;
  return typeof said === "number" && box.heartbeatAt !== undefined ? said + (now - box.heartbeatAt) / 1000 : undefined;
}

export function proofInterval(box: Box, config: PageConfig): number | undefined {
  // 0: on demand only.
  return (box.heartbeat?.proof_interval_s ?? config.proof_interval_s) || undefined;
}

/** Every reason at once, the page's own link first. `since` is when this page began to wait for the boxes. */
export function troubles(
  link: Link,
  boxes: ReadonlyMap<string, Box>,
  config: PageConfig,
  since: number,
  now: number,
): Trouble[] {
  if (link === "denied" || link === "replaced") return [{ code: link }];
  // What the boxes do is not known without a link.
  if (link !== "connected") return [{ code: "link" }];
  return config.devices.flatMap((device) => ofBox(device, boxes.get(device) ?? {}, config, since, now));
}

function ofBox(device: string, box: Box, config: PageConfig, since: number, now: number): Trouble[] {
  const found: Trouble[] = [];
  const silence = HEARTBEATS_MAX * config.heartbeat_s * 1000;
  const state = box.status?.state;
  if (state === undefined) {
    if (now - since > silence) found.push({ code: "status", device, detail: "unknown" });
  } else if (state !== "ready" && state !== "degraded") {
    found.push({ code: "status", device, detail: state });
  }
  found.push(...[...standstills(box, since)].map(([code, detail]) => ({ code, device, ...(detail ? { detail } : {}) })));
  if (now - Math.max(box.heartbeatAt ?? since, since) > silence) found.push({ code: "heartbeat", device });
  const interval = proofInterval(box, config);
  if (interval !== undefined) {
    // A box that never had a proof is as old as its start.
    const uptime = box.heartbeat?.uptime_s;
    const started = uptime === undefined || box.heartbeatAt === undefined ? 0 : uptime + (now - box.heartbeatAt) / 1000;
    if ((proofAge(box, now) ?? started) > PROOFS_MAX * interval) found.push({ code: "proof", device });
  }
  return found;
}

/** By the reasons of the status and by the heartbeat, unless that is from before this connection. */
function standstills(box: Box, since: number): Map<Standstill, string | undefined> {
  const found = new Map<Standstill, string | undefined>();
  for (const reason of box.status?.reasons ?? []) {
    for (const [pattern, code] of BLIND) {
      const match = pattern.exec(reason);
      if (match) found.set(code, code === "stage" ? match[1] : undefined);
    }
  }
  const beat = box.heartbeatAt !== undefined && box.heartbeatAt >= since ? box.heartbeat : undefined;
  const flags = [["dicom_ok", "receiver"], ["infer_ok", "reader"], ["disk_ok", "disk"]] as const;
  for (const [flag, code] of flags) if (beat?.[flag] === false) found.set(code, undefined);
  return found;
}
