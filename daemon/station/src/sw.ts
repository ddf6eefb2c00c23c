//! Keeps the page itself, so that a station that is opened while the box is away still says so aloud. Network first:
//! what the box serves now wins, and is kept for when it does not answer.

declare const self: ServiceWorkerGlobalScope;
export {};

const CACHE = "ichd-station";
const PAGE = [
  "/", "/station.js", "/station.css", "/tick.js", "/manifest.webmanifest",
  "/icon.svg", "/icon-192.png", "/icon-512.png", "/config.json",
];
const PATIENCE_MS = 4_000;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(PAGE)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method === "GET" && url.origin === self.location.origin && PAGE.includes(url.pathname)) {
    event.respondWith(networkFirst(event.request));
  }
});

async function networkFirst(request: Request): Promise<Response> {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request, { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}
