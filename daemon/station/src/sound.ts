//! Tones, made on the spot: no file to load, nothing to fetch. `heard` counts tones that really began to play, which is
//! what a "sounded" receipt says.

import type { Tone } from "./alarm.ts";

/** [frequency Hz, start s, length s] of each note. Few harmonics: loud enough, not shrill at night. */
const NOTES: Record<Tone | "test", [number, number, number][]> = {
  urgent: [[880, 0, 0.18], [698, 0.24, 0.18], [880, 0.48, 0.18], [698, 0.72, 0.18], [880, 0.96, 0.34]],
  alert: [[784, 0, 0.22], [659, 0.3, 0.22], [784, 0.6, 0.32]],
  technical: [[392, 0, 0.25], [392, 0.4, 0.25]],
  withdrawn: [[659, 0, 0.25], [523, 0.3, 0.25], [392, 0.6, 0.45]],
  unavailable: [[330, 0, 0.45], [262, 0.55, 0.6]],
  test: [[523, 0, 0.2], [659, 0.25, 0.2], [784, 0.5, 0.4]],
};

let context: AudioContext | undefined;
export const heard: Partial<Record<Tone | "test", number>> = {};

/** Browsers let a page sound only after a touch or key; call this from one. */
export async function unlock(): Promise<boolean> {
  context ??= new AudioContext();
  if (context.state !== "running") {
    // A refused resume never settles, so do not wait for it for ever.
    await Promise.race([context.resume(), new Promise((done) => setTimeout(done, 500))]).catch(() => undefined);
  }
  return isRunning();
}

export const isRunning = (): boolean => context?.state === "running";

/** Plays a tone; false if this page cannot sound. */
export function play(tone: Tone | "test"): boolean {
  if (context === undefined || context.state !== "running") return false;
  for (const [frequency, start, length] of NOTES[tone]) note(context, frequency, context.currentTime + start, length);
  heard[tone] = (heard[tone] ?? 0) + 1;
  return true;
}

function note(audio: AudioContext, frequency: number, at: number, length: number): void {
  const gain = audio.createGain();
  gain.gain.setValueAtTime(0, at);
  gain.gain.linearRampToValueAtTime(0.5, at + 0.02);
  gain.gain.setValueAtTime(0.5, at + length - 0.05);
  gain.gain.linearRampToValueAtTime(0, at + length);
  gain.connect(audio.destination);
  for (const [harmonic, level] of [[1, 0.7], [2, 0.2], [3, 0.1]] as const) {
    const oscillator = audio.createOscillator();
    const part = audio.createGain();
    oscillator.frequency.value = frequency * harmonic;
    part.gain.value = level;
    oscillator.connect(part).connect(gain);
    oscillator.start(at);
    oscillator.stop(at + length);
  }
}
