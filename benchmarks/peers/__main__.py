"""Time to hypervolume: how long do the searches that people use today need for what ours finds?

    python -m benchmarks.peers [--minutes 10] [--our-minutes 10] [--seeds 3] [--peers optuna pymoo-ray] [--tier both]
        [--steps 40] [--config FILE] [--out runs/peers] [--json FILE] [--plot FILE.html]

It needs the extra `peers`: pip install 'pareto-search[peers]'.

Every search has the same minutes, workers, data, genes and evaluator, and is ended when its time is over; ours may be
given fewer minutes, so that peers can be given many. Its clock starts with its process: imports, the warm start and
what is blended in are charged to all.

In the tier `tuned` a peer's trial is our own worker, resident in the trial's process, with the warm start's curve, from
which every inner search begins; the peer optimises the objectives of the checkpoint alone, as our own outer search
does. In the tier `default` it is what one writes first (see `plain.py`): one list of genes, serving genes among them,
and one entry a trial. Such a trial takes minutes, so give that tier more of them. Syne Tune starts a
process for each trial, so with it nothing is resident; of the peers it alone sees its trials at rungs, and stops most
of them there.

Afterwards a curve is computed for each: at the end of every trial, at most 32 entries are chosen on validation from all
that was evaluated until then, their checkpoints are reloaded from the files, and the hypervolume is that of test. A
peer's time is the time until it has 95 % of what it has in the end; ours is the time until we have as much and keep it.
The ratio is theirs over ours: above 1 we are faster, and it is 0 where we never arrive.

A search that is in `--out` already is not run again, so a long comparison may be made in pieces.
"""

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import plotly.graph_objects as go

from benchmarks.peers.curve import SHARE, Comparison, Curve
from benchmarks.peers.peer import OURS, PeerSearch, Tier
from benchmarks.peers.run import MODULES
from benchmarks.peers.score import curve_on_test
from benchmarks.runs import want_same
from pareto_search.config import SearchConfig
from pareto_search.recsys.dataset import MOVIELENS
from pareto_search.render import write

ROOT = Path(__file__).parents[2]
PEERS = tuple(name for name in MODULES if name != OURS)
CONFIG: Mapping[str, Any] = {"name": "peers", "data": {"source": MOVIELENS}}
BY_HAND = {"ease": [0.0, 1.0], "sasrec": [0.0, 1.0], "sharpness": [0.4, 2.0]}
"""What the tier `default` blends: EASE and SASRec by two more genes, as one writes it first, and no text."""
ENDLESS = 1_000_000
"""Candidates: time ends a search."""
COLOURS = dict(zip(MODULES, ("#2a85c7", "#dd8a12", "#c2483d", "#0f9d78", "#9c7fa8", "#78818d"), strict=True))


