import { useEffect } from "preact/hooks";

import { age, t, word } from "../i18n.ts";
import * as sound from "../sound.ts";
import type { Question, Station } from "../station.ts";
import type { LedgerLine } from "../wire.ts";

/** The second tab: everything the station has heard, in figures; and what an engineer may ask of a box. */
export function Engineer({ station }: { station: Station }) {
  const { config, linkedAt, boxes, dispositions, stations, log } = station;
  const now = performance.now();
  const { mayAsk } = station;
  useEffect(() => {
    if (mayAsk) for (const device of config.devices) station.ask(device, "ledger");
  }, [mayAsk]);
  return (
    <main class="engineer">
      <section>
        <h3>{t("eng_link")}</h3>
        <Facts of={[
          [t("eng_broker"), config.broker_url],
          [t("eng_state"), `${t(`link_${station.link}`)}${station.linkDetail ? `, ${station.linkDetail}` : ""}`],
          [t("eng_since"), linkedAt === undefined ? "–" : age((now - linkedAt) / 1000)],
          [t("eng_connections"), station.connections],
          [t("eng_messages"), station.messages],
          [t("eng_refused"), station.refused],
          [t("eng_version"), config.version],
          [t("eng_wake"), t(station.wakeLock && !station.wakeLock.released ? "yes" : "no")],
        ]} />
        <div class="row">
          {(["urgent", "alert", "technical", "withdrawn", "unavailable"] as const).map((tone) => (
            <button class="chip" onClick={() => void station.unlockSound().then(() => sound.play(tone))}>♪ {word("tone_", tone)}</button>
          ))}
        </div>
      </section>
      {[...boxes].map(([device, box]) => (
        <section key={device} data-box={device}>
          <h3>{device}</h3>
          <Facts of={[
            [t("eng_state"), word("state_", box.status?.state ?? "unknown")],
            [t("eng_reasons"), box.status?.reasons?.map(code).join(", ") || t("eng_none_reasons")],
            [t("eng_warnings"), box.status?.warnings?.map(code).join(", ") || t("eng_none_reasons")],
            [t("eng_ppv"), ppv(box.heartbeat?.experience_week)],
            [t("eng_version"), box.status?.version ?? "–"],
            [t("eng_model"), [box.status?.model?.id, box.status?.model?.version].filter(Boolean).join(" ") || "–"],
            ...Object.entries(box.heartbeat ?? {})
              .filter(([name]) => name !== "schema" && name !== "experience_week")
              .map(([name, value]): [string, string] => [name, typeof value === "object" ? JSON.stringify(value) : String(value)]),
          ]} />
          <div class="row">
            <button class="chip" data-ask="proof" disabled={!mayAsk || station.question(device, "proof")?.state === "sending"}
              onClick={() => station.ask(device, "proof")}>⟳ {t("eng_test")}</button>
            <Outcome question={station.question(device, "proof")} />
          </div>
          {!mayAsk && <p class="dim">{t("eng_may_not")}</p>}
        </section>
      ))}
      <section>
        <h3>{t("eng_stations")}</h3>
        <Table head={[t("station_name"), t("eng_state"), t("role"), t("ward"), t("who"), t("sound")]}
          rows={[...stations].sort().map(([name, s]) => [
            name, s.state ?? "", word("role_", s.role ?? ""), s.ward ?? "", s.user ?? "", t(s.sound_ok ? "yes" : "no"),
          ])} />
      </section>
      {config.devices.map((device) => <Ledger key={device} station={station} device={device} />)}
      <section class="wide">
        <h3>{t("eng_dispositions")}</h3>
        <Table head={[t("eng_time"), t("eng_study"), t("eng_series"), t("eng_disposition"), t("eng_reason"), t("eng_slices"), t("eng_flags")]}
          rows={dispositions.map((d) => [
            time(d.decided_at), d.study_ref?.slice(0, 10) ?? "", d.series_ref?.slice(0, 10) ?? "", code(d.disposition),
            code(d.reason), `${d.instances ?? ""}${d.revision ? ` (+${d.revision})` : ""}`, (d.flags ?? []).join(", "),
          ])} />
      </section>
      <section class="wide">
        <h3>{t("eng_log")}</h3>
        <Table head={[]} rows={log.map((line) => [new Date(line.wall).toLocaleTimeString(), line.text])} />
      </section>
    </main>
  );
}

