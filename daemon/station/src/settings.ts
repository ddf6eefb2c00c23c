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

/** What a station is set up as, unless the site has words of its own. */
export const ROLES: readonly Role[] = ["nurse", "charge_nurse", "physician", "phone", "engineer", "viewer"];

/** Nobody works longer: who began a shift before that has forgotten to end it. */
export const SHIFT_MAX_MS = 14 * 3_600_000;

/** An MQTT topic level. */
export const isStationName = (text: string): boolean => /^[a-z0-9-]{1,32}$/.test(text);

/** As `ichd enrol --serves` takes it. */
export const isRole = (text: string): boolean => /^[a-z0-9_]{1,32}$/.test(text);

export const isValid = (s: Settings): boolean =>
  isStationName(s.station) && isRole(s.role) && typeof s.ward === "string" && (!s.key || keysOf(s.key).length > 0);

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

/** Name and role of an address as `ichd enrol add station` prints it: `#station=nurse-1&role=nurse`. */
export function fromAddress(hash: string): Pick<Settings, "station" | "role"> | undefined {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const [station, role] = [given.get("station") ?? "", given.get("role") ?? ""];
  return isStationName(station) && isRole(role) ? { station, role } : undefined;
}

/** Still on at this wall time; a clock that was set back says nothing either. */
export const isOn = (shift: Shift, wall: number): boolean =>
  Math.abs(wall - Date.parse(shift.started_at)) <= SHIFT_MAX_MS;

export function loadShift(): Shift | undefined {
  const shift = read<Shift>("ichd.shift");
  return shift && isOn(shift, Date.now()) ? shift : undefined;
}

export function saveShift(shift: Shift | undefined): void {
  if (shift) localStorage.setItem("ichd.shift", JSON.stringify(shift));
  else localStorage.removeItem("ichd.shift");
}
