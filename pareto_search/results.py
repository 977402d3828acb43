"""What comes back from a search: its front as a document, and how the hypervolume grew."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pareto_search import archive, checkpoint
from pareto_search.candidate import WARM_START, Candidate, Evaluation
from pareto_search.errors import RunError, TroubleError, nearest
from pareto_search.objective import Constraint, Objective, Values
from pareto_search.store import SearchRecord, Store

FRONT = "front.json"
ENTRIES = 32
"""How many entries every hypervolume that is reported stands for."""

MOMENTS = 100
"""How many points a curve over time has at most."""

Document = dict[str, Any]
"""A parsed front.json."""
COMPARED = {"old": "old front", "practitioner": "practitioner curve", "warm-start": "warm-start curve"}
"""What a front is compared with, by its name among the curves, and what people read."""
FROM_SCRATCH = "from scratch"
"""How people read that a checkpoint inherited no weights though the entry's own did."""
Scores = Mapping[str, Mapping[str, float]]


def objectives_of(front: Mapping[str, Any]) -> list[Objective]:
    """The search's objectives, in the config's order."""
    return [Objective(o["name"], o["direction"], o["reference"], o["ideal"]) for o in front["objectives"]]


def chosen(evaluations: Sequence[Evaluation], objectives: Sequence[Objective]) -> list[Evaluation]:
    """The entries of a front that are reported."""
    return archive.representatives(evaluations, objectives, ENTRIES)


def hypervolumes(points: Sequence[Document], objectives: Sequence[Objective]) -> dict[str, float]:
    """Of points with validation values and test scores, on either part."""
    return {
        "validation": archive.hypervolume([p["validation"] for p in points], objectives),
        "test": archive.hypervolume([means(p["test"]) for p in points], objectives),
    }


def compared(volumes: Document) -> Iterator[tuple[str, Mapping[str, float]]]:
    """The hypervolumes of a front.json, the front's own first, each under the name that people read."""
    yield "front", volumes
    for name, title in ({"retrained": f"front {FROM_SCRATCH}"} | COMPARED).items():
        if name in volumes:
            yield title, volumes[name]


