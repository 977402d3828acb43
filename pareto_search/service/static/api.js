// Talks to the service; the token comes with the link and stays in this tab.

import { trouble } from "./dom.js";

const KEY = "pareto-search-token";
const SILENT = "The service does not answer; is it still running?";

export function takeToken() {
  const found = location.hash.match(/^#token=(.+)$/);
  if (!found) return;
  keepToken(decodeURIComponent(found[1]));
  history.replaceState(null, "", "#/"); // neither in the address bar nor in a bookmark
}

export const keepToken = (token) => sessionStorage.setItem(KEY, token);
export const hasToken = () => Boolean(sessionStorage.getItem(KEY));

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}`, ...options.headers };
  let answer;
  try {
    answer = await fetch(`/v1${path}`, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, SILENT);
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, told.error ?? `The service answers ${answer.status}.`);
  }
  return answer;
}

// An idempotency key; what makes a UUID is there over HTTPS and on this machine only.
const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export const get = async (path) => (await ask(path)).json();

async function send(method, path, body, options = {}) {
  const headers = { "Content-Type": "application/json", ...options.headers };
  return (await ask(path, { ...options, method, headers, body: JSON.stringify(body ?? null) })).json();
}

export const post = (path, body) => send("POST", path, body);
export const put = (path, body) => send("PUT", path, body);

const keys = new Map(); // of what has been asked for and has not been made, as far as is known here

// Makes something. Whoever presses again because no answer has come gets what was made.
export async function make(path, body) {
  const what = `${path} ${JSON.stringify(body)}`;
  if (!keys.has(what)) keys.set(what, newKey());
  const made = await send("POST", path, body, { headers: { "Idempotency-Key": keys.get(what) } });
  keys.delete(what);
  return made;
}

export const remove = (path) => ask(path, { method: "DELETE" });

export async function upload(form) {
  return (await ask("/data", { method: "POST", body: form })).json();
}

export async function download(path, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await (await ask(path)).blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Server-sent events, until aborted or `hear` has had enough. What goes wrong in `hear` is for the caller to tell.
export async function watch(path, signal, hear) {
  for await (const event of events(path, signal)) if (hear(JSON.parse(event)) === "enough") return;
}

// The events' data. Comes back after a break; that nobody answers meanwhile is shown until the next event.
async function* events(path, signal) {
  let silent = false;
  while (!signal.aborted) {
    try {
      for await (const event of listen(path, signal)) {
        if (silent) trouble(null);
        silent = false;
        yield event;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401 || error.status === 404) throw error;
      silent = true;
      trouble(error);
    }
    await new Promise((go) => setTimeout(go, 1000));
  }
}

// The same over one connection, read with fetch: EventSource cannot send the token.
async function* listen(path, signal) {
  const answer = await ask(path, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => {
      throw new Refused(0, SILENT);
    });
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
      if (data.length) yield data.join("\n");
    }
  }
}
