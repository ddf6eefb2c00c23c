import { useLayoutEffect, useRef } from "preact/hooks";

import { age, isUnread, t, word, written } from "../i18n.ts";
import type { Shown, Station } from "../station.ts";
import { type Feedback, isWaiting } from "../wire.ts";

interface Props {
  station: Station;
  shown: Shown;
  selected: boolean;
  asking: Question | undefined;
  onAsk(what: Question | undefined): void;
  onSelect(): void;
}

/** What is asked before it is done. */
export type Question = "decline" | "resolve";

/** One alert: what, whose, how old, who has it; and the big button. Colour never stands alone: each state has its sign. */
export function Card({ station, shown, selected, asking, onAsk, onSelect }: Props) {
  const { alert, unconfirmed } = shown;
  const look = unconfirmed ? "unconfirmed" : alert.state === "withdrawn" ? "withdrawn" : isWaiting(alert) ? "waiting" : "taken";
  return (
    <article class={`card ${look} ${alert.kind}${selected ? " selected" : ""}`} data-alert={alert.alert_id} data-rev={alert.rev}
      data-state={alert.state} aria-current={selected} onPointerDown={onSelect}>
      <header>
        <span class="sign" aria-hidden="true">{SIGNS[look]}</span>
        <h2>{headline(shown)}</h2>
        <span class="age">{age(station.age(shown))}</span>
      </header>
      <div class="what">
        {alert.subject?.ref && <span class="ref">{alert.subject.ref}</span>}
        <span class="finding">{finding(shown)}</span>
      </div>
      <Subject station={station} shown={shown} />
      <p class="facts">{facts(shown, station.config.devices.length).map((fact) => <span>{fact}</span>)}</p>
      {alert.kind === "technical" && alert.technical?.text && <p class="note">{written(alert.technical.text)}</p>}
      {alert.state === "withdrawn" ? <p class="note">{t("withdrawn_note")}</p> : <Addendum text={alert.addendum?.at(-1)} />}
      {unconfirmed && <p class="note">{t("unconfirmed")}</p>}
      <Who station={station} shown={shown} />
      {alert.state === "withdrawn" ? (
        <div class="actions">
          <button class="big quiet" onClick={() => station.dismiss(shown.key)}>✓ {t("seen")}</button>
        </div>
      ) : (
        <Actions station={station} shown={shown} asking={asking} ask={onAsk} />
      )}
      <Answer shown={shown} />
    </article>
  );
}

const SIGNS = { waiting: "▲", taken: "✓", withdrawn: "↩", unconfirmed: "?" };

export function headline({ alert }: Shown): string {
  if (alert.state === "withdrawn") return t("withdrawn");
  return alert.kind === "technical" ? t("technical") : t("suspected");
}

export function finding({ alert }: Shown): string {
  if (alert.kind === "technical") return word("technical_", alert.technical?.code ?? "");
  const { side, subtypes } = alert.finding ?? {};
  const types = (subtypes ?? []).map((type) => word("", type)).join(", ");
  return [side ? word("side_", side) : "", types].filter(Boolean).join(" · ");
}

function facts({ alert, device }: Shown, devices: number): string[] {
  const { slice_range: range, volume_ml: ml } = alert.finding ?? {};
  const { priority: n } = alert;
  const found = [n === 1 || n === 2 ? t(`priority_${n}`) : t("priority", { n })];
  // A scan whose end could not be read has arrived all the same.
  const unread = alert.stage === "provisional" && isUnread(alert.addendum?.at(-1));
  if (alert.kind !== "technical" && !unread) found.push(alert.stage === "provisional" ? t("provisional") : t("final"));
  if (typeof ml === "number") found.push(t("about_ml", { n: Math.round(ml) }));
  // People count slices from 1.
  if (range) found.push(t("slices", { a: range[0] + 1, b: range[1] + 1 }));
  if (alert.quality?.flags?.length) found.push(t("flags", { flags: alert.quality.flags.map((flag) => word("flag_", flag)).join(", ") }));
  return devices > 1 ? [...found, device] : found;
}

function Subject({ station, shown }: { station: Station; shown: Shown }) {
  const subject = station.subject(shown.alert);
  if (subject === undefined) return null;
  if (subject === "locked") return <p class="note">{t("enc_locked")}</p>;
  const names = [subject.name_ideographic, subject.name].filter(Boolean).join(" ");
  const patient = [names, subject.patient_id, subject.birth_date, subject.accession_number].filter(Boolean).join(", ");
  return (
    <>
      {subject.picture && <img class="picture" src={`data:image/png;base64,${subject.picture}`} alt={t("picture")} title={t("picture")} />}
      <p class="subject">
        {subject.location && <span><small>{t("location")}</small> {subject.location}</span>}
        {patient && <span><small>{t("patient")}</small> {patient}</span>}
      </p>
    </>
  );
}

