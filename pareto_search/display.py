"""What the command line shows: progress while a search runs, and tables."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from pareto_search.decide import EMPTY
from pareto_search.results import FROM_SCRATCH, Document, compared, readable, with_interval

if TYPE_CHECKING:
    from pareto_search import search  # loads pymoo, for which --help need not wait


class Live:
    """Shows a search: a bar on a terminal, a line per change elsewhere."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar, self._began, self._shown = bar, time.monotonic(), ""
        self._task = bar.add_task("", total=None, detail="") if bar else None

    def notice(self, text: str) -> None:
        """One line of text."""
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(f"[{_duration(time.monotonic() - self._began)}] {text}", flush=True)

    def progress(self, now: "search.Progress") -> None:
        """A candidate has ended."""
        left = "" if not now.left else f", about {_duration(now.left)} left"
        failed = f", {now.failed} failed" if now.failed else ""
        untrained = "".join(f", {n} {kind}" for n, kind in ((now.merged, "merged"), (now.fused, "fused")) if n)
        entries = f"{now.front} {'entry' if now.front == 1 else 'entries'}"
        detail = f"front of {entries}, hypervolume {now.hypervolume:.4f}{failed}{left}"
        done = now.finished + now.failed
        if self._bar and self._task is not None:
            self._bar.update(self._task, total=now.total, completed=done, detail=detail + untrained)
        elif (state := f"{done} of {now.total} candidates{untrained}: {detail.removesuffix(left)}") != self._shown:
            self._shown = state
            self.notice(f"{state}{left}")


@contextmanager
def live() -> Iterator[Live]:
    """Shows a search for the length of a block."""
    if not sys.stdout.isatty():
        yield Live(None)
        return
    columns = (TextColumn("candidates"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns) as bar:
        yield Live(bar)


def show_front(front: Document) -> None:
    """The front as a table, the baselines underneath, and the hypervolumes."""
    names = [o["name"] for o in front["objectives"]]
    table = Table(title=f"{front['search']}: validation → test", title_justify="left", box=None)
    for column in ("entry", *names, "serving"):
        table.add_column(escape(column), no_wrap=True)  # ndcg@10[gender] is no style
    for row in front["front"]:
        table.add_row(row["entry"], *_cells(row, names), _serving(row["serving"]))
        if "retrained" in row:
            table.add_row(f"  {FROM_SCRATCH}", *_cells(row["retrained"], names))
    for title, others in (("old front", front.get("curves", {}).get("old")), ("baselines", front["baselines"])):
        if others:
            table.add_row()
            table.add_row(f"[italic]{title}[/]")
            for row in others:
                table.add_row(row["name"], *_cells(row, names), _serving(row.get("serving", {})))
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)
    if not front["front"]:
        console.print(f"\n{EMPTY.capitalize()}.")
    console.print("")
    console.print("[italic]hypervolume of at most 32 entries, chosen on validation[/]")  # longer than its table is wide
    volumes = Table(box=None)
    for column in ("", "validation", "test"):
        volumes.add_column(column)
    for name, volume in compared(front["hypervolume"]):
        volumes.add_row(name, f"{volume['validation']:.4f}", f"{volume['test']:.4f}")
    console.print(volumes)


def show_scores(name: str, part: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    """One entry's scores, each with its interval."""
    for metric, value in scores.items():
        print(f"{name}  {part}  {metric}  {with_interval(value)}")


def show_export(measures: Mapping[str, Any]) -> None:
    """How near an export is to its checkpoint; nothing of one that is the checkpoint itself."""
    if measures:
        print(f"Least cosine of an item's text vector with the checkpoint's: {measures['cosine']:.6f}")
    for kind in ("float32", "int8"):
        if kind in measures:
            m = measures[kind]
            print(
                f"{kind}: {m['megabytes']:.1f} MB, {m['one_ms']:.1f} ms a text, NDCG@10 {m['ndcg']['alone']:.4f} alone"
            )


class _Recommended(Protocol):
    @property
    def title(self) -> str: ...
    @property
    def item(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def because(self) -> tuple[str, ...]: ...


def show_recommendations(items: Sequence[_Recommended]) -> None:
    """A list of items, best first."""
    for place, item in enumerate(items, 1):
        because = f"  because of {' and '.join(item.because)}" if item.because else ""
        print(f"{place:>3}. {item.title}  (item {item.item}, score {item.score:.2f}){because}")


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{readable(row['validation'][n])} → {readable(row['test'][n]['mean'])}" for n in names]


def _serving(genes: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value:.2g}" for name, value in genes.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
