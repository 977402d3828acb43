// Talks to the service; the token comes with the link and stays in this tab.

const KEY = "pareto-search-token";

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
    throw new Refused(0, "The service does not answer; is it still running?");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, told.error ?? `The service answers ${answer.status}.`);
  }
  return answer;
}

// An idempotency key; what makes a UUID is there over HTTPS and on this machine only.
export const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export const get = async (path) => (await ask(path)).json();

async function send(method, path, body, options = {}) {
  const headers = { "Content-Type": "application/json", ...options.headers };
  return (await ask(path, { ...options, method, headers, body: JSON.stringify(body ?? null) })).json();
}

export const post = (path, body, options) => send("POST", path, body, options);
export const put = (path, body) => send("PUT", path, body);

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

// Server-sent events, read with fetch: EventSource cannot send the token. Comes back after a break until aborted.
export async function watch(path, signal, hear) {
  while (!signal.aborted) {
    try {
      const answer = await ask(path, { signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
          if (data.length && hear(JSON.parse(data.join("\n"))) === "enough") return;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401 || error.status === 404) throw error;
    }
    await new Promise((go) => setTimeout(go, 1000));
  }
}
