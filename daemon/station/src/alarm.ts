//! What should sound now. Pure.
//!
//! An alert sounds when it is new to this page and again every [`REPEAT_MS`] until somebody takes it. A later revision
//! sounds at once only if its priority rises or it comes back after it was withdrawn. Withdrawing is said aloud, once.

import { type Alert, isOpen, isWaiting } from "./wire.ts";

export type Tone = "urgent" | "alert" | "technical" | "withdrawn" | "unavailable";

/** What has been sounded of one alert, or of a storm of them. */
export interface Sounded {
  at: number;
  priority: number;
  state: Alert["state"];
}

export const REPEAT_MS = 8_000;
export const TECHNICAL_REPEAT_MS = 30_000;
/** An unavailable AI sounds after this long, so that a broker that restarts wakes nobody. */
export const UNAVAILABLE_AFTER_MS = 10_000;
export const UNAVAILABLE_REPEAT_MS = 20_000;

/** Wall-clock end of a silence the box knows of; the record stays, the sound does not. */
export const isMuted = (alert: Alert, wall: number): boolean =>
  Date.parse(alert.escalation?.muted_until ?? "") > wall;

/** Whether the ladder has called this role by now. A document that names no roles calls everybody. */
export function isCalled(alert: Alert, role: string): boolean {
  const roles = alert.escalation?.roles ?? [];
  return roles.length === 0 || roles.includes("everyone") || roles.includes(role);
}

/**
 * The tone due for an alert on a station of this role, or nothing: who is not called yet sees it, and may sleep. `group` is
 * what was last sounded of the alert's storm: its next members sound with its next tone, unless they are more urgent.
 */
export function due(
  alert: Alert,
  sounded: Sounded | undefined,
  now: number,
  wall: number,
  role: string,
  group?: Sounded,
): Tone | undefined {
  if (alert.kind === "test" || !isCalled(alert, role)) return undefined;
  if (alert.state === "withdrawn") {
    return sounded !== undefined && sounded.state !== "withdrawn" ? "withdrawn" : undefined;
  }
  if (!isOpen(alert) || isMuted(alert, wall)) return undefined;
  const tone = alert.kind === "technical" ? "technical" : alert.priority <= 1 ? "urgent" : "alert";
  const repeat = alert.kind === "technical" ? TECHNICAL_REPEAT_MS : REPEAT_MS;
  if (sounded === undefined) {
    const said = group !== undefined && now - group.at < repeat && alert.priority >= group.priority;
    return isWaiting(alert) && !said ? tone : undefined;
  }
  if (alert.priority < sounded.priority || sounded.state === "withdrawn") return tone;
  return isWaiting(alert) && now - sounded.at >= repeat ? tone : undefined;
}

/** The most urgent first: one tone at a time. */
export const ORDER: readonly Tone[] = ["urgent", "alert", "unavailable", "withdrawn", "technical"];