def readable(value: float) -> str:
    """A metric's value as people read it."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def with_interval(score: Mapping[str, float]) -> str:
    """A test score as people read it: `0.1307 [0.1198, 0.1416]`.

    Metrics of all lists together have no interval: for them a bootstrap over users is biased.
    """
    mean = readable(score["mean"])
    return f"{mean} [{readable(score['low'])}, {readable(score['high'])}]" if "low" in score else mean


def means(scores: Scores) -> dict[str, float]:
    """Test scores without their intervals."""
    return {name: score["mean"] for name, score in scores.items()}


def document(
    record: SearchRecord,
    objectives: Sequence[Objective],
    entries: Sequence[Document],
    baselines: Sequence[Document],
    curves: Mapping[str, Sequence[Document]],
) -> Document:
    """The content of front.json: entries by accuracy, baselines, and the curves that the front is compared with."""
    first = objectives[0]
    volumes: Document = hypervolumes(entries, objectives)
    if any("retrained" in e for e in entries):
        volumes["retrained"] = hypervolumes([e | e.get("retrained", {}) for e in entries], objectives)
    return {
        "search": record.name,
        "seed": record.seed,
        "data_sha256": record.data_sha256,
        "base": {"id": record.base_id, "sha256": record.base_sha256},
        "split_sha256": record.split_sha256,
        "test_evaluations": record.test_evaluations,
        "objectives": [
            {"name": o.name, "direction": o.direction, "reference": o.reference, "ideal": o.ideal} for o in objectives
        ],
        "hypervolume": volumes | {name: hypervolumes(points, objectives) for name, points in curves.items()},
        "front": sorted(entries, key=lambda e: -first.normalise(e["validation"][first.name])),
        "baselines": list(baselines),
        "curves": dict(curves),
    }


def entry(
    evaluation: Evaluation,
    candidate: Candidate,
    lineage: int,
    seconds: float,
    test: Scores,
    *,
    fuses: Mapping[str, Document],
) -> Document:
    """One entry of front.json.

    Args:
        lineage: the training steps of the candidate and of all whose weights are in it.
        fuses: the members of a fused candidate, each with its `weight` and its own `lineage_steps`; of others nothing.
    """
    weights = {n.removeprefix("weight."): v for n, v in candidate.genes.items() if n.startswith("weight.")}
    return {
        "entry": evaluation.entry,
        "candidate": candidate.id,
        "kind": candidate.kind,
        "parents": list(candidate.parents),
        "steps": evaluation.steps if candidate.kind == "trained" else 0,
        "lineage_steps": lineage,
        "seconds": round(seconds, 1),
        "weighting": weights,
        "genes": {n: v for n, v in candidate.genes.items() if not n.startswith("weight.")},
        "fuses": dict(fuses),
        "serving": dict(evaluation.serving),
        "validation": dict(evaluation.values),
        "test": test,
        "checkpoint": f"checkpoints/{candidate.id}",
    }


def moments(
    store: Store, objectives: Sequence[Objective], constraints: Sequence[Constraint], steps: int
) -> list[tuple[float, float, str]]:
    """How the front's hypervolume on validation grew: seconds that the search had taken, hypervolume, candidate.

    One moment for each attempt that finished; of many attempts `MOMENTS`, evenly spread, the last among them.
    """
    ended = sorted((a.ended or 0.0, a.candidate, a.number) for a in store.attempts() if a.state == "finished")
    mine: dict[tuple[str, int], list[Evaluation]] = {}
    for evaluation in store.evaluations():
        mine.setdefault((evaluation.candidate, evaluation.attempt), []).append(evaluation)
    shown = {len(ended) * n // MOMENTS - 1 for n in range(1, MOMENTS + 1)} if len(ended) > MOMENTS else None
    front: list[Evaluation] = []
    news: list[Evaluation] = []
    points: list[tuple[float, float, str]] = []
    seconds = store.seconds_until([end for end, _, _ in ended])
    for number, (_, name, attempt) in enumerate(ended):
        news += mine.get((name, attempt), [])
        if name == WARM_START:  # what its first towers dominated may be on the front now that these go
            front, news = [], [e for _, who, n in ended[: number + 1] for e in mine.get((who, n), [])]
        if shown is None or number in shown:
            front, news = archive.front([*front, *news], objectives, constraints, steps), []
            values: list[Values] = [e.values for e in chosen(front, objectives)]
            points.append((seconds[number], archive.hypervolume(values, objectives), name))
    return points


def load_front(run: str | Path) -> Document:
    """The front of a finished search: the parsed `front.json` of its run folder.

    Raises:
        RunError: there is none.
    """
    path = Path(run) / FRONT
    try:
        content: Document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = (
            "it comes when the search ends; where that does not run any more, resume it with 'pareto-search resume', "
            "also to end it early, with --minutes 1"
            if Path(run, "search.yaml").exists()
            else "expected a run folder"
        )
        raise RunError(f"{path} is not there; {hint}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); resume the search to write it again") from None
    return content


def find_entry(front: Document, name: str) -> Document:
    """The entry of that name.

    Raises:
        RunError: the front has none.
    """
    known = {e["entry"]: e for e in front["front"]}
    if name not in known:
        raise RunError(f"entry '{name}' is not on the front; {nearest(name, known)}")
    return known[name]


def save(front: Document, run: Path) -> None:
    """Writes `front.json`."""
    write_whole(run / FRONT, json.dumps(front, indent=1))


def write_whole(path: Path, text: str, *, private: bool = False) -> None:
    """Writes a file whole or not at all.

    Args:
        private: whether nobody but its owner may read it.

    Raises:
        TroubleError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)  # a kill may have left it, with other permissions
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        checkpoint.sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TroubleError(f"{path} cannot be written ({error.strerror}); mend that and resume the search") from error
