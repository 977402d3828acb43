// Entries in words and numbers: the table of all, some beside each other, and where one comes from.

import { h, number } from "./dom.js";

const scored = (entry, metric) => {
  const test = entry.test?.[metric];
  const interval = test?.low == null ? "" : ` [${number(test.low)}, ${number(test.high)}]`;
  return [number(entry.validation[metric]), test && h("small", {}, `${number(test.mean)}${interval}`)];
};

export function entryTable(front, view, pick, toggle) {
  const metrics = front.objectives.map((o) => o.name);
  const row = (entry) =>
    h(
      "tr",
      { className: [entry.entry === view.selected && "chosen", !view.kept.has(entry.entry) && "outside"].filter(Boolean).join(" ") },
      h("td", {}, h("input", { type: "checkbox", id: `compare-${entry.entry}`, checked: view.compared.has(entry.entry), onchange: () => toggle(entry.entry), "aria-label": `Compare ${entry.entry}` })),
      h("th", { scope: "row" }, h("button", { className: "link", id: `pick-${entry.entry}`, onclick: () => pick(entry.entry), "aria-pressed": entry.entry === view.selected }, entry.entry), h("small", {}, entry.kind)),
      metrics.map((metric) => h("td", {}, scored(entry, metric))),
    );
  const baseline = (point) => h("tr", { className: "baseline" }, h("td", {}), h("th", { scope: "row" }, point.name), metrics.map((metric) => h("td", {}, scored(point, metric))));
  return h(
    "table",
    {},
    h("caption", {}, front.final ? "Validation; below it the mean on test with its interval" : "Validation so far"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "compare"), h("th", { scope: "col" }, "entry"), metrics.map((m) => h("th", { scope: "col" }, m)))),
    h("tbody", {}, front.front.map(row), front.baselines.map(baseline)),
  );
}

// Two or more entries, a column each; the best of each objective is bold.
export function compareTable(objectives, entries) {
  if (!entries.length) return [];
  if (entries.length === 1) return h("p", {}, h("small", {}, "Tick a second entry to see both beside each other."));
  const best = (o) => (o.direction === "maximise" ? Math.max : Math.min)(...entries.map((e) => e.validation[o.name]));
  const scores = objectives.map((o) =>
    h("tr", {}, h("th", { scope: "row" }, o.name), entries.map((e) => h("td", { className: e.validation[o.name] === best(o) ? "best" : "" }, scored(e, o.name)))),
  );
  const section = (label, pickOf) => {
    const keys = [...new Set(entries.flatMap((e) => Object.keys(pickOf(e))))];
    const rows = keys.map((key) => {
      const values = entries.map((e) => pickOf(e)[key]);
      const same = values.every((v) => v === values[0]);
      return h("tr", { className: same ? "same" : "" }, h("th", { scope: "row" }, key), values.map((v) => h("td", {}, number(v))));
    });
    return rows.length ? [h("tr", {}, h("th", { colSpan: entries.length + 1, className: "group", scope: "rowgroup" }, label)), rows] : [];
  };
  const head = h("tr", {}, h("td", {}), entries.map((e) => h("th", { scope: "col" }, e.entry, h("small", {}, e.kind))));
  return [
    h("h2", {}, "Beside each other"),
    h(
      "div",
      { className: "wide" },
      h("table", { className: "beside" }, h("thead", {}, head), h("tbody", {}, scores, section("Serving genes", (e) => e.serving), section("Weighting", (e) => e.weighting), section("Training genes", (e) => e.genes), section("Members", (e) => Object.fromEntries(Object.entries(e.fuses ?? {}).map(([name, member]) => [name, member.weight]))))),
    ),
  ];
}

// A candidate's ancestors as a tree; those that are on the front can be selected.
export function genealogy(candidate, front, pick) {
  const known = Object.fromEntries([candidate, ...candidate.ancestors].map((c) => [c.id, c]));
  const onFront = Object.fromEntries([...front.front].reverse().map((e) => [e.candidate, e.entry]));
  const origin = (c) => {
    if (c.kind === "merged") return c.parents.length ? `merged, ${number(c.genes.share)} of the first` : "the warm start";
    if (c.kind === "early") return "the first towers of the warm start";
    if (c.kind === "fused") return "fused, from some of";
    return c.parents.length ? "trained, with genes of" : "trained, a first proposal";
  };
  const seen = new Set();
  const branch = (id) => {
    const c = known[id];
    if (!c) return h("li", {}, id);
    const name = onFront[id] && id !== candidate.id ? h("button", { className: "link", onclick: () => pick(onFront[id]) }, id) : h("b", {}, id);
    const again = seen.has(id);
    seen.add(id);
    const parents = again ? [] : c.parents;
    return h("li", {}, name, h("small", {}, again && c.parents.length ? " as above" : ` ${origin(c)}`), parents.length ? h("ul", {}, parents.map(branch)) : null);
  };
  return [h("h2", {}, `Where ${candidate.id} comes from`), h("ul", { className: "tree" }, branch(candidate.id))];
}
