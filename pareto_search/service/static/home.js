// The list of searches with live progress, and the form that launches one.

import { get, make, post, upload, watch } from "./api.js";
import { count, doing, duration, field, fill, h, renew, select, trouble } from "./dom.js";

// Sized so that two cores need six to nine minutes on MovieLens-100K.
const DEMO = { name: "demo", search: { population: 6, candidates: 16, minutes: 7, steps: 10 }, workers: { count: 2 } };

export async function home(main, signal) {
  const list = h("div", { id: "searches" }), said = h("p", { id: "said", className: "heard", "aria-live": "polite" });
  const chosen = new Set(), older = new Older();
  const compare = h("button", { disabled: true, onclick: () => (location.hash = `#/compare/${[...chosen].join(",")}`) }, "Compare the fronts");
  const form = await launcher();
  if (signal.aborted) return; // another view has been opened meanwhile
  fill(main, h("h1", {}, "Searches"), said, list, older.element, h("p", {}, compare, " ", h("small", {}, "of two or more that you tick")), form);
  let states = null;
  await watch("/events", signal, ({ searches, total }) => {
    const known = new Set([...searches, ...older.searches].map((s) => s.id));
    [...chosen].filter((id) => !known.has(id)).forEach((id) => chosen.delete(id));
    const tick = (id) => (event) => {
      event.target.checked ? chosen.add(id) : chosen.delete(id);
      compare.disabled = chosen.size < 2;
    };
    compare.disabled = chosen.size < 2;
    compare.parentElement.hidden = searches.length < 2;
    renew(() => fill(list, searches.length ? searches.map((s) => card(s, chosen, tick)) : empty()));
    older.follow(searches, total, (s) => card(s, chosen, tick));
    // The list would be read out as a whole at each step of progress.
    const news = states ? searches.filter((s) => states.get(s.id) !== stateOf(s)) : [];
    if (news.length) said.textContent = news.map((s) => `${s.name} is ${stateOf(s)}.`).join(" ");
    states = new Map(searches.map((s) => [s.id, stateOf(s)]));
  });
}

const PAGE = 100;

// The searches beyond those that are watched: fetched page by page when asked for, as they are then.
class Older {
  constructor() {
    this.searches = [];
    this.watched = [];
    this.list = h("div", {});
    this.more = h("button", { id: "older", hidden: true, onclick: doing(() => this.fetch()) });
    this.element = h("div", {}, this.list, this.more);
  }

  follow(watched, total, draw) {
    const ids = new Set(watched.map((s) => s.id)), moved = this.watched.some((s) => !ids.has(s.id)) || this.searches.some((s) => ids.has(s.id));
    Object.assign(this, { watched, total, draw });
    if (moved && this.searches.length) this.fetch(0).catch(trouble);
    const left = total - watched.length - this.searches.length;
    this.more.hidden = left <= 0;
    this.more.textContent = `Show older ones (${left})`;
  }

  async fetch(more = PAGE) {
    // From the first again, as many as there were and some more: new ones have moved them, and some may be gone.
    const wanted = this.searches.length + more, found = [], asked = (this.asked = (this.asked ?? 0) + 1);
    let page, total;
    do {
      ({ searches: page, total } = await get(`/searches?offset=${this.watched.length + found.length}&limit=${PAGE}`));
      found.push(...page);
    } while (page.length && found.length < wanted);
    if (asked !== this.asked) return; // somebody has asked again meanwhile
    const ids = new Set(this.watched.map((s) => s.id));
    this.searches = found.filter((s) => !ids.has(s.id));
    renew(() => fill(this.list, this.searches.map(this.draw)));
    this.follow(this.watched, total, this.draw);
  }
}

const empty = () =>
  h("p", { className: "empty" }, "Nothing has been searched yet. Launch the demo below: it finds the trade-offs on MovieLens-100K in six to nine minutes on two cores.");

function card(search, chosen, tick) {
  return h(
    "article",
    { className: "card" },
    h("input", { type: "checkbox", id: `tick-${search.id}`, checked: chosen.has(search.id), onchange: tick(search.id), "aria-label": `Compare ${search.id}` }),
    h("div", {}, h("a", { href: `#/search/${search.id}`, id: `open-${search.id}`, className: "title" }, search.name), h("small", {}, ` ${search.id}, on ${search.data} with ${search.base}`), standing(search)),
    h("span", { className: `state ${search.state}` }, stateOf(search)),
  );
}

export const stateOf = (search) => (search.state === "running" && search.wish !== "run" ? (search.wish === "pause" ? "pausing" : "cancelling") : search.state);

// How far a search is, in one line with a bar.
export function standing(search) {
  const p = search.progress;
  if (search.error) return h("p", { className: "bad" }, search.error);
  if (!p) return h("p", {}, search.state === "queued" ? "Waits for its turn." : search.notice ?? "");
  const done = p.finished + p.failed;
  const texts = [`${done} of ${p.total} candidates`, count(p.front, "entry", "entries") + " on the front", `hypervolume ${p.hypervolume.toFixed(4)}`];
  if (p.failed) texts.push(`${p.failed} failed`);
  if (search.state === "running" && p.left) texts.push(`about ${duration(p.left)} left`);
  if (search.state === "running" && search.notice && search.notice !== "Searching.") texts.push(search.notice);
  return [search.state !== "finished" && h("progress", { max: p.total, value: done, "aria-label": "candidates" }), h("p", {}, texts.join(" · "))];
}

