//! `setInterval` and `setTimeout` that keep their time while the page is hidden. Without the worker they are the browser's
//! own: slower while nobody looks, but there.

interface Timer {
  ms: number;
  callback: () => void;
  own?: ReturnType<typeof setInterval>;
}

const timers = new Map<number, Timer>();
let last = 0;
let worker = start();

function start(): Worker | undefined {
  try {
    const worker = new Worker("/tick.js", { type: "module" });
    worker.onmessage = ({ data }: MessageEvent<number>) => timers.get(data)?.callback();
    worker.onerror = fallBack;
    return worker;
  } catch {
    return undefined;
  }
}

function fallBack(): void {
  worker?.terminate();
  worker = undefined;
  timers.forEach(begin);
}

function begin(timer: Timer, id: number): void {
  if (worker) worker.postMessage({ id, every: timer.ms });
  else timer.own ??= setInterval(timer.callback, timer.ms);
}

export function every(ms: number, callback: () => void): number {
  const [id, timer] = [++last, { ms, callback }];
  timers.set(id, timer);
  begin(timer, id);
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
  const timer = timers.get(id);
  if (!timer) return;
  timers.delete(id);
  if (timer.own !== undefined) clearInterval(timer.own);
  worker?.postMessage({ id });
}