def main() -> None:
    """Runs what is missing, and prints a table: median and range over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each search, from the start of its process")
    parser.add_argument("--our-minutes", type=float, help="for ours, in place of as many")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--tier", choices=(*get_args(Tier), "both"), default="both")
    parser.add_argument("--steps", type=int, help="training steps, in place of the config's")
    parser.add_argument("--config", type=Path, help="of another search than MovieLens-100K with defaults")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"), help="where every search has a folder")
    parser.add_argument("--json", type=Path, help="also write figures and curves here")
    parser.add_argument("--plot", type=Path, help="also draw the curves here, as .html or .png")
    options = parser.parse_args()
    if any(find_spec(package) is None for package in ("optuna", "syne_tune")):
        parser.error("the peers are not installed; pip install 'pareto-search[peers]'")

    base = SearchConfig.parse(CONFIG) if options.config is None else SearchConfig.load(options.config)
    tiers: Sequence[Tier] = get_args(Tier) if options.tier == "both" else (options.tier,)
    steps = options.steps or base.search.steps
    wanted: list[tuple[str, Tier]] = [(OURS, "tuned"), *((peer, tier) for tier in tiers for peer in options.peers)]
    curves: dict[tuple[str, Tier], list[Curve]] = {search: [] for search in wanted}
    for seed in range(options.seeds):
        for peer, tier in wanted:
            minutes = options.our_minutes or options.minutes if peer == OURS else options.minutes
            config = _config(base, peer, tier, seed=seed, steps=steps, minutes=minutes)
            curves[peer, tier].append(measure(options.out / f"{peer}-{tier}-{seed}", config, peer, tier, 60 * minutes))
    ours = curves[OURS, "tuned"]
    compared = {
        (peer, tier): [Comparison.of(theirs, mine) for theirs, mine in zip(several, ours, strict=True)]
        for (peer, tier), several in curves.items()
    }
    _print(compared)
    if options.json:
        _write_json(options.json, options.minutes, steps, compared, curves)
    if options.plot:
        write(_figure(curves, 60 * options.minutes), options.plot)


def measure(folder: Path, config: SearchConfig, peer: str, tier: Tier, seconds: float) -> Curve:
    """The curve of a search, which is made first if it is not there yet."""
    kept_curve = folder / "curve.json"
    if kept_curve.is_file():
        want_same(folder, config)
        return [(at, volume) for at, volume in json.loads(kept_curve.read_text(encoding="utf-8"))]
    if folder.exists():  # it was interrupted, and its clock cannot be stopped
        shutil.rmtree(folder)
    print(f"{folder.name}: {seconds / 60:g} min", file=sys.stderr, flush=True)
    search = PeerSearch.begin(folder, config, peer, tier)
    _run(search, seconds)
    curve = curve_on_test(search, seconds)
    kept_curve.write_text(json.dumps(curve), encoding="utf-8")
    return curve


def _config(base: SearchConfig, peer: str, tier: Tier, *, seed: int, steps: int, minutes: float) -> SearchConfig:
    """The search that a peer is to make."""
    rungs = [steps]
    if peer == OURS and steps == base.search.steps:
        rungs = list(base.search.rungs)
    elif peer == "syne-tune-moasha":  # its own reduction factor is 3
        rungs = sorted({max(1, steps // 9), max(1, steps // 3), steps})
    content = base.model_dump(mode="json", by_alias=True, exclude_none=True)
    content["search"] |= {"seed": seed, "steps": steps, "rungs": rungs, "minutes": minutes}
    content["search"] |= {"candidates": ENDLESS, "mode": "async", "keep_checkpoints": "all"}
    if tier == "default":
        content["space"] = {**BY_HAND, **content["space"], "text": 0.0}
    return SearchConfig.parse(content)


def _run(search: PeerSearch, seconds: float) -> None:
    """Runs a search in a process of its own, which is ended with all that it started when the time is over."""
    threads = str(max(1, int(search.config.workers.cpus)))  # as Ray gives its workers
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    environment["RAY_worker_niceness"] = "0"  # its workers would give way to all else, and others' do not
    command = [sys.executable, "-m", "benchmarks.peers.run", str(search.folder.absolute())]
    log = search.folder / "search.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            code = process.wait(search.began + seconds - time.time())
        except subprocess.TimeoutExpired:
            return
        finally:
            _end(process)
    if code:
        print(f"{search.folder.name} ended early with exit {code}; see {log}", file=sys.stderr)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


Compared = Mapping[tuple[str, Tier], Sequence[Comparison | None]]


def _print(compared: Compared) -> None:
    columns = (("trials", ".0f"), ("final", ".4f"), ("seconds", ".0f"), ("ours", ".0f"), ("ratio", ".2f"))
    heads = ("trials", "test hypervolume", f"s to {100 * SHARE:g} %", "ours, s", "ratio")
    print(f"{'':26}" + "".join(f"{head:<24}" for head in heads).rstrip())
    for (peer, tier), several in compared.items():
        found = [comparison for comparison in several if comparison is not None]
        cells = [_cell([getattr(c, name) for c in found], spec) for name, spec in columns] if found else ["nothing"]
        title = peer if peer == OURS else f"{peer}, {tier}"
        missing = f" ({len(several) - len(found)} seeds with nothing)" if 0 < len(found) < len(several) else ""
        print(f"{title:<26}" + "".join(f"{cell:<24}" for cell in cells).rstrip() + missing)


def _cell(values: Sequence[float], spec: str) -> str:
    """Median and range."""
    middle, low, high = (
        "never" if v == math.inf else f"{v:{spec}}" for v in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low}–{high})"


def _write_json(
    path: Path,
    minutes: float,
    steps: int,
    compared: Compared,
    curves: Mapping[tuple[str, Tier], Sequence[Curve]],
) -> None:
    """JSON has no infinity: a time that is null never came."""
    rows = [
        {"peer": peer, "tier": tier, "seed": seed, "curve": curve}
        | {k: None if v == math.inf else v for k, v in (asdict(comparison) if comparison else {}).items()}
        for (peer, tier), several in compared.items()
        for seed, (comparison, curve) in enumerate(zip(several, curves[peer, tier], strict=True))
    ]
    content = {"minutes": minutes, "steps": steps, "searches": rows}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _figure(curves: Mapping[tuple[str, Tier], Sequence[Curve]], seconds: float) -> go.Figure:
    """All seeds; a peer has one colour, and the tier `default` is dashed."""
    figure = go.Figure()
    for (peer, tier), several in curves.items():
        title = peer if peer == OURS else f"{peer}, {tier}"
        line = {"color": COLOURS[peer], "shape": "hv", "dash": "dash" if tier == "default" else "solid"}
        for seed, curve in enumerate(several):
            ends = [*curve, (seconds, curve[-1][1])] if curve else []
            figure.add_scatter(
                x=[at / 60 for at, _ in ends],
                y=[volume for _, volume in ends],
                mode="lines",
                line={**line, "width": 3 if peer == OURS else 1.5},
                name=title,
                legendgroup=title,
                showlegend=seed == 0,
                hovertemplate=f"{title}, seed {seed}<br>%{{x:.1f}} min: %{{y:.4f}}<extra></extra>",
            )
    return figure.update_layout(
        template="plotly_white",
        title_text="Hypervolume on test over time, 32 entries chosen on validation; a line for each seed",
        xaxis_rangemode="tozero",
        xaxis_title_text="minutes since the search's process began",
        yaxis_title_text="hypervolume on test",
        height=600,
    )


if __name__ == "__main__":
    main()