/** What happened last, as the box wrote it down: one alert with addenda instead of new alarms. */
function Addendum({ text }: { text: string | undefined }) {
  return text === undefined ? null : <p class="note">+ {written(text)}</p>;
}

/** Who has it, and what the box will do next. */
function Who({ station, shown }: { station: Station; shown: Shown }) {
  const { ack, claimed_by: claim, escalation, feedback, state } = shown.alert;
  const next = station.nextIn(shown);
  const lines: string[] = [];
  if (ack?.user) lines.push(`✓ ${t("acknowledged_by", { user: ack.user, station: ack.station ?? "" })}`);
  const looks = isWaiting(shown.alert) ? "claimed_by" : "looking";
  if (claim?.user) lines.push(`→ ${t(looks, { user: claim.user, station: claim.station ?? "" })}`);
  if (state === "escalated") lines.push(`⇈ ${t("escalated", { n: escalation?.step ?? 1 })}`);
  if (next !== undefined) lines.push(`◷ ${t("next_in", { age: age(next) })}`);
  const muted = Date.parse(escalation?.muted_until ?? "");
  if (muted > Date.now()) {
    lines.push(`✕♪ ${t("muted_until", { time: new Date(muted).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) })}`);
  }
  for (const { user, value } of feedback ?? []) lines.push(t("feedback_said", { user: user ?? "", value: word("", value ?? "") }));
  return lines.length > 0 ? <p class="who">{lines.map((line) => <span>{line}</span>)}</p> : null;
}

const FEEDBACK: readonly [Feedback, string][] = [["right", "✓"], ["wrong", "✕"], ["unsure", "?"]];

interface ActionsProps {
  station: Station;
  shown: Shown;
  asking: Question | undefined;
  ask(what: Question | undefined): void;
}

function Actions({ station, shown, asking, ask }: ActionsProps) {
  const first = useRef<HTMLButtonElement>(null);
  // Asked by a key, it is answered by one.
  useLayoutEffect(() => (asking ? first.current?.focus() : undefined), [asking]);
  const { alert } = shown;
  if (!station.speaks) return <p class="note">{t("viewer")}</p>;
  const off = !station.mayAct || station.link !== "connected";
  const user = station.shift?.user ?? "";
  if (asking === "decline" && isWaiting(alert)) {
    const say = (reason: string): void => (station.act(shown, "decline", { reason }), ask(undefined));
    return (
      <div class="actions">
        <span class="question">{t("decline_why")}</span>
        {(["busy", "not_mine", "other"] as const).map((why, n) => <button ref={n === 0 ? first : undefined} onClick={() => say(why)}>{t(why)}</button>)}
        <button class="plain-button" onClick={() => ask(undefined)}>{t("back")}</button>
      </div>
    );
  }
  if (asking === "resolve" && !isWaiting(alert)) {
    return (
      <div class="actions">
        <span class="question">{t("close_why")}</span>
        <button ref={first} onClick={() => (station.act(shown, "resolve"), ask(undefined))}>{t("close_yes")}</button>
        <button class="plain-button" onClick={() => ask(undefined)}>{t("back")}</button>
      </div>
    );
  }
  const mine = alert.claimed_by?.station === station.settings.station;
  return (
    <div class="actions">
      {isWaiting(alert) && (
        <button class="big ack" disabled={off} onClick={() => station.act(shown, "ack")}>
          {t("ack")} {user && <small>{t("ack_as", { user })}</small>}
        </button>
      )}
      {mine ? (
        <button disabled={off} onClick={() => station.act(shown, "release")}>{t("release")}</button>
      ) : (
        !alert.claimed_by && <button disabled={off} onClick={() => station.act(shown, "claim")}>{t("claim")}</button>
      )}
      {isWaiting(alert) && <button disabled={off} onClick={() => ask("decline")}>{t("decline")}</button>}
      <button disabled={off} onClick={() => station.act(shown, "escalate")}>{t("escalate")}</button>
      {!isWaiting(alert) && <button disabled={off} onClick={() => ask("resolve")}>{t("resolve")}</button>}
      {alert.kind === "finding" && !isWaiting(alert) && (
        <span class="feedback" role="group" aria-label={t("feedback")}>
          <small>{t("feedback")}</small>
          {FEEDBACK.map(([feedback, sign]) => (
            <button disabled={off} onClick={() => station.act(shown, "feedback", { feedback })}>{sign} {t(feedback)}</button>
          ))}
        </span>
      )}
    </div>
  );
}

/** What became of the last action, in words. */
function Answer({ shown: { pending } }: { shown: Shown }) {
  if (!pending) return null;
  const { state, reply } = pending;
  const message = reply?.code ? word("code_", reply.code) : (reply?.message ?? "");
  return <p class={`answer ${state}`} role="status">{state === "refused" ? t("refused", { message }) : t(state)}</p>;
}
