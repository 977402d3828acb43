// One search: its progress, its front, and the way to one entry of it.

import { download, get, make, post, put, remove, watch } from "./api.js";
import { Brushes } from "./brushes.js";
import { drawFigure, drawFront, drawParallel, scale } from "./charts.js";
import { compareTable, entryTable, genealogy } from "./entries.js";
import { count, doing, field, fill, h, number, renew, select, trouble } from "./dom.js";
import { standing, stateOf } from "./home.js";
import { Previews } from "./recommend.js";

const ENDED = ["finished", "failed", "cancelled", "paused"];
const FORMATS = ["adapter", "merged", "sentence-transformers", "onnx"];
const PAGES = 5; // of a thousand evaluations: more dots behind the front would only be slow
const OWN = "your own choice";
const UNBEGUN = {
  queued: "It waits for its turn; the front will grow here.",
  running: "It is being prepared; the front will grow here as candidates finish.",
  paused: "It was paused before it began; the front will grow here when it goes on.",
  failed: "It failed before it began; there is no front.",
  cancelled: "It was cancelled before it began; there is no front.",
};

export async function searchView(main, id, signal) {
  const top = h("div", {}), body = h("div", {});
  fill(main, h("a", { href: "#/" }, "← Searches"), top, body);
  const explorer = new Explorer(id, body);
  addEventListener("resize", explorer.redraw, { signal });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", explorer.redraw, { signal });
  let head = null, seen = "", troubled = false, watching = true;
  const refresh = async (search) => {
    try {
      await explorer.refresh(search);
      if (troubled) trouble(null);
      troubled = false;
    } catch (error) {
      troubled = true;
      seen = ""; // the next event tries again
      trouble(error);
    }
  };
  while (watching && !signal.aborted) {
    await watch(`/searches/${id}/events`, signal, (search) => {
      head ??= new Head(search, top, () => (watching = true));
      head.update(search);
      const p = search.progress;
      const now = [search.state, p?.finished, p?.front].join();
      if (now !== seen) refresh(search);
      seen = now;
      return ENDED.includes(search.state) ? "enough" : "";
    });
    watching = false;
    // Ended, for now: whoever resumes it sets `watching`.
    await new Promise((go) => {
      const wait = setInterval(() => {
        if (watching || signal.aborted) {
          clearInterval(wait);
          go();
        }
      }, 100);
    });
    seen = "";
  }
}

// What a search is called, how far it is, and what can be done about it. Made once and then updated, so that nobody
// loses the focus or what they have opened.
class Head {
  constructor(search, top, again) {
    const { id } = search;
    const tell = (deed, budget) => doing(async () => {
      await post(`/searches/${id}/${deed}`, budget?.());
      again();
    });
    const erase = doing(async () => {
      if (!confirm(`Delete ${id} with its checkpoints? There is no way back.`)) return;
      await remove(`/searches/${id}`);
      location.hash = "#/";
    });
    this.state = h("span", { id: "state" });
    this.pause = h("button", { onclick: tell("pause") }, "Pause");
    this.cancel = h("button", { onclick: tell("cancel") }, "Cancel");
    this.more = h("input", { type: "number", min: 1, id: "more", "aria-label": "Candidates" });
    this.minutes = h("input", { type: "number", min: 1, id: "more-minutes", "aria-label": "Minutes" });
    this.fusions = h("input", { type: "number", min: 0, id: "more-fusions", "aria-label": "Fusions" });
    const resume = h("button", { onclick: tell("resume", () => this.budget()) }, "Go on");
    this.goOn = h("details", { className: "inline", hidden: true }, h("summary", {}, "Go on"), h("div", { className: "row" }, field("up to candidates", this.more), field("and minutes", this.minutes), field("and fusions", this.fusions), resume));
    this.erase = h("button", { onclick: erase }, "Delete");
    this.config = h("pre", {});
    this.standing = h("div", {});
    const deeds = h("div", { className: "row" }, this.pause, this.cancel, this.goOn, this.erase, h("details", { className: "inline" }, h("summary", {}, "Config"), this.config));
    fill(top, h("div", { className: "heading" }, h("h1", {}, search.name, " ", this.state), h("small", {}, `${id}, on ${search.data} with ${search.base}`), deeds), this.standing);
  }

  budget() {
    const budget = { candidates: Number(this.more.value), fusions: Number(this.fusions.value) };
    return this.minutes.value ? { ...budget, minutes: Number(this.minutes.value) } : budget;
  }