async function launcher() {
  const [{ data }, { bases }] = await Promise.all([get("/data"), get("/bases")]);
  const config = h("textarea", { id: "config", rows: 14, spellcheck: false, "aria-label": "The config as JSON" });
  const estimate = h("p", { id: "estimate", "aria-live": "polite" });
  let wish = { ...DEMO, data: { source: data[0].name }, model: { base: bases[0] } };
  const numbers = [];
  const read = () => {
    try {
      return JSON.parse(config.value);
    } catch (error) {
      throw new Error(`The config is no JSON: ${error.message}`);
    }
  };
  const guess = async () => {
    try {
      const { seconds, because, ...cost } = await post("/estimate", read());
      const held = [[cost.cpu_hours, "CPU"], [cost.gpu_hours, "GPU"]].filter(([hours]) => hours).map(([hours, what]) => `${hours < 10 ? hours.toPrecision(2) : Math.round(hours)} ${what} hours`);
      estimate.textContent = seconds == null ? `How long: unknown, ${because}.` : `How long: about ${duration(seconds)}, for which it holds ${held.join(" and ")} (${because}).`;
      estimate.className = "";
    } catch (error) {
      estimate.textContent = error.message;
      estimate.className = "bad";
    }
  };
  const changed = (part) => {
    wish = { ...wish, ...part };
    config.value = JSON.stringify(wish, null, 1);
    show();
    guess();
  };
  // An emptied field takes its key away: JSON leaves out what is undefined.
  const whole = (section, key, label, hint) => {
    const input = h("input", { type: "number", min: 1, id: `launch-${key}`, onchange: () => changed({ [section]: { ...wish[section], [key]: input.value ? Number(input.value) : undefined } }) });
    numbers.push([section, key, input]);
    return field(label, input, hint);
  };
  const name = h("input", { id: "launch-name", pattern: "[a-z0-9][a-z0-9-]{0,63}", required: true, onchange: () => changed({ name: name.value }) });
  const source = select(data.map((d) => [d.name, described(d)]), "", () => changed({ data: { ...wish.data, source: source.value } }));
  const base = select(bases.map((b) => [b, b]), "", () => changed({ model: { ...wish.model, base: base.value } }));
  const counts = [
    whole("search", "candidates", "Candidates", "fine-tunings at most"),
    whole("search", "minutes", "Minutes", "of searching at most"),
    whole("search", "steps", "Steps", "of training for each"),
    whole("search", "population", "Population"),
    whole("workers", "count", "Workers", "at the same time"),
  ];
  const show = () => {
    name.value = wish.name ?? "";
    source.value = wish.data?.source ?? "";
    base.value = wish.model?.base ?? "";
    for (const [section, key, input] of numbers) input.value = wish[section]?.[key] ?? "";
  };
  config.addEventListener("change", () => {
    try {
      wish = { ...read() };
    } catch {
      // the estimate says so
    }
    show();
    guess();
  });
  const launch = async () => {
    const made = await make("/searches", read());
    location.hash = `#/search/${made.id}`;
  };
  changed({});
  return h(
    "section",
    { "aria-labelledby": "launch-title" },
    h("h2", { id: "launch-title" }, "Launch a search"),
    h(
      "form",
      { className: "grid", onsubmit: (event) => event.preventDefault() },
      field("Name", name),
      field("Data", source),
      field("Base model", base),
      counts,
    ),
    h("details", {}, h("summary", {}, "The whole config: objectives, constraints, genes"), config),
    estimate,
    h("button", { className: "primary", id: "launch", onclick: doing(launch) }, "Launch"),
    uploader(),
  );
}

const described = (d) => (d.facts.users ? `${d.name} (${d.facts.users} users, ${d.facts.items} items)` : d.name);

function uploader() {
  const name = h("input", { pattern: "[a-z0-9][a-z0-9-]{0,63}", required: true });
  const file = (accept) => h("input", { type: "file", accept });
  const archive = file(".zip"), interactions = file(".csv,.parquet"), items = file(".csv,.parquet"), users = file(".csv,.parquet");
  const columns = h("input", { placeholder: '{"user": "userId", "item": "movieId", "text": ["title"]}' });
  const said = h("p", { "aria-live": "polite" });
  const send = async () => {
    const form = new FormData();
    form.append("name", name.value);
    for (const [key, input] of Object.entries({ archive, interactions, items, users })) if (input.files[0]) form.append(key, input.files[0]);
    if (columns.value) form.append("columns", columns.value);
    const added = await upload(form);
    said.textContent = `${described(added)} is there; reload to launch a search on it.`;
  };
  return h(
    "details",
    {},
    h("summary", {}, "Bring your own data"),
    h("p", {}, "A zip of RecBole atomic files; or interactions and items, each CSV or Parquet, and what their columns hold."),
    h("div", { className: "grid" }, field("Name", name), field("Zip", archive), field("Interactions", interactions), field("Items", items), field("Users", users, "where the columns have groups"), field("Columns", columns, "as in a config, as JSON")),
    h("button", { onclick: doing(send) }, "Upload"),
    said,
  );
}