/** What the box holds of every series, and the same bytes again on demand. */
function Ledger({ station, device }: { station: Station; device: string }) {
  const lines = station.ledgers.get(device) ?? [];
  const asked = station.question(device, "ledger");
  const head = [
    t("eng_time"), t("eng_study"), t("eng_series"), t("eng_disposition"), t("eng_reason"), t("eng_slices"), t("eng_replay"),
  ];
  return (
    <section class="wide" data-ledger={device}>
      <h3>{t("eng_ledger")} {device}</h3>
      <div class="row">
        <button class="chip" data-ask="ledger" disabled={!station.mayAsk} onClick={() => station.ask(device, "ledger")}>
          ⟳ {t("eng_refresh")}
        </button>
        {asked?.answer?.code !== "ok" && <Outcome question={asked} />}
      </div>
      {lines.length === 0 ? <p class="dim">{t("eng_none")}</p> : (
        <div class="scroll">
          <table>
            <thead><tr>{head.map((h) => <th>{h}</th>)}</tr></thead>
            <tbody>{lines.map((line) => <Line station={station} device={device} line={line} />)}</tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function Line({ station, device, line }: { station: Station; device: string; line: LedgerLine }) {
  const series = line.series_ref ?? "";
  const asked = station.question(device, "replay", series);
  return (
    <tr data-series={series}>
      <td>{time(line.decided_at)}</td>
      <td>{line.study_ref?.slice(0, 10)}{line.test ? ` ${t("test")}` : ""}</td>
      <td>{series.slice(0, 10)}</td>
      <td>{code(line.disposition)}{line.stage === "provisional" ? ` (${code(line.stage)})` : ""}</td>
      <td>{code(line.reason)}</td>
      <td>{line.instances}{line.revision ? ` (+${line.revision})` : ""}</td>
      <td>
        {line.purged ? t("eng_purged") : (
          <button class="chip" disabled={!station.mayAsk || asked?.state === "sending"}
            onClick={() => station.ask(device, "replay", series)}>⟳</button>
        )} <Outcome question={asked} />
      </td>
    </tr>
  );
}

/** What became of a question, in words. */
function Outcome({ question }: { question: Question | undefined }) {
  if (!question) return null;
  const { state, answer } = question;
  if (state !== "answered" || !answer) return <span class="dim" data-outcome={state}>{t(state === "answered" ? "sending" : state)}</span>;
  const { proof, replay } = answer;
  const words =
    answer.code !== "ok" ? `✕ ${answer.message || code(answer.code)}`
    : replay ? (replay.equal ? `✓ ${t("eng_equal")}` : `✕ ${replay.difference ?? ""}`)
    : proof ? `✓ ${t("eng_proved", { reached: code(proof.reached), s: ((proof.took_ms ?? 0) / 1000).toFixed(1) })}`
    : "✓";
  return <span role="status" data-outcome={answer.code}>{words}</span>;
}

/** The site's own positive predictive value, by name. */
function ppv(week: { judged?: number; right?: number; wrong?: number; positive_predictive_value?: number | null } | undefined): string {
  const value = week?.positive_predictive_value;
  if (typeof value !== "number") return t("week_none");
  return `${Math.round(100 * value)} % (${week?.right ?? 0} ✓, ${week?.wrong ?? 0} ✕, ${week?.judged ?? 0})`;
}

/** Codes of the wire stay what they are: they are in the documents and in the journal. */
const code = (text: string | null | undefined): string => (text ?? "").replaceAll("_", " ");

const time = (rfc3339: string | undefined): string =>
  rfc3339 && !Number.isNaN(Date.parse(rfc3339)) ? new Date(rfc3339).toLocaleTimeString() : "";

function Facts({ of }: { of: [string, string | number][] }) {
  return <dl>{of.map(([name, value]) => <><dt>{name}</dt><dd>{value}</dd></>)}</dl>;
}

function Table({ head, rows }: { head: string[]; rows: string[][] }) {
  if (rows.length === 0) return <p class="dim">{t("eng_none")}</p>;
  return (
    <div class="scroll">
      <table>
        {head.length > 0 && <thead><tr>{head.map((h) => <th>{h}</th>)}</tr></thead>}
        <tbody>{rows.map((row) => <tr>{row.map((cell) => <td>{cell}</td>)}</tr>)}</tbody>
      </table>
    </div>
  );
}
