//! From nothing to a station: the box's configuration, one tab per browser, the setup form, the page.

import { render } from "preact";
import { useEffect, useReducer, useState } from "preact/hooks";

import { speak, t } from "./i18n.ts";
import { fromAddress, loadSettings, saveSettings, type Settings } from "./settings.ts";
import * as sound from "./sound.ts";
import { Station } from "./station.ts";
import { every } from "./timer.ts";
import type { PageConfig } from "./wire.ts";
import { Engineer } from "./view/engineer.tsx";
import { Setup } from "./view/setup.tsx";
import { Ward } from "./view/ward.tsx";

const RETRY_MS = 3_000;

/** Asks until the box (or, without it, the service worker) answers. */
function useConfig(): PageConfig | undefined {
  const [config, set] = useState<PageConfig>();
  useEffect(() => {
    let stopped = false;
    const ask = async (): Promise<void> => {
      const answer = await fetch("/config.json").then((r) => (r.ok ? r.json() : undefined)).catch(() => undefined);
      if (stopped) return;
      if (answer?.schema === "ichd.page/1") set(answer);
      else setTimeout(() => void ask(), RETRY_MS);
    };
    void ask();
    return () => void (stopped = true);
  }, []);
  return config;
}

/** Two tabs under one name would take the link from each other: one holds the lock, the last one asked wins. */
function hold(steal: boolean, onHeld: () => void, onLost: () => void): void {
  if (!navigator.locks) return onHeld();
  void navigator.locks
    .request("ichd-station", steal ? { steal } : { ifAvailable: true }, (lock) => {
      if (lock === null) return onLost();
      onHeld();
      return new Promise<void>(() => undefined);
    })
    .catch(onLost);
}

function App() {
  const config = useConfig();
  const [settings, setSettings] = useState<Settings | undefined>(loadSettings);
  const [held, setHeld] = useState<boolean>();
  const [station, setStation] = useState<Station>();
  // An address that names another station or role asks to be it.
  const [given, setGiven] = useState(() => fromAddress(location.hash));
  const [setup, setSetup] = useState(() => given !== undefined && (given.station !== settings?.station || given.role !== settings.role));
  if (settings) speak(settings.language);

  useEffect(() => hold(false, () => setHeld(true), () => setHeld(false)), []);
  useEffect(() => {
    if (!config || !settings || !held) return;
    const station = new Station(config, settings);
    Object.assign(window, { ichd: { station, heard: sound.heard } });
    setStation(station);
    return () => station.leave();
  }, [config, settings, held]);

  if (held === false) {
    const take = (): void => hold(true, () => setHeld(true), () => setHeld(false));
    return (
      <Plain text={t("elsewhere")}>
        <button class="big" onClick={take}>{t("here")}</button>
      </Plain>
    );
  }
  if (!config) return <Plain text={t("no_config")} />;
  if (!settings || setup) {
    const save = (settings: Settings): void => {
      saveSettings(settings);
      setSetup(false);
      setGiven(undefined);
      history.replaceState(null, "", location.pathname);
      setSettings(settings);
    };
    return <Setup site={config.site} settings={settings} given={given} onSave={save} />;
  }
  return station ? <Page station={station} onSetup={() => setSetup(true)} /> : <Plain text="" />;
}

function Plain({ text, children }: { text: string; children?: preact.ComponentChildren }) {
  return (
    <main class="plain">
      <img src="/icon.svg" alt="" width="96" height="96" />
      <p>{text}</p>
      {children}
    </main>
  );
}

function Page({ station, onSetup }: { station: Station; onSetup: () => void }) {
  const [, redraw] = useReducer((n: number) => n + 1, 0);
  const [tab, setTab] = useState<"ward" | "engineer">(station.settings.role === "engineer" ? "engineer" : "ward");
  useEffect(() => station.subscribe(() => redraw(undefined)), [station]);
  useEffect(() => {
    // The first touch anywhere lets a reloaded page sound again.
    const unlock = (): void => {
      if (!station.soundRuns) void station.unlockSound();
    };
    for (const event of ["pointerdown", "keydown"]) addEventListener(event, unlock);
    return () => {
      for (const event of ["pointerdown", "keydown"]) removeEventListener(event, unlock);
    };
  }, [station]);
  return (
    <Ward station={station} tab={tab} onTab={setTab} onSetup={onSetup}>
      {tab === "engineer" ? <Engineer station={station} /> : undefined}
    </Ward>
  );
}

render(<App />, document.getElementById("station")!);

// Typed into an open page it changes nothing by itself.
addEventListener("hashchange", () => fromAddress(location.hash) && location.reload());

// The tick runs for whichever station is there; in a worker, so that a hidden page keeps its time.
every(1_000, () => (window as { ichd?: { station?: Station } }).ichd?.station?.tick());

if ("serviceWorker" in navigator) void navigator.serviceWorker.register("/sw.js").catch(() => undefined);
