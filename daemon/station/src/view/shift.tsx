import { useLayoutEffect, useRef, useState } from "preact/hooks";

import { t } from "../i18n.ts";
import * as sound from "../sound.ts";
import type { Station } from "../station.ts";

/** Keys stay in a dialog: Escape leaves it, Tab goes round, and focus returns to where it was. */
function useModal(onDone: () => void, page: unknown) {
  const ref = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const before = document.activeElement;
    return () => (before instanceof HTMLElement ? before.focus() : undefined);
  }, []);
  // A field, or the dialog itself: a second Enter must not say that a tone was heard.
  useLayoutEffect(() => (ref.current?.querySelector("input") ?? ref.current)?.focus(), [page]);
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key === "Escape") return onDone();
    if (event.key !== "Tab") return;
    const all = [...(ref.current?.querySelectorAll<HTMLElement>("input, button:not(:disabled)") ?? [])];
    const [first, last] = event.shiftKey ? [all.at(-1), all[0]] : [all[0], all.at(-1)];
    const inside = ref.current?.contains(document.activeElement);
    if (inside && document.activeElement !== last) return;
    event.preventDefault();
    first?.focus();
  };
  return { ref, onKeyDown };
}

/** A shift starts with a name and a tone that a person heard. */
export function StartShift({ station, onDone }: { station: Station; onDone: () => void }) {
  const [user, setUser] = useState(station.shift?.user ?? "");
  const [played, setPlayed] = useState(false);
  const name = user.trim();
  const play = async (event?: Event): Promise<void> => {
    event?.preventDefault();
    if (!name) return;
    await station.unlockSound();
    sound.play("test");
    setPlayed(true);
  };
  const start = (heard: boolean): void => {
    station.startShift(name, heard && sound.isRunning());
    onDone();
  };
  return (
    <div {...useModal(onDone, played)} class="sheet" tabIndex={-1} role="dialog" aria-modal="true" aria-label={t("start_shift")}>
      <form onSubmit={(e) => void play(e)}>
        <h1>{t(station.shift ? "shift" : "start_shift")}</h1>
        {played ? (
          <>
            <p class="question">{t("heard")}</p>
            <div class="row">
              <button type="button" class="big" onClick={() => start(true)}>✓ {t("heard_yes")}</button>
              <button type="button" class="plain-button" onClick={() => start(false)}>✕ {t("heard_no")}</button>
            </div>
            <div class="row">
              <button type="button" class="plain-button" onClick={() => void play()}>♪ {t("again")}</button>
            </div>
          </>
        ) : (
          <>
            <label>
              {t("who")}
              <input name="user" value={user} maxLength={64} autocomplete="off"
                onInput={(e) => setUser((e.target as HTMLInputElement).value)} />
              <small>{t("who_note")}</small>
            </label>
            <p class="dim">♪ {t("start_note")}</p>
            <div class="row">
              <button class="big" type="submit" disabled={!name}>{t(station.shift ? "try_sound" : "start_shift")}</button>
              <button type="button" class="plain-button" onClick={onDone}>{t("back")}</button>
              {station.shift && (
                <button type="button" class="plain-button end" onClick={() => (station.endShift(), onDone())}>✕ {t("end_shift")}</button>
              )}
            </div>
          </>
        )}
      </form>
    </div>
  );
}
