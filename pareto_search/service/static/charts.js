// The front as figures. Plotly draws; colours are those of the report, ink is the page's.

const BLUE = "#2a85c7", ORANGE = "#dd8a12", GREEN = "#0f9d78", GREY = "#78818d";
const PALETTE = [BLUE, ORANGE, GREEN, "#b0559f", "#8a6d3b", "#5b67c9", "#c9485b", "#3b8a8a"];
const CURVES = { "warm-start": GREEN, practitioner: ORANGE };
const SYMBOLS = ["diamond", "square", "triangle-up", "cross", "x", "triangle-down", "star", "pentagon"];
const SYMBOLS_3D = ["diamond-open", "square-open", "cross", "x"]; // all that there are in three dimensions
const OPTIONS = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

const escaped = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const mean = (value) => (typeof value === "object" ? value?.mean : value);
const short = (value) => (value == null ? "–" : value.toPrecision(4));

function ink() {
  const style = getComputedStyle(document.documentElement);
  return { text: style.getPropertyValue("--ink").trim(), line: style.getPropertyValue("--line").trim() };
}

function layout(extra) {
  const { text, line } = ink();
  const axis = { gridcolor: line, zeroline: false, automargin: true, linecolor: line };
  const { xaxis, yaxis, ...rest } = extra;
  return {
    font: { color: text, size: 13, family: "system-ui, sans-serif" },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 55, r: 15, t: 15, b: 50 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: GREY, activecolor: BLUE },
    hoverlabel: { align: "left", bgcolor: "#20262e", font: { color: "#f2f4f6", size: 12 } },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, entrywidth: 135 },
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
    ...rest,
  };
}

// Both parts' scores; the test's with their intervals.
function hover(name, scored, metrics) {
  const rows = metrics.map((metric) => {
    const test = scored.test?.[metric];
    const interval = test?.low == null ? "" : ` [${short(test.low)}, ${short(test.high)}]`;
    return `${escaped(metric)}: ${short(scored.validation[metric])} validation${test ? `, ${short(mean(test))}${interval} test` : ""}`;
  });
  return [`<b>${escaped(name)}</b>`, ...rows].join("<br>");
}

function interval(points, metric, colour) {
  const tests = points.map((p) => p.test?.[metric]);
  if (!tests.length || tests.some((t) => t?.low == null)) return undefined;
  return { type: "data", symmetric: false, array: tests.map((t) => t.high - t.mean), arrayminus: tests.map((t) => t.mean - t.low), color: colour, thickness: 1.5, width: 4 };
}

const axisTitle = (objective) => (objective.direction === "maximise" ? `${objective.name} →` : `← ${objective.name}`);

