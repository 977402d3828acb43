import copy
import json
import shutil
import struct
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from pareto_search import plots, render
from pareto_search.candidate import Evaluation
from pareto_search.errors import ConfigError, RunError
from pareto_search.report import report

NAMES = ("ndcg@10", "ild@10", "popularity@10")


def scores(*values: float) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=True))


def means(*values: float) -> dict[str, dict[str, float]]:
    return {n: {"mean": v, "low": v - 0.01, "high": v + 0.02} for n, v in zip(NAMES, values, strict=True)}


def entry(name: str, rank: int, *values: float) -> dict[str, Any]:
    return {
        "entry": name,
        "candidate": name[:5],
        "kind": "trained",
        "parents": [],
        "weighting": scores(0.5, 0.25, 0.25),
        "genes": {"rank": rank, "learning_rate": 0.000123456, "targets": "qv" if rank > 4 else "all"},
        "serving": {"diversity": 0.123456},
        "validation": scores(*values),
        "test": means(*values),
    }


FRONT: dict[str, Any] = {
    "search": "films",
    "seed": 7,
    "data_sha256": "0123456789abcdef" * 4,
    "objectives": [
        {"name": "ndcg@10", "direction": "maximise", "reference": 0.02, "ideal": 0.15},
        {"name": "ild@10", "direction": "maximise", "reference": 0.4, "ideal": 1.0},
        {"name": "popularity@10", "direction": "minimise", "reference": 0.9, "ideal": 0.1},
    ],
    "hypervolume": {"validation": 0.31, "test": 0.29, "practitioner": {"validation": 0.2345, "test": 0.2}},
    "curves": {
        "practitioner": [{"name": "ease+sasrec", "validation": scores(0.1, 0.6, 0.5), "test": means(0.1, 0.6, 0.5)}]
    },
    "front": [entry("c0001-s00", 4, 0.12, 0.61, 0.7), entry("c0002-s03", 16, 0.05, 0.93, 0.2)],
    "baselines": [{"name": "ease", "validation": scores(0.09, 0.6, 0.6), "test": means(0.08, 0.59, 0.61)}],
}
ARCHIVE = [
    Evaluation("c0001", 1, 40, 0, {}, scores(0.12, 0.61, 0.7)),
    Evaluation("c0002", 1, 40, 3, {}, scores(0.05, 0.93, 0.2)),
    Evaluation("c0003", 1, 20, 0, {}, scores(0.03, 0.5, 0.8)),
]
MOMENTS = [(60.0, 0.1, "c0001"), (600.0, 0.31, "c0002")]


def changed(**fields: Any) -> dict[str, Any]:
    return copy.deepcopy(FRONT) | fields


def points(figure: go.Figure, name: str) -> list[list[tuple[float, float]]]:
    return [list(zip(t.x, t.y, strict=True)) for t in figure.data if t.name == name]


def test_each_pair_of_objectives_shows_each_entry_at_its_exact_scores() -> None:
    figure = plots.pairwise(FRONT, ARCHIVE)
    assert points(figure, "front") == [
        [(0.12, 0.61), (0.05, 0.93)],
        [(0.12, 0.7), (0.05, 0.2)],
        [(0.61, 0.7), (0.93, 0.2)],
    ]


def test_archive_baselines_and_the_practitioners_curve_lie_behind_the_front() -> None:
    figure = plots.pairwise(FRONT, ARCHIVE)
    assert [t.name for t in figure.data[:4]] == ["archive", "practitioner curve", "ease", "front"]
    assert points(figure, "ease")[0] == [(0.09, 0.6)]
    assert points(figure, "practitioner curve")[0] == [(0.1, 0.6)]
    assert len(points(figure, "archive")[0]) == 3


def test_test_scores_are_means_and_the_archive_has_none() -> None:
    figure = plots.pairwise(FRONT, ARCHIVE, part="test")
    assert points(figure, "ease")[0] == [(0.08, 0.59)]
    assert points(figure, "archive") == []