  update(search) {
    const { state } = search, active = ["queued", "running"].includes(state);
    const config = JSON.stringify(search.config, null, 1); // another one when it has gone on with more
    if (this.config.textContent !== config) this.config.textContent = config;
    this.state.textContent = stateOf(search);
    this.state.className = `state ${state}`;
    this.pause.hidden = !active;
    this.cancel.hidden = !active && state !== "paused";
    this.erase.hidden = state === "running";
    if (this.goOn.hidden) this.suggest(search);
    this.goOn.hidden = !["paused", "failed", "finished"].includes(state);
    fill(this.standing, standing(search));
  }

  // As much as there was.
  suggest({ progress, config }) {
    this.more.value = progress?.total ?? config.search?.candidates ?? 48;
    this.minutes.value = config.search?.minutes ?? "";
    this.fusions.value = config.search?.fusions ?? 0;
  }
}

class Explorer {
  constructor(id, body) {
    this.id = id;
    this.body = body;
    this.front = null;
    this.archive = [];
    this.format = FORMATS[0];
    this.view = { x: null, y: null, z: "", part: "validation", kept: new Set(), compared: new Set(), selected: null, bounds: {} };
    this.weights = {};
    this.picked = null; // by somebody, and not by what is wished
    this.asked = 0;
  }

  async refresh(search) {
    this.search = search;
    let front;
    try {
      front = await get(`/searches/${this.id}/front`);
    } catch (error) {
      if (error.status !== 409) throw error;
      fill(this.body, h("p", { className: "empty" }, UNBEGUN[this.search.state]));
      return;
    }
    if (!front.front.length) {
      const hope = ["queued", "running"].includes(this.search.state);
      fill(this.body, h("p", { className: "empty" }, hope ? "No entry is on the front yet: the first appear when a candidate has finished." : "The front is empty. Go on with more candidates, or with references and constraints that can be kept."));
      this.front = null;
      return;
    }
    const first = this.front === null;
    this.front = front;
    const there = new Set(front.front.map((e) => e.entry));
    [...this.view.compared].filter((name) => !there.has(name)).forEach((name) => this.view.compared.delete(name));
    if (!there.has(this.picked)) this.picked = null;
    this.archive = await this.evaluations();
    this.deployed = (await get("/deployments")).deployments.filter((d) => d.search === this.id);
    const names = front.objectives.map((o) => o.name);
    if (first) Object.assign(this.view, { x: names[0], y: names[1] });
    // Made anew, unless it is there and somebody may be moving a slider.
    if (first || this.final !== front.final) renew(() => this.build(names));
    this.final = front.final;
    await this.choose();
  }

  async evaluations() {
    const found = [];
    for (let page = 0, total = 1; found.length < total && page < PAGES; page++) {
      const answer = await get(`/searches/${this.id}/archive?offset=${found.length}&limit=1000`);
      total = answer.total;
      found.push(...answer.evaluations);
    }
    const full = Math.max(...found.map((e) => e.steps));
    const step = Math.ceil(found.length / 1500);
    return found.filter((e) => e.steps === full).filter((_, i) => i % step === 0);
  }

  build(names) {
    const view = this.view;
    if (!this.front.final) view.part = "validation"; // there is nothing else yet, or any more
    this.chart = h("div", { className: "chart", id: "front-chart", role: "img", "aria-label": "The front; the table below has the same entries" });
    this.lines = h("div", { className: "chart", id: "parallel" });
    this.brushes = new Brushes(this.brush, this.pickAt);
    this.timeline = h("div", { className: "chart", id: "timeline" });
    this.verdict = h("div", { "aria-live": "polite" });
    this.deeds = h("div", {});
    this.table = h("div", { className: "wide", id: "entries" });
    this.side = h("div", { id: "compared" });
    this.family = h("div", { id: "genealogy" });
    this.shown = null; // the candidate whose genealogy it has
    this.previews = new Previews(this.id, this.search.data);
    const axis = (key, options, label) => field(label, select(options, view[key], (e) => ((view[key] = e.target.value), this.redraw())));
    const pairs = names.map((n) => [n, n]);
    const parts = this.front.final ? [["validation", "validation"], ["test", "test"]] : [["validation", "validation"]];
    fill(
      this.body,
      h(
        "div",
        { className: "columns" },
        h(
          "section",
          { className: "main" },
          h("div", { className: "row" }, axis("x", pairs, "Across"), axis("y", pairs, "Up"), names.length > 2 && axis("z", [["", "–"], ...pairs], "Third"), axis("part", parts, "Scores on")),
          this.chart,
        ),
        h("section", { className: "aside", "aria-label": "Selection" }, this.wishes(names), h("div", { id: "selection" }, this.verdict, this.deeds)),
      ),
      h("h2", {}, "Every entry across the objectives"),
      h("p", {}, h("small", {}, "Up is better. A line is an entry: click it to select it. Drag along an axis for bounds, double-click it for none.")),
      h("div", { className: "brushable" }, this.lines, this.brushes.element),
      h("h2", {}, "Entries"),
      h("p", {}, h("small", {}, "Those that together cover the most hypervolume stand for the whole front.")),
      this.table,
      h("div", { className: "together" }, this.side, this.front.final && this.previews.element),
      this.family,
      h("details", { ontoggle: (event) => event.target.open && this.drawTimeline() }, h("summary", {}, "How the hypervolume grew"), this.timeline),
    );
  }

