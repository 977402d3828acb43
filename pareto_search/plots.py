"""A search as Plotly figures: pure functions from a front and its archive to figures, and one writer.

A front is the parsed front.json. Figures have transparent backgrounds and mid-tone text, so that they read on a light
and on a dark page; their titles are HTML-escaped, as is every string that comes from data, because Plotly reads tags.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import cycle
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import spearmanr

from pareto_search.candidate import Evaluation, GeneValue
from pareto_search.errors import ConfigError, nearest
from pareto_search.objective import Objective
from pareto_search.results import COMPARED, objectives_of

Front = Mapping[str, Any]
"""The parsed front.json, with `curves` and the hypervolumes of what the front is compared with where they are known."""
Part = Literal["validation", "test"]
Moment = tuple[float, float, object]
"""Seconds since the start, the hypervolume from then on, and the candidate (or count of them) that brought it."""

CONFIG = {
    "displaylogo": False,
    "responsive": True,
    # The first would upload the figure to Plotly's cloud.
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"],
}
"""Plotly's options for figures on a page."""

# Okabe and Ito's blue, orange, green and purple, told apart under every colour blindness and read on white and on
# near-black.
BLUE, ORANGE, GREEN, VIOLET, GREY = "#2a85c7", "#dd8a12", "#0f9d78", "#c0719f", "#78818d"
_SCALE = [[0.0, BLUE], [0.5, "#9c7fa8"], [1.0, ORANGE]]
_GRID = "rgba(128, 134, 145, 0.2)"
_AXIS = {"gridcolor": _GRID, "zeroline": False, "automargin": True, "ticklabelstandoff": 4, "title": {"standoff": 12}}
_SYMBOLS = ("diamond", "square", "triangle-up", "cross", "x", "triangle-down", "star", "pentagon")
_CURVES = {"warm-start": GREEN, "practitioner": ORANGE, "old": VIOLET}
_MOST_DOTS = 2000
_MOST_GENES = 6
_CORNER = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "top"}
_BELOW = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.16, "yanchor": "top"}
_THEME = go.layout.Template(
    layout={
        "font": {
            "color": GREY,
            "size": 13,
            "family": "-apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif",
        },
        "title": {"font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left"},
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "margin": {"l": 70, "r": 30, "t": 60, "b": 60},
        "legend": {"tracegroupgap": 0},
        "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": GREY, "activecolor": BLUE},
        "hoverlabel": {"align": "left", "bgcolor": "#20262e", "font": {"color": "#f2f4f6", "size": 12}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def pairwise(front: Front, archive: Sequence[Evaluation], part: Part = "validation") -> go.Figure:
    """Every pair of objectives in a panel of its own, as the lower triangle of a matrix.

    Args:
        archive: drawn behind the front on validation; on test there is nothing of it to draw.
    """
    objectives = objectives_of(front)
    size = len(objectives) - 1
    figure = make_subplots(
        rows=size,
        cols=size,
        specs=[[{} if column <= row else None for column in range(size)] for row in range(size)],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.12 / (size + 1),
        vertical_spacing=0.12 / (size + 1),
    )
    layers = _layers(front, archive, part)
    for row in range(size):
        for column in range(row + 1):
            x, y = objectives[column], objectives[row + 1]
            place = {"row": row + 1, "col": column + 1}
            first = row == 0
            for layer in layers:
                figure.add_trace(layer.trace(x.name, y.name).update(showlegend=first), **place)
            _floors(figure, x, y, first, place)
            if row == size - 1:
                figure.update_xaxes(title_text=label(x), **place)
            if column == 0:
                figure.update_yaxes(title_text=label(y), **place)
    return figure.update_layout(
        template=_THEME,
        title_text=f"On {part}: {_entries(front)} beside the baselines, one panel for each pair of objectives",
        height=140 + 220 * size if size > 1 else 560,
        legend=_CORNER if size > 1 else _BELOW,
    )


def pair(front: Front, archive: Sequence[Evaluation], x: str, y: str, part: Part = "test") -> go.Figure:
    """Two objectives in one large panel; on test with each mean's interval as error bars.

    Raises:
        ConfigError: `x` or `y` is no objective of the search.
    """
    objectives = {o.name: o for o in objectives_of(front)}
    for name in (x, y):
        if name not in objectives:
            raise ConfigError(f"'{name}' is no objective of this search; {nearest(name, objectives)}")
    figure = go.Figure([layer.trace(x, y, intervals=True) for layer in _layers(front, archive, part)])
    _floors(figure, objectives[x], objectives[y], True, {})
    intervals = ", with the means' intervals" if part == "test" else ""
    return figure.update_layout(
        template=_THEME,
        title_text=f"{escape(y)} against {escape(x)} on {part}: {_entries(front)} beside the baselines{intervals}",
        xaxis_title_text=label(objectives[x]),
        yaxis_title_text=label(objectives[y]),
        height=560,
        legend=_BELOW,
    )


def parallel(front: Front) -> go.Figure:
    """The entries as lines across objectives (validation; up is better) and the genes that vary most with them.

    What was not trained has no training genes of its own, and is left out. What an entry is not re-ranked
    for, or does not blend in, is 0. The colour is the first objective.
    """
    objectives = objectives_of(front)
    entries = [e for e in front["front"] if e["kind"] == "trained"]
    serving = {name: float(name == "sharpness") for e in entries for name in e["serving"]}
    mine = [{**e["genes"], **serving, **e["serving"]} for e in entries]
    scores = {o.name: [e["validation"][o.name] for e in entries] for o in objectives}
    axes = [
        {"label": escape(o.name), "values": scores[o.name]}
        # A range from high to low turns the axis round.
        | ({"range": [max(scores[o.name]), min(scores[o.name])]} if o.direction == "minimise" and entries else {})
        for o in objectives
    ]
    genes = [_gene_axis(name, [genes[name] for genes in mine]) for name in _shared_keys(mine)]
    varied = [g for g in genes if len(set(g["values"])) > 1]
    varied.sort(key=lambda gene: -max(abs(_correlation(gene["values"], s)) for s in scores.values()))
    colour = scores[objectives[0].name]
    figure = go.Figure(
        go.Parcoords(
            dimensions=axes + varied[:_MOST_GENES],
            line={"color": colour, "colorscale": _SCALE, "reversescale": objectives[0].direction == "minimise"},
            labelside="top",
        )
    )
    return figure.update_layout(
        template=_THEME,
        title_text=f"Each line is an entry: its scores on validation (up is better), then its genes; "
        f"orange lines have the best {escape(objectives[0].name)}",
        height=440,
        margin={"l": 60, "r": 60, "t": 110, "b": 40},
    )


def timeline(points: Sequence[Moment], practitioner: float | None = None) -> go.Figure:
    """How the front's hypervolume on validation grew.

    Args:
        points: in the order of time.
        practitioner: the hypervolume of the practitioner's curve, where it is known.
    """
    last = points[-1][0] if points else 0.0
    unit, seconds = ("hours", 3600) if last >= 7200 else ("minutes", 60) if last >= 120 else ("seconds", 1)
    figure = go.Figure(
        go.Scatter(
            x=[at / seconds for at, _, _ in points],
            y=[volume for _, volume, _ in points],
            mode="lines+markers" if len(points) < 100 else "lines",
            line={"shape": "hv", "color": BLUE, "width": 2.5},
            marker={"size": 5},
            hovertext=[f"{v:.4g} after {at / seconds:.3g} {unit} ({escape(str(who))})" for at, v, who in points],
            hoverinfo="text",
            name="front",
            showlegend=False,
        )
    )
    title = "The search has not found a front yet"
    if points:
        title = f"The front's hypervolume reached {points[-1][1]:.3g} after {last / seconds:.3g} {unit}"
    if practitioner is not None:
        title += f"; the practitioner's curve has {practitioner:.3g}"
        figure.add_hline(
            practitioner,
            line={"color": ORANGE, "dash": "dash", "width": 1.5},
            annotation={"text": "practitioner", "font": {"color": ORANGE}},
            annotation_position="top left",
        )
    return figure.update_layout(
        template=_THEME,
        title_text=title,
        xaxis_title_text=unit,
        yaxis={"title_text": "hypervolume →", "rangemode": "tozero"},
        height=380,
    )


def label(objective: Objective) -> str:
    """An axis title whose arrow points to where it is better (on a vertical axis, the text is turned with it)."""
    name = escape(objective.name)
    return f"{name} →" if objective.direction == "maximise" else f"← {name}"


def shown(value: GeneValue) -> str:
    """A value for people: three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun: `1 entry`, `no entries`."""
    return f"1 {one}" if number == 1 else f"{number or 'no'} {many or one + 's'}"


@dataclass(frozen=True)
class _Layer:
    """Points that are drawn alike.

    Attributes:
        points: per point, metric -> value, or -> mean, low and high.
        hover: per point; none for points that do not answer to the mouse.
    """

    name: str
    points: Sequence[Mapping[str, Any]]
    marker: Mapping[str, Any]
    hover: Sequence[str] = field(default=())

    def trace(self, x: str, y: str, *, intervals: bool = False) -> go.Scatter:
        bars = {}
        if intervals:
            bars = {f"error_{axis}": _bars(self, name) for axis, name in (("x", x), ("y", y))}
        return go.Scatter(
            x=[_middle(p[x]) for p in self.points],
            y=[_middle(p[y]) for p in self.points],
            mode="markers",
            name=escape(self.name),
            legendgroup=escape(self.name),
            marker=dict(self.marker),
            hovertext=self.hover or None,
            hoverinfo="text" if self.hover else "skip",
            legendrank=1 if self.name == "front" else 2,
            **bars,
        )


def _layers(front: Front, archive: Sequence[Evaluation], part: Part) -> list[_Layer]:
    """What a panel shows, from the back to the front."""
    names = [o.name for o in objectives_of(front)]
    layers = []
    if part == "validation" and archive:
        # Thousands of dots in every panel are slow to draw and look no different.
        step = math.ceil(len(archive) / _MOST_DOTS)
        name = "archive" if step == 1 else f"archive (one in {step})"
        layers.append(_Layer(name, [e.values for e in archive[::step]], {"color": GREY, "size": 3, "opacity": 0.4}))
    for key, colour in _CURVES.items():
        curve = front.get("curves", {}).get(key, [])
        marker = {"color": colour, "size": 6, "symbol": "circle-open", "opacity": 0.8}
        layers.append(
            _Layer(COMPARED[key], [p[part] for p in curve], marker, [_hover(p["name"], p, names) for p in curve])
        )
    for baseline, symbol in zip(front["baselines"], cycle(_SYMBOLS), strict=False):
        marker = {"color": GREY, "size": 9, "symbol": f"{symbol}-open", "line": {"width": 1.8}}
        layers.append(_Layer(baseline["name"], [baseline[part]], marker, [_hover(baseline["name"], baseline, names)]))
    marker = {"color": BLUE, "size": 8, "line": {"color": "white", "width": 0.6}}
    entries = front["front"]
    hover = [_hover(e["entry"], e, names) for e in entries]
    return [layer for layer in layers if layer.points] + [_Layer("front", [e[part] for e in entries], marker, hover)]


def _hover(name: str, scored: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """What the mouse finds: both parts' scores, and the weighting and genes of what has them."""
    lines = [f"<b>{escape(name)}</b>"]
    for metric in metrics:
        test = scored["test"][metric]
        interval = f" [{test['low']:.4g}, {test['high']:.4g}]" if isinstance(test, Mapping) and "low" in test else ""
        lines.append(
            f"{escape(metric)}: {scored['validation'][metric]:.4g} validation, {_middle(test):.4g}{interval} test"
        )
    for key in ("weighting", "genes", "serving"):
        # Three to a line: a tooltip that is wider than a phone is cut off.
        texts = [escape(f"{gene} {shown(value)}") for gene, value in scored.get(key, {}).items()]
        rows = [", ".join(texts[i : i + 3]) for i in range(0, len(texts), 3)]
        if rows:
            lines.append(f"<i>{key}</i> " + "<br>    ".join(rows))
    return "<br>".join(lines)


def _floors(figure: go.Figure, x: Objective, y: Objective, legend: bool, place: Mapping[str, int]) -> None:
    """The references under which a model is worthless."""
    line = {"color": GREY, "dash": "dot", "width": 1}
    named = {"name": "reference (floor)", "legendgroup": "reference", "legendrank": 3, "showlegend": legend}
    figure.add_vline(x.reference, line=line, **named, **place)
    figure.add_hline(y.reference, line=line, **place)


def _entries(front: Front) -> str:
    return count(len(front["front"]), "entry", "entries")


def _middle(value: Any) -> float:
    return float(value["mean"] if isinstance(value, Mapping) else value)


def _bars(layer: _Layer, name: str) -> dict[str, Any] | None:
    values = [p[name] for p in layer.points]
    if not all(isinstance(v, Mapping) for v in values):
        return None
    return {
        "array": [v.get("high", v["mean"]) - v["mean"] for v in values],
        "arrayminus": [v["mean"] - v.get("low", v["mean"]) for v in values],
        "color": f"rgba({', '.join(str(c) for c in bytes.fromhex(layer.marker['color'][1:]))}, 0.4)",
        "thickness": 1,
        "width": 0,
    }


def _shared_keys(mappings: Iterable[Mapping[str, GeneValue]]) -> list[str]:
    every = list(mappings)
    return [key for key in every[0] if all(key in m for m in every)] if every else []


def _gene_axis(name: str, values: Sequence[GeneValue]) -> dict[str, Any]:
    """A parallel axis: numbers on their scale, logarithmic when few are far above most; names and switches in steps."""
    axis: dict[str, Any] = {"label": escape(name)}
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        numbers = [float(v) for v in values]
        low, high = min(numbers), max(numbers)
        if low <= 0 or high < 20 * low or sorted(numbers)[len(numbers) // 2] > low + 0.25 * (high - low):
            return axis | {"values": numbers}
        ticks = [low * (high / low) ** (i / 4) for i in range(5)]
        return axis | {
            "values": [math.log10(v) for v in numbers],
            "tickvals": [math.log10(t) for t in ticks],
            "ticktext": [f"{t:.2g}" for t in ticks],
        }
    kinds = sorted({str(v) for v in values})
    return axis | {
        "values": [kinds.index(str(v)) for v in values],
        "tickvals": list(range(len(kinds))),
        "ticktext": [escape(k) for k in kinds],
    }


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; 0 where one side does not vary."""
    return float(spearmanr(a, b).statistic) if len(set(a)) > 1 and len(set(b)) > 1 else 0.0
