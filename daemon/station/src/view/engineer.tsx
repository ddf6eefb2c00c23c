import { age, t, word } from "../i18n.ts";
import * as sound from "../sound.ts";
import type { Station } from "../station.ts";

/** The second tab: everything the station has heard, in figures. */
export function Engineer({ station }: { station: Station }) {
  const { config, linkedAt, boxes, dispositions, stations, log } = station;
  const now = performance.now();
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
            <button class="chip" onClick={() => void station.unlockSound().then(() => sound.play(tone))}>♪ {tone}</button>
          ))}
        </div>
      </section>
      {[...boxes].map(([device, box]) => (
        <section key={device} data-box={device}>
          <h3>{device}</h3>
          <Facts of={[
            [t("eng_state"), word("state_", box.status?.state ?? "unknown")],
            [t("eng_reasons"), box.status?.reasons?.map(code).join(", ") || t("eng_none_reasons")],
            [t("eng_version"), box.status?.version ?? "–"],
            [t("eng_model"), [box.status?.model?.id, box.status?.model?.version].filter(Boolean).join(" ") || "–"],
            ...Object.entries(box.heartbeat ?? {})
              .filter(([name]) => name !== "schema")
              .map(([name, value]): [string, string] => [name, typeof value === "object" ? JSON.stringify(value) : String(value)]),
          ]} />
        </section>
      ))}
      <section>
        <h3>{t("eng_stations")}</h3>
        <Table head={[t("station_name"), t("eng_state"), t("role"), t("ward"), t("who"), t("sound")]}
          rows={[...stations].sort().map(([name, s]) => [
            name, s.state ?? "", word("role_", s.role ?? ""), s.ward ?? "", s.user ?? "", t(s.sound_ok ? "yes" : "no"),
          ])} />
      </section>
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
