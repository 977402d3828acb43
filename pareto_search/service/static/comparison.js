// The fronts of several searches beside each other.

import { get } from "./api.js";
import { drawFronts } from "./charts.js";
import { field, fill, h, number, select } from "./dom.js";

export async function comparison(main, names, signal) {
  const compared = await get(`/compare?${names.map((n) => `search=${encodeURIComponent(n)}`).join("&")}`);
  if (signal.aborted) return;
  const metrics = compared.objectives.map((o) => o.name);
  const view = { x: metrics[0], y: metrics[1], part: "validation" };
  const chart = h("div", { className: "chart" });
  const draw = () => drawFronts(chart, compared, view.x, view.y, view.part);
  const choose = (key, options) => select(options.map((o) => [o, o]), view[key], (e) => ((view[key] = e.target.value), draw()));
  const foreign = new Set(compared.searches.map((s) => s.data_sha256)).size > 1;
  const rows = compared.searches.map((s) =>
    h("tr", {}, h("th", {}, h("a", { href: `#/search/${s.id}` }, s.id)), h("td", {}, String(s.front.length)), h("td", {}, number(s.hypervolume.validation)), h("td", {}, number(s.hypervolume.test))),
  );
  fill(
    main,
    h("a", { href: "#/" }, "← Searches"),
    h("h1", {}, "Fronts beside each other"),
    foreign && h("p", { className: "bad" }, "These searches are over different data, or have not ended: their scores may not be comparable."),
    h("div", { className: "row" }, field("Across", choose("x", metrics)), field("Up", choose("y", metrics)), field("Scores on", choose("part", ["validation", "test"]))),
    chart,
    h("div", { className: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, ["search", "entries", "hypervolume on validation", "on test"].map((t) => h("th", {}, t)))), h("tbody", {}, rows))),
    h("p", {}, h("small", {}, `By the objectives that all of them have: ${metrics.join(", ")}.`)),
  );
  draw();
}