def test_arrows_point_to_the_better_side_and_floors_are_at_the_references() -> None:
    figure = plots.pair(FRONT, ARCHIVE, "ndcg@10", "popularity@10")
    assert figure.layout.xaxis.title.text == "ndcg@10 →"
    assert figure.layout.yaxis.title.text == "← popularity@10"
    assert {(s.x0, s.y0) for s in figure.layout.shapes} == {(0.02, 0), (0, 0.9)}


def test_a_pair_on_test_has_the_intervals_as_error_bars() -> None:
    front = plots.pair(FRONT, ARCHIVE, "ndcg@10", "ild@10").data[-1]
    assert front.error_x.array == pytest.approx([0.02, 0.02])
    assert front.error_y.arrayminus == pytest.approx([0.01, 0.01])
    assert plots.pair(FRONT, ARCHIVE, "ndcg@10", "ild@10", "validation").data[-1].error_x.array is None


def test_an_unknown_objective_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'ndgc@10' is no objective of this search; did you mean 'ndcg@10'"):
        plots.pair(FRONT, ARCHIVE, "ndgc@10", "ild@10")


def test_the_mouse_finds_scores_intervals_weighting_and_rounded_genes() -> None:
    hover = plots.pairwise(FRONT, ARCHIVE).data[3].hovertext[0]
    assert "<b>c0001-s00</b>" in hover
    assert "ndcg@10: 0.12 validation, 0.12 [0.11, 0.14] test" in hover
    assert "ild@10 0.25" in hover
    assert "learning_rate 0.000123," in hover
    assert "diversity 0.123" in hover


def test_a_large_archive_is_thinned_and_says_so() -> None:
    names = [t.name for t in plots.pairwise(FRONT, ARCHIVE * 1500).data]
    assert "archive (one in 3)" in names


def test_parallel_axes_are_objectives_then_the_genes_that_vary_and_up_is_better() -> None:
    axes = plots.parallel(FRONT).data[0].dimensions
    assert [a.label for a in axes] == [*NAMES, "rank", "targets"]
    assert axes[2].range == (0.7, 0.2)
    assert axes[4].ticktext == ("all", "qv")
    assert axes[4]["values"] == (0, 1)


def test_what_an_entry_is_not_re_ranked_for_is_0_on_the_parallel_axes() -> None:
    plain = entry("c0009-s01", 4, 0.1, 0.8, 0.5) | {"serving": {"sharpness": 0.8, "ease": 0.2}}
    figure = plots.parallel(changed(front=[*FRONT["front"], plain]))
    genes = {axis.label: tuple(axis["values"]) for axis in figure.data[0].dimensions}
    assert genes["diversity"] == (0.123456, 0.123456, 0.0)
    assert genes["sharpness"] == (1.0, 1.0, 0.8)
    assert genes["ease"] == (0.0, 0.0, 0.2)


def test_a_gene_with_a_few_values_far_above_most_has_a_logarithmic_axis() -> None:
    entries = [entry(f"c000{i}-s00", rank, 0.1 * i, 0.5, 0.5) for i, rank in enumerate([1, 2, 4, 8, 100])]
    axis = plots.parallel(changed(front=entries)).data[0].dimensions[3]
    assert axis["values"] == pytest.approx([0, 0.30103, 0.60206, 0.90309, 2])
    assert axis.ticktext == ("1", "3.2", "10", "32", "1e+02")


def test_merged_checkpoints_have_no_genes_and_are_left_out_of_the_parallel_axes() -> None:
    merged = entry("c0009-s00", 4, 0.1, 0.8, 0.5) | {"genes": {}, "kind": "merged"}
    figure = plots.parallel(changed(front=[*FRONT["front"], merged]))
    assert figure.data[0].dimensions[0]["values"] == (0.12, 0.05)


def test_the_timeline_says_how_far_the_search_came_and_what_it_has_to_beat() -> None:
    figure = plots.timeline(MOMENTS, practitioner=0.2345)
    assert list(zip(figure.data[0].x, figure.data[0].y, strict=True)) == [(1.0, 0.1), (10.0, 0.31)]
    assert figure.layout.title.text == (
        "The front's hypervolume reached 0.31 after 10 minutes; the practitioner's curve has 0.234"
    )
    assert figure.layout.shapes[0].y0 == 0.2345