// Two objectives, or three where `z` is given. `view` has axes, part, what is kept, compared and selected.
export function drawFront(element, front, archive, view, onclick) {
  const { x, y, z, part, kept, compared, selected } = view;
  const metrics = front.objectives.map((o) => o.name);
  const at = (points, metric) => points.map((p) => mean(p[part]?.[metric]));
  const trace = (name, points, marker, extra = {}) => ({
    type: z ? "scatter3d" : "scatter",
    mode: "markers",
    name,
    x: at(points, x),
    y: at(points, y),
    ...(z ? { z: at(points, z) } : {}),
    marker,
    hoverinfo: "text",
    ...extra,
  });
  const size = (flat) => (z ? flat * 0.6 : flat);
  const traces = [];
  if (part === "validation" && archive.length)
    traces.push(trace("archive", archive.map((e) => ({ validation: e.values })), { color: GREY, size: size(4), opacity: 0.35 }, { hoverinfo: "skip" }));
  for (const [name, colour] of Object.entries(CURVES)) {
    const points = (front.curves[name] ?? []).filter((p) => p[part]);
    if (points.length)
      traces.push(trace(`${name} curve`, points, { color: colour, size: size(6), symbol: "circle-open" }, { hovertext: points.map((p) => hover(p.name, p, metrics)) }));
  }
  front.baselines.filter((b) => b[part]).forEach((b, i) => {
    const symbol = z ? SYMBOLS_3D[i % 4] : `${SYMBOLS[i % 8]}-open`;
    traces.push(trace(b.name, [b], { color: GREY, size: size(10), symbol, line: { width: 1.8 } }, { hovertext: [hover(b.name, b, metrics)] }));
  });
  const inside = front.front.filter((e) => kept.has(e.entry)), outside = front.front.filter((e) => !kept.has(e.entry));
  const entries = (name, points, marker, extra = {}) =>
    trace(name, points, marker, { customdata: points.map((p) => p.entry), hovertext: points.map((p) => hover(p.entry, p, metrics)), ...extra });
  if (outside.length) traces.push(entries("outside your bounds", outside, { color: BLUE, size: size(7), opacity: 0.2 }));
  traces.push(entries("front", inside, { color: BLUE, size: size(9), line: { color: "white", width: 0.7 } }));
  const compares = front.front.filter((e) => compared.has(e.entry));
  if (compares.length) traces.push(entries("compared", compares, { color: GREEN, size: size(15), symbol: "circle-open", line: { width: 2.5 } }));
  const chosen = front.front.filter((e) => e.entry === selected);
  if (chosen.length) {
    const bars = part === "test" ? { error_x: interval(chosen, x, ORANGE), error_y: interval(chosen, y, ORANGE), ...(z ? { error_z: interval(chosen, z, ORANGE) } : {}) } : {};
    traces.push(entries("selected", chosen, { color: ORANGE, size: size(14), line: { color: "white", width: 1.5 } }, bars));
  }
  const objective = Object.fromEntries(front.objectives.map((o) => [o.name, o]));
  const { text, line } = ink();
  const scene = (name) => ({ title: { text: axisTitle(objective[name]) }, gridcolor: line, color: text, showbackground: false });
  const floor = (name, kind) => ({ type: "line", [`${kind}0`]: objective[name].reference, [`${kind}1`]: objective[name].reference, [`${kind === "x" ? "y" : "x"}0`]: 0, [`${kind === "x" ? "y" : "x"}1`]: 1, [`${kind === "x" ? "y" : "x"}ref`]: "paper", line: { color: GREY, dash: "dot", width: 1 } });
  const plan = layout({
    height: 560,
    uirevision: `${x}${y}${z}${part}`, // zoom and camera stay while things are selected
    ...(z
      ? { scene: { xaxis: scene(x), yaxis: scene(y), zaxis: scene(z) } }
      : { xaxis: { title: { text: axisTitle(objective[x]) } }, yaxis: { title: { text: axisTitle(objective[y]) } }, shapes: [floor(x, "x"), floor(y, "y")] }),
  });
  Plotly.react(element, traces, plan, OPTIONS);
  element.removeAllListeners?.("plotly_click");
  element.on("plotly_click", (event) => {
    const entry = event.points.map((p) => p.customdata).find(Boolean);
    if (entry) onclick(entry);
  });
}