  // Only when asked for: it takes the service seconds.
  async drawTimeline() {
    this.timeline.textContent = "One moment.";
    const figure = await get(`/searches/${this.id}/plots/timeline`).catch(trouble);
    this.timeline.textContent = "";
    if (figure) drawFigure(this.timeline, figure);
  }

  // A slider of importance and one of a bound for every objective.
  wishes(names) {
    this.sliders = {};
    const rows = names.map((name, i) => {
      const up = this.front.objectives[i].direction === "maximise";
      const told = h("output", {});
      const weight = h("input", { type: "range", min: 0, max: 10, step: 1, value: this.weights[name] ?? 0, id: `weight-${i}`, "aria-label": `How much ${name} matters` });
      weight.addEventListener("input", () => {
        this.weights[name] = Number(weight.value);
        this.wish();
      });
      const bound = h("input", { type: "range", min: 0, max: 100, id: `bound-${i}`, "aria-label": `${up ? "Least" : "Most"} ${name}` });
      // It moves the bound on the side of the worse values; a brush may have set the other one, too.
      bound.addEventListener("input", () => {
        const share = (up ? Number(bound.value) : 100 - Number(bound.value)) / 100;
        const [low = null, high = null] = this.view.bounds[name] ?? [];
        const value = share ? this.axis(name).value(share) : null;
        this.bind(name, up ? value : low, up ? high : value);
      });
      this.sliders[name] = () => {
        const [low = null, high = null] = this.view.bounds[name] ?? [];
        const worse = up ? low : high;
        if (document.activeElement !== bound) {
          const share = worse == null ? 0 : Math.round(this.axis(name).share(worse) * 100);
          bound.value = up ? share : 100 - share;
        }
        told.textContent = low != null && high != null ? `${low} – ${high}` : low != null ? `≥ ${low}` : high != null ? `≤ ${high}` : "any";
      };
      this.sliders[name]();
      return h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, weight), h("td", {}, bound, told));
    });
    const reset = () => {
      this.weights = {};
      this.view.bounds = {};
      renew(() => this.form.replaceWith(this.wishes(names)));
      this.wish();
    };
    this.form = h(
      "div",
      {},
      h("h2", {}, "What matters to you"),
      h("table", { className: "wishes" }, h("thead", {}, h("tr", {}, ["", "matters", "bound"].map((t) => h("th", { scope: "col" }, t)))), h("tbody", {}, rows)),
      h("button", { onclick: reset, id: "reset" }, "Back to the knee"),
    );
    return this.form;
  }

  // Rounded so that what the number says is what is asked for, and what lies on the bound stays inside.
  bind(name, low, high) {
    if (low == null && high == null) delete this.view.bounds[name];
    else this.view.bounds[name] = [low == null ? null : Math.floor(low * 1e4) / 1e4, high == null ? null : Math.ceil(high * 1e4) / 1e4];
    this.sliders[name]();
    this.wish();
  }

  // The front grows while the search goes on, and its axes with it.
  axis = (name) => scale(this.front, this.front.objectives.find((o) => o.name === name));

  // A band that reaches an end of its axis leaves that end open.
  brush = (name, from, to) => {
    if (from == null) return this.bind(name, null, null);
    const values = [from > 0.01 ? this.axis(name).value(from) : null, to < 0.99 ? this.axis(name).value(to) : null];
    this.bind(name, ...(this.front.objectives.find((o) => o.name === name).direction === "maximise" ? values : values.reverse()));
  };

  pickAt = (name, share) => {
    const far = (entry) => Math.abs(this.axis(name).share(entry.validation[name]) - share);
    this.pick(this.front.front.reduce((a, b) => (far(b) < far(a) ? b : a)).entry);
  };

  // What was picked before somebody wished otherwise gives way.
  wish() {
    this.picked = null;
    return this.choose();
  }

  // Lets the service select by what is wished now; an answer that comes late is dropped.
  async choose() {
    const mine = ++this.asked;
    const where = Object.entries(this.view.bounds).flatMap(([name, [low, high]]) => [low != null && `${name}>=${low}`, high != null && `${name}<=${high}`].filter(Boolean));
    const prefer = Object.fromEntries(Object.entries(this.weights).filter(([, weight]) => weight > 0));
    try {
      const { entry, reason, kept } = await post(`/searches/${this.id}/select`, { where, prefer });
      if (mine !== this.asked) return;
      Object.assign(this.view, { selected: this.picked ?? entry.entry, kept: new Set(kept) });
      this.reason = this.picked ? OWN : reason;
    } catch (error) {
      if (mine !== this.asked) return;
      Object.assign(this.view, { selected: this.picked, kept: new Set() });
      this.reason = this.picked ? OWN : error.message;
    }
    this.redraw();
  }

  pick = (name) => {
    this.picked = this.view.selected = name;
    this.reason = OWN;
    this.redraw();
  };

  toggle = (name) => {
    const { compared } = this.view;
    compared.has(name) ? compared.delete(name) : compared.add(name);
    this.redraw();
  };

  redraw = () => {
    if (!this.front || !this.chart) return;
    const { front, view } = this;
    drawFront(this.chart, front, this.archive, view, this.pick);
    this.brushes.place(drawParallel(this.lines, front, view, this.pick));
    renew(() => {
      this.describe();
      fill(this.table, entryTable(front, view, this.pick, this.toggle));
    });
    const compared = front.front.filter((e) => view.compared.has(e.entry));
    fill(this.side, compareTable(front.objectives, compared));
    if (front.final) this.previews.show(compared.length ? compared.map((e) => e.entry) : view.selected ? [view.selected] : []);
    this.descend().catch(trouble);
  };

  describe() {
    const { front, view, id } = this;
    const entry = front.front.find((e) => e.entry === view.selected);
    const kept = `${count(view.kept.size, "entry", "entries")} of ${front.front.length} within your bounds`;
    if (!entry) {
      this.tell(h("p", { className: "bad" }, this.reason));
      return fill(this.deeds, h("p", {}, kept));
    }
    this.tell(h("h2", {}, "Selected: ", h("span", { id: "selected" }, entry.entry)), h("p", { className: "reason" }, this.reason));
    fill(
      this.deeds,
      h("p", {}, h("small", { id: "kept" }, kept)),
      h("div", { className: "row" }, front.final && this.deployer(entry.entry), h("button", { onclick: () => this.toggle(entry.entry), id: "compare-selected" }, view.compared.has(entry.entry) ? "Do not compare" : "Compare")),
      front.final ? [this.trials(entry.entry), this.packer(entry.entry)] : h("p", {}, h("small", {}, "can be deployed and downloaded when the search has ended")),
    );
  }

  // It is read out when it has changed, and not whenever the page is drawn again.
  tell(...lines) {
    const told = h("div", { "aria-live": "polite" }, lines);
    if (!told.isEqualNode(this.verdict)) fill(this.verdict, ...told.childNodes);
  }

  // With the entries that it is compared with, for preferences to choose among; it is the first of them.
  deployer(entry) {
    const others = [...this.view.compared].filter((name) => name !== entry);
    const deploy = doing(async () => {
      const made = await make("/deployments", { search: this.id, entries: [entry, ...others] });
      location.hash = `#/deployments/${made.id}`;
    });
    return h("button", { className: "primary", onclick: deploy, id: "deploy" }, ["Deploy", "Deploy both"][others.length] ?? `Deploy all ${others.length + 1}`);
  }

  // A button for each deployment of this search that another entry answers for.
  trials(entry) {
    const tryOut = (id) =>
      doing(async () => {
        await put(`/deployments/${id}/canary`, { entry, share: 0.1 });
        location.hash = `#/deployments/${id}`;
      });
    const open = this.deployed.filter((d) => d.entries[0] !== entry && d.state !== "deleting");
    return open.length ? h("div", { className: "row" }, open.map((d) => h("button", { onclick: tryOut(d.id), id: `try-${d.id}` }, `Try out on 10 % in ${d.id}`))) : null;
  }

  packer(entry) {
    // What is fused has several text encoders, and the other formats are for one.
    const fused = this.front.front.some((e) => e.entry === entry && e.kind === "fused");
    if (fused) this.format = FORMATS[0];
    const form = select((fused ? FORMATS.slice(0, 1) : FORMATS).map((f) => [f, f]), this.format, (e) => (this.format = e.target.value));
    form.id = "format";
    const fetchZip = doing(() => download(`/searches/${this.id}/entries/${entry}/zip?format=${this.format}`, `${this.id}-${entry}-${this.format}.zip`));
    return h("div", { className: "row pair" }, field("Format", form), h("button", { onclick: fetchZip, id: "download" }, "Download"));
  }

  async descend() {
    const entry = this.front.front.find((e) => e.entry === this.view.selected);
    const candidate = entry?.candidate ?? null;
    if (candidate === this.shown) return;
    this.shown = candidate;
    if (!entry) return fill(this.family);
    const found = await get(`/searches/${this.id}/candidates/${candidate}`);
    if (this.shown === candidate) fill(this.family, genealogy(found, this.front, this.pick));
  }
}