def test_a_search_without_a_front_still_has_a_report() -> None:
    page = report(changed(front=[], baselines=[], curves={}), [], [])
    assert "no entries" in page
    assert "The search has not found a front yet" in page


def beside_plotly(page: str) -> str:
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def test_the_report_shows_counts_hypervolumes_and_scores_with_their_intervals() -> None:
    page = beside_plotly(report(FRONT, ARCHIVE, MOMENTS))
    assert "3 candidates with 3 evaluations; the front has 2 entries from 2 checkpoints" in page
    assert "<code>0123456789ab</code>" in page
    assert "<th>practitioner curve</th><td>0.2345</td><td>0.2000</td>" in page
    assert "<td>0.0500<small>0.0500 [0.0400, 0.0700]</small></td>" in page
    assert page.index("<th>c0001-s00</th>") < page.index("<th>c0002-s03</th>") < page.index("<th>ease</th>")


def test_the_report_loads_nothing_from_elsewhere() -> None:
    page = beside_plotly(report(FRONT, ARCHIVE, MOMENTS))
    assert "http" not in page.replace("http-equiv", "")
    assert "cdn" not in page.lower()


HOSTILE = "</script><script>alert(1)</script>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.scripts += tag == "script"


def test_names_from_data_are_never_markup() -> None:
    front = changed(search=HOSTILE, data_sha256=HOSTILE, seed=HOSTILE)
    text = json.dumps(front)
    for name in ("ease", "ild@10", "c0001", "diversity", "rank"):
        text = text.replace(name, HOSTILE)
    archive = [Evaluation(HOSTILE, 1, 40, 0, {}, {n.replace("ild@10", HOSTILE): 0.5 for n in NAMES})]
    tags = Tags()
    page = beside_plotly(report(json.loads(text), archive, [(1.0, 0.1, HOSTILE)]))
    tags.feed(page)
    harmless = Tags()
    harmless.feed(beside_plotly(report(FRONT, ARCHIVE, MOMENTS)))
    assert tags.scripts == harmless.scripts
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_figure_becomes_a_page_of_its_own(tmp_path: Path) -> None:
    render.write(plots.timeline(MOMENTS), tmp_path / "timeline.html")
    assert get_plotlyjs() in (tmp_path / "timeline.html").read_text("utf-8")


def test_a_page_is_written_as_it_is(tmp_path: Path) -> None:
    render.write("<p>→</p>", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text("utf-8") == "<p>→</p>"


@pytest.mark.parametrize(
    ("content", "name"), [(go.Figure(), "front.gif"), (go.Figure(), "front"), ("<p>", "front.png")]
)
def test_another_kind_of_file_is_refused(content: go.Figure | str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"cannot write '{name}'; expected a name that ends in \.html"):
        render.write(content, tmp_path / name)


def test_a_folder_that_does_not_exist_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no/report\.html' \(No such file or directory"):
        render.write("<p>", tmp_path / "no" / "report.html")


BROWSERS = ("google-chrome", "google-chrome-stable", "chrome", "chromium", "chromium-browser")


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chrome or Chromium on this machine")
def test_a_png_is_twice_the_figures_size(tmp_path: Path) -> None:
    figure = plots.pair(FRONT, ARCHIVE, "ndcg@10", "ild@10").update_layout(width=500, height=400)
    render.write(figure, tmp_path / "pair.png")
    data = (tmp_path / "pair.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1000, 800)


@pytest.mark.parametrize("browser", ["/nowhere/chromium", shutil.which("false")])
def test_without_a_browser_that_starts_a_png_says_what_to_install(
    browser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", browser)
    with pytest.raises(RunError, match=r"PNG needs the 'png' extra and Chrome or Chromium: pip install"):
        render.write(go.Figure(), tmp_path / "front.png")


def test_without_kaleido_a_png_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(RunError, match=r"pip install 'pareto-search\[png\]' and apt-get install chromium"):
        render.write(go.Figure(), tmp_path / "front.png")
    assert not (tmp_path / "front.png").exists()