// Where an objective's values lie on its axis: 0 at the foot, 1 at the best.
export function scale(front, objective) {
  const values = front.front.map((e) => e.validation[objective.name]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [foot, top] = objective.direction === "maximise" ? [low, high] : [high, low];
  return { foot, top, share: (value) => (top === foot ? 1 : (value - foot) / (top - foot)), value: (share) => foot + (top - foot) * share };
}

// Every entry a line across the objectives; up is better. Plotly's own parallel axes would need eval.
// Gives the axes' places in pixels.
export function drawParallel(element, front, view, onclick) {
  const objectives = front.objectives, metrics = objectives.map((o) => o.name);
  const scales = objectives.map((o) => scale(front, o));
  // Lines that look alike are one trace with gaps: hundreds of traces would be slow.
  const lines = (entries, style, opacity) => ({
    type: "scatter",
    mode: style.width > 2 ? "lines+markers" : "lines",
    x: entries.flatMap(() => [...metrics.keys(), null]),
    y: entries.flatMap((entry) => [...scales.map((s, i) => s.share(entry.validation[metrics[i]])), null]),
    line: style,
    opacity,
    customdata: entries.flatMap((entry) => [...metrics.map(() => entry.entry), null]),
    hoverinfo: "text",
    hovertext: entries.flatMap((entry) => Array(metrics.length + 1).fill(hover(entry.entry, entry, metrics))),
    showlegend: false,
  });
  const is = {
    selected: (e) => e.entry === view.selected,
    compared: (e) => !is.selected(e) && view.compared.has(e.entry),
    kept: (e) => !is.selected(e) && !is.compared(e) && view.kept.has(e.entry),
    outside: (e) => !is.selected(e) && !is.compared(e) && !view.kept.has(e.entry),
  };
  const of = (kind) => front.front.filter(is[kind]);
  const kept = of("kept"), layers = Math.min(kept.length, 16); // one upon another, so that dense places are darker
  const traces = [
    lines(of("outside"), { color: GREY, width: 1 }, 0.18),
    ...Array.from({ length: layers }, (_, layer) => lines(kept.filter((_, i) => i % layers === layer), { color: BLUE, width: 1.5 }, kept.length > 100 ? 0.25 : 0.5)),
    lines(of("compared"), { color: GREEN, width: 3 }, 1),
    lines(of("selected"), { color: ORANGE, width: 4 }, 1),
  ];
  const { line: rule } = ink();
  const axes = metrics.map((_, i) => ({ type: "line", x0: i, x1: i, y0: 0, y1: 1, line: { color: rule, width: 2 } }));
  // On the paper: what lies outside the axes' range would not be shown.
  const size = element.clientWidth < 480 ? 10 : 12;
  const note = (i, y, text, anchor) => ({ x: i, y, yref: "paper", text, showarrow: false, yanchor: anchor, font: { size } });
  const notes = scales.flatMap(({ foot, top }, i) => [note(i, 1.02, `<b>${escaped(metrics[i])}</b><br>${short(top)}`, "bottom"), note(i, -0.02, short(foot), "top")]);
  const plan = layout({
    height: 330,
    margin: { l: 45, r: 45, t: 55, b: 30 },
    xaxis: { visible: false, range: [-0.15, metrics.length - 0.85], fixedrange: true },
    yaxis: { visible: false, range: [-0.02, 1.02], fixedrange: true },
    shapes: axes,
    annotations: notes,
    hovermode: "closest",
    hoverdistance: 60,
    uirevision: "parallel",
  });
  Plotly.react(element, traces, plan, { ...OPTIONS, displayModeBar: false });
  element.removeAllListeners?.("plotly_click");
  element.on("plotly_click", (event) => onclick(event.points[0].customdata));
  const { xaxis, yaxis } = element._fullLayout;
  return metrics.map((name, i) => {
    const [top, foot] = [yaxis.d2p(1), yaxis.d2p(0)], bound = view.bounds[name];
    return { name, left: xaxis._offset + xaxis.d2p(i), top: yaxis._offset + top, height: foot - top, band: bound && ends(bound, scales[i]) };
  });
}

// Bounds as shares of the axis, from its foot up.
const ends = ([low, high], { share, foot, top }) => {
  const found = [low ?? Math.min(foot, top), high ?? Math.max(foot, top)].map((value) => Math.min(1, Math.max(0, share(value))));
  return found.sort((a, b) => a - b);
};

// A figure that the service has made, with the page's ink.
export function drawFigure(element, figure) {
  const { text } = ink();
  const plan = { ...figure.layout, font: { ...figure.layout.font, color: text }, margin: { l: 60, r: 20, t: 20, b: 50 }, height: 300 };
  delete plan.title;
  Plotly.react(element, figure.data, plan, OPTIONS);
}

// Several searches in one panel.
export function drawFronts(element, compared, x, y, part) {
  const metrics = compared.objectives.map((o) => o.name);
  const objective = Object.fromEntries(compared.objectives.map((o) => [o.name, o]));
  const traces = compared.searches.map((search, i) => {
    const points = search.front.filter((e) => mean(e[part]?.[x]) != null);
    return {
      type: "scatter",
      mode: "markers",
      name: search.id,
      x: points.map((e) => mean(e[part][x])),
      y: points.map((e) => mean(e[part][y])),
      marker: { color: PALETTE[i], size: 9, symbol: ["circle", ...SYMBOLS][i] },
      hoverinfo: "text",
      hovertext: points.map((e) => hover(`${search.name} ${e.entry}`, e, metrics)),
    };
  });
  const plan = layout({ height: 480, xaxis: { title: { text: axisTitle(objective[x]) } }, yaxis: { title: { text: axisTitle(objective[y]) } } });
  Plotly.react(element, traces, plan, OPTIONS);
}
