//! Timers in a worker: browsers slow the timers of a hidden page to one a minute, and a station is often hidden.

const timers = new Map<number, ReturnType<typeof setInterval>>();

self.onmessage = ({ data }: MessageEvent<{ id: number; every?: number }>) => {
  const { id, every } = data;
  clearInterval(timers.get(id));
  if (every === undefined) timers.delete(id);
  else timers.set(id, setInterval(() => self.postMessage(id), every));
};
