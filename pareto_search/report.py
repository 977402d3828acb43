"""A search as one HTML page that opens with no network, on a phone and in the dark."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from pareto_search.candidate import Evaluation
from pareto_search.objective import Objective
from pareto_search.plots import CONFIG, Front, Moment, count, pair, pairwise, parallel, shown, timeline
from pareto_search.results import FROM_SCRATCH, compared, objectives_of, readable, with_interval

# The policy makes the promise of no network the browser's. Plotly's parallel axes compile their shaders with eval.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #27303a; --soft: #5f6975; --line: #dde1e6; --paper: #ffffff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #dfe3e8; --soft: #9aa4b0; --line: #333b45; --paper: #14181d; }}
}}
body {{ margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; line-height: 1.35; font-weight: 600; margin: 2.5rem 0 .5rem; }}
p {{ max-width: 45rem; overflow-wrap: anywhere; }}
.soft, small, thead th {{ color: var(--soft); }}
.wide {{ overflow-x: auto; }}
.figure {{ min-width: var(--least); }}
/* Here the page is known, so figures take its ink; only tooltips have a background of their own. */
.figure .main-svg :not(.hovertext) > text {{ fill: var(--ink) !important; text-shadow: none !important; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; white-space: nowrap; font-weight: normal; }}
td small {{ display: block; }}
td.serving {{ white-space: normal; min-width: 14rem; }}
tbody th {{ font-weight: 600; }}
</style>
<script>{plotly}</script>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
{body}
</body>
</html>
"""


def report(front: Front, archive: Sequence[Evaluation], moments: Sequence[Moment]) -> str:
    """The whole page: what was searched, how far it came, the figures, and the front beside the baselines."""
    objectives = objectives_of(front)
    first, second = (o.name for o in objectives[:2])
    practitioner = front["hypervolume"].get("practitioner", {}).get("validation")
    figures = [
        ("pairwise", pairwise(front, archive), 40),
        ("pair", pair(front, archive, first, second), 20),
        ("parallel", parallel(front), 48),
        ("timeline", timeline(moments, practitioner), 20),
    ]
    sections = [_hypervolumes(front["hypervolume"]), *(_figure(*figure) for figure in figures), _scores(front)]
    return _PAGE.format(
        title=f"{escape(front['search'])}: the front of a search",
        plotly=get_plotlyjs(),
        summary=_summary(front, archive),
        body="\n".join(sections),
    )


def _summary(front: Front, archive: Sequence[Evaluation]) -> str:
    entries = front["front"]
    candidates, checkpoints = {e.candidate for e in archive}, {e["candidate"] for e in entries}
    return (
        f"Search <b>{escape(front['search'])}</b>, seed {escape(str(front['seed']))}, on data "
        f"<code>{escape(front['data_sha256'][:12])}</code>: {count(len(candidates), 'candidate')} with "
        f"{count(len(archive), 'evaluation')}; the front has {count(len(entries), 'entry', 'entries')} from "
        f"{count(len(checkpoints), 'checkpoint')}. The objectives are "
        f"{', '.join(escape(o['name']) for o in front['objectives'])}."
    )


def _hypervolumes(volumes: dict[str, Any]) -> str:
    return _table(
        "The hypervolume that the front covers, and what it has to beat",
        ["", "validation", "test"],
        "".join(
            f"<tr><th>{name}</th><td>{v['validation']:.4f}</td><td>{v['test']:.4f}</td></tr>"
            for name, v in compared(volumes)
        ),
    )


def _figure(name: str, figure: go.Figure, least: int) -> str:
    """A figure under its title, which wraps as a heading; narrower than `least` (in rem) it scrolls."""
    title = figure.layout.title.text
    figure.update_layout(title_text=None, margin_t=30 if name != "parallel" else 70)
    body = figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, div_id=name)
    return f'<h2>{title}</h2>\n<div class="wide"><div class="figure" style="--least: {least}rem">{body}</div></div>'


def _scores(front: Front) -> str:
    objectives = objectives_of(front)
    best = objectives[0]
    entries = sorted(front["front"], key=lambda e: -best.normalise(e["validation"][best.name]))
    rows = []
    for entry in entries:
        rows.append(_row(entry["entry"], entry, objectives))
        if "retrained" in entry:
            rows.append(_row(FROM_SCRATCH, entry["retrained"], objectives))
    for title, others in (("Old front", front.get("curves", {}).get("old")), ("Baselines", front["baselines"])):
        if others:
            rows.append(f'<tr><td class="soft" colspan="{len(objectives) + 2}">{title}</td></tr>')
            rows += [_row(o["name"], o, objectives) for o in others]
    return _table(
        "The front, and the baselines underneath: validation, below it the mean on test with its interval",
        ["entry", *(o.name for o in objectives), "serving genes"],
        "".join(rows),
    )


def _row(name: str, scored: Mapping[str, Any], objectives: Sequence[Objective]) -> str:
    cells = [
        f"<td>{readable(scored['validation'][o.name])}<small>{with_interval(scored['test'][o.name])}</small></td>"
        for o in objectives
    ]
    serving = ", ".join(escape(f"{gene} {shown(value)}") for gene, value in scored.get("serving", {}).items())
    return f'<tr><th>{escape(name)}</th>{"".join(cells)}<td class="serving">{serving}</td></tr>'


def _table(title: str, columns: Sequence[str], rows: str) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return (
        f'<h2>{title}</h2>\n<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
