//! What this station remembers of itself, in localStorage: who it is, and the shift that is on.

import type { Language } from "./i18n.ts";
import { keysOf } from "./subject.ts";
import type { Role } from "./wire.ts";

export interface Settings {
  station: string;
  role: Role;
  ward: string;
  language: Language;
  /** Keys of `subject.enc`, as entered. */
  key?: string;
  /** Broker password, where there is no certificate. */
  password?: string;
}

export interface Shift {
  user: string;
  started_at: string;
  /** A person heard the test tone. */
  sound_ok: boolean;
}

export const ROLES: readonly Role[] = ["nurse", "charge_nurse", "physician", "engineer", "viewer"];

/** An MQTT topic level. */
export const isStationName = (text: string): boolean => /^[a-z0-9-]{1,32}$/.test(text);

export const isValid = (s: Settings): boolean =>
  isStationName(s.station) && ROLES.includes(s.role) && typeof s.ward === "string" && (!s.key || keysOf(s.key).length > 0);

function read<T>(name: string): T | undefined {
  try {
    return JSON.parse(localStorage.getItem(name) ?? "null") ?? undefined;
  } catch {
    return undefined;
  }
}

export function loadSettings(): Settings | undefined {
  const settings = read<Settings>("ichd.station");
  return settings && isValid(settings) ? settings : undefined;
}

export const saveSettings = (settings: Settings): void =>
  localStorage.setItem("ichd.station", JSON.stringify(settings));

export const loadShift = (): Shift | undefined => read<Shift>("ichd.shift");

export function saveShift(shift: Shift | undefined): void {
  if (shift) localStorage.setItem("ichd.shift", JSON.stringify(shift));
  else localStorage.removeItem("ichd.shift");
}
