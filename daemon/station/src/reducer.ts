//! State, not events: one retained, revisioned document per alert. Pure; the same tiny machine is in
//! `daemon/src/station/reducer.rs`, and `vectors/*.json` hold both to one behaviour.
//!
//! - a document is applied only if its revision is higher than what is held for that alert;
//! - an empty payload purges the alert, and its revision is remembered: it comes back only with a higher one;
//! - anything else (not JSON, another schema, an identity that is not the topic's) changes nothing.
//!
//! So duplicates, reordering, late joining and lost intermediates are harmless.

/** What is held of one alert; a purged one keeps its revision and no document. */
export interface Held<D> {
  rev: number;
  document: D | null;
}

/** Alerts by key, `{device}/{alert_id}`: a device cannot hide another's alert behind a higher revision. */
export type Alerts<D> = ReadonlyMap<string, Held<D>>;

export type Change = "applied" | "repeated" | "stale" | "purged" | "refused";

/** Revisions remembered of purged alerts; the oldest are forgotten first. */
export const PURGED_MAX = 4096;

/** Applies one message of `dev/{device}/alert/{alert_id}`; `read` checks and reads a document. */
export function reduce<D extends { alert_id: string; device?: string; rev: number }>(
  alerts: Alerts<D>,
  device: string,
  alertId: string,
  payload: string,
  read: (payload: string) => D | undefined,
): [Alerts<D>, Change] {
  const key = `${device}/${alertId}`;
  const held = alerts.get(key);
  if (payload === "") {
    if (held === undefined || held.document === null) return [alerts, "stale"];
    return [forgetOldest(put(alerts, key, { rev: held.rev, document: null })), "purged"];
  }
  const document = read(payload);
  if (document === undefined || document.alert_id !== alertId || (document.device ?? device) !== device) {
    return [alerts, "refused"];
  }
  if (held !== undefined && document.rev <= held.rev) {
    return [alerts, document.rev === held.rev && held.document !== null ? "repeated" : "stale"];
  }
  return [put(alerts, key, { rev: document.rev, document }), "applied"];
}

/** Last in the order of keys is what changed last. */
function put<D>(alerts: Alerts<D>, key: string, held: Held<D>): Map<string, Held<D>> {
  const next = new Map(alerts);
  next.delete(key);
  return next.set(key, held);
}

function forgetOldest<D>(alerts: Map<string, Held<D>>): Map<string, Held<D>> {
  const purged = [...alerts].filter(([, held]) => held.document === null);
  for (const [key] of purged.slice(0, Math.max(0, purged.length - PURGED_MAX))) alerts.delete(key);
  return alerts;
}
