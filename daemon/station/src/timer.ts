//! `setInterval` and `setTimeout` that keep their time while the page is hidden.

const worker = new Worker("/tick.js", { type: "module" });
const callbacks = new Map<number, () => void>();
let last = 0;

worker.onmessage = ({ data }: MessageEvent<number>) => callbacks.get(data)?.();

export function every(ms: number, callback: () => void): number {
  const id = ++last;
  callbacks.set(id, callback);
  worker.postMessage({ id, every: ms });
  return id;
}

export function after(ms: number, callback: () => void): number {
  const id = every(ms, () => {
    clear(id);
    callback();
  });
  return id;
}

export function clear(id: number): void {
  if (callbacks.delete(id)) worker.postMessage({ id });
}
