import { useState } from "preact/hooks";

import { language, speak, t, word } from "../i18n.ts";
import { isStationName, isValid, ROLES, type Settings } from "../settings.ts";
import { keysOf } from "../subject.ts";

interface Props {
  site: string;
  settings: Settings | undefined;
  /** Name and role, from the address that `ichd enrol` printed. */
  given: Pick<Settings, "station" | "role"> | undefined;
  onSave(settings: Settings): void;
}

/** Who this station is; asked once, kept on the station. */
export function Setup({ site, settings, given, onSave }: Props) {
  const [form, set] = useState<Settings>(() => ({
    ...(settings ?? { station: "", role: "nurse", ward: "", language: language() }), ...given,
  }));
  // A role of the site's own has no word here; it comes by an address.
  const roles = ROLES.includes(form.role) ? ROLES : [...ROLES, form.role];
  const [tried, setTried] = useState(false);
  speak(form.language);
  const badKey = Boolean(form.key) && keysOf(form.key ?? "").length === 0;
  const put = (more: Partial<Settings>): void => set({ ...form, ...more });
  const save = (event: Event): void => {
    event.preventDefault();
    setTried(true);
    const { key, password, ...rest } = form;
    if (isValid(form)) onSave({ ...rest, ...(key ? { key } : {}), ...(password ? { password } : {}) });
  };
  const value = (event: Event): string => (event.target as HTMLInputElement).value;
  return (
    <main class="form">
      <form onSubmit={save} noValidate>
        <h1>{t("setup")}</h1>
        <p class="dim">{site}</p>
        <div class="row">
          {(["en", "zh"] as const).map((l) => (
            <button type="button" class={form.language === l ? "chip on" : "chip"} onClick={() => put({ language: l })}>
              {l === "en" ? "English" : "中文"}
            </button>
          ))}
        </div>
        <label>
          {t("station_name")}
          <input name="station" value={form.station} autocomplete="off" autocapitalize="none" spellcheck={false}
            onInput={(e) => put({ station: value(e).trim() })} />
          <small class={tried && !isStationName(form.station) ? "bad" : ""}>
            {tried && !isStationName(form.station) ? t("bad_station") : t("station_name_note")}
          </small>
        </label>
        <label>
          {t("role")}
          <select name="role" value={form.role} onChange={(e) => put({ role: value(e) })}>
            {roles.map((role) => <option value={role}>{word("role_", role)}</option>)}
          </select>
          <small>{t("role_note")}</small>
        </label>
        <label>
          {t("ward")}
          <input name="ward" value={form.ward} maxLength={64} onInput={(e) => put({ ward: value(e) })} />
        </label>
        <details open={Boolean(form.key || form.password)}>
          <summary>{t("key")} · {t("password")}</summary>
          <label>
            {t("key")}
            <input name="key" type="password" value={form.key ?? ""} autocomplete="off"
              onInput={(e) => put({ key: value(e).trim() })} />
            <small class={badKey ? "bad" : ""}>
              {badKey ? t("bad_key") : t("key_note")}
            </small>
          </label>
          <label>
            {t("password")}
            <input name="password" type="password" value={form.password ?? ""} autocomplete="off"
              onInput={(e) => put({ password: value(e) })} />
            <small>{t("password_note")}</small>
          </label>
        </details>
        <button class="big" type="submit">{t("save")}</button>
        <p class="dim">{t("disclaimer")}</p>
      </form>
    </main>
  );
}
