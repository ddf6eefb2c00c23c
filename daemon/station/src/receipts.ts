//! Receipts: what reached this station, what was on its screen, what was sounded. Kept until the broker has them.

import type { Alert, ReceiptStage } from "./wire.ts";

/** What a person would call news in a document. Receipts make revisions themselves; answering those would never end. */
export function news(alert: Alert): string {
  const { state, stage, priority, kind, finding, technical, ack, claimed_by, addendum, escalation } = alert;
  return JSON.stringify([state, stage, priority, kind, finding, technical, ack, claimed_by, addendum, escalation?.step]);
}

export interface Receipt {
  schema: "ichd.receipt/1";
  alert_id: string;
  rev: number;
  stage: ReceiptStage;
}

export class Receipts {
  /** Last news receipted, by alert and stage. */
  #said = new Map<string, string>();
  #waiting = new Map<string, { device: string; receipt: Receipt }>();

  /** Says it once per news; `again` when the broker repeats a document that does not know of us. */
  say(key: string, device: string, alert: Alert, stage: ReceiptStage, again = false): void {
    const id = `${key}|${stage}`;
    const content = news(alert);
    if (this.#said.get(id) === content && !again) return;
    this.#said.set(id, content);
    const receipt: Receipt = { schema: "ichd.receipt/1", alert_id: alert.alert_id, rev: alert.rev, stage };
    this.#waiting.set(id, { device, receipt });
  }

  has(key: string, stage: ReceiptStage): boolean {
    return this.#said.has(`${key}|${stage}`);
  }

  forget(key: string): void {
    for (const stage of ["received", "displayed", "sounded"]) {
      this.#said.delete(`${key}|${stage}`);
      this.#waiting.delete(`${key}|${stage}`);
    }
  }

  /** Sends what waits; what the broker does not take stays. */
  async flush(send: (device: string, receipt: Receipt) => Promise<boolean>): Promise<void> {
    const all = [...this.#waiting];
    this.#waiting.clear();
    await Promise.all(
      all.map(async ([id, waiting]) => {
        const sent = await send(waiting.device, waiting.receipt);
        if (!sent && !this.#waiting.has(id)) this.#waiting.set(id, waiting);
      }),
    );
  }
}
