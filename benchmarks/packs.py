"""Packs: what a worker gets done when it trains several candidates side by side.

    python -m benchmarks.packs [--packs 1 2 4 8 16] [--processes 8] [--candidates 16] [--steps 8] [--device cuda|cpu]
        [--json FILE]

MovieLens-100K, the packaged MiniLM, two adapted layers; candidates differ in rank, dropout and learning rate. As many
as the pack is wide train at once, and the next one takes the place of one that ends. Training alone is measured, not
evaluation. A pack of 1 is what a worker does without packs. The limit is that of `benchmarks.limit`, and the same for
every pack: the time of the matrix products, each at the rate of a solo step's shape. On a CPU, time is the process's;
busy is the share of the time in which it or, by the profiler in a run of its own, some kernel of the GPU was at work.

What packs are to be compared with are several workers on one GPU: `--processes` says how many train alone at the same
time, so many candidates each; there time is that of the clock.
"""

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.limit import GENES, Bench, clock
from pareto_search.candidate import Genes
from pareto_search.workers.pack import Pack
from pareto_search.workers.train import TOWER_BATCHES, FineTuning, fine_tune

LAYERS = 2
RANKS, DROPOUTS = (4, 8, 16, 32), (0.0, 0.1, 0.2)
RATES = (3e-4, 1e-3, 3e-3)
PROFILED = 2
"""Steps: of a longer training the profiler's own work would count."""
LATE = 600
"""Seconds after which a process that has not come is not waited for."""
_barrier: Any = None
"""At which the processes wait for each other."""


def candidates(bench: Bench, count: int) -> Iterator[tuple[int, Genes]]:
    """Numbers and genes."""
    for number in range(count):
        own = {
            "layers": LAYERS,
            "rank": RANKS[number % len(RANKS)],
            "dropout": DROPOUTS[number % len(DROPOUTS)],
            "adapter_lr": RATES[number % len(RATES)],
        }
        yield number, {**GENES, **bench.weights, **own}


def train(bench: Bench, pack: int, count: int, steps: int) -> None:
    """Trains so many candidates, side by side where the pack is wider than one."""
    waiting = candidates(bench, count)
    if pack == 1:
        for number, genes in waiting:
            with fine_tune(bench.task, genes, steps=steps, seed=number) as tuning:
                tuning.advance(steps)
        return

    async def all_of_them() -> None:
        together = Pack(bench.encoder)

        async def place() -> None:
            for number, genes in waiting:
                await together.advance(FineTuning(bench.task, genes, steps=steps, seed=number, source=None), steps)

        await asyncio.gather(*(place() for _ in range(pack)))

    asyncio.run(all_of_them())


def measured(bench: Bench, pack: int, count: int, steps: int, device: str) -> dict[str, Any]:
    """The figures of one width."""
    train(bench, pack, pack, 1)  # warm-up
    bench.encoder.encoded.clear()
    began, started = clock(device), time.perf_counter()
    train(bench, pack, count, steps)
    seconds, wall = clock(device) - began, time.perf_counter() - started
    # The encoder's chunks of all candidates are known; each took as many tower batches as any other.
    products = bench.products(LAYERS, list(islice(bench.stream(), steps * TOWER_BATCHES)))
    limit = sum(p.seconds(device) * (1 if part == "encoder" else count) for part, own in products.items() for p in own)
    return {
        "pack": pack,
        "candidates_per_hour": 3600 * count / seconds,
        "share_of_limit": limit / seconds,
        "busy_share": seconds / wall if device == "cpu" else kernels(bench, pack),
    }


def kernels(bench: Bench, pack: int) -> float:
    """The share of the time in which a kernel runs, of a short training that is profiled."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        began = clock("cuda")
        train(bench, pack, pack, PROFILED)
        wall = clock("cuda") - began
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / wall


def several(processes: int, count: int, steps: int, device: str) -> float:
    """Candidates an hour of so many processes together, each with so many of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _wait_with, (context.Barrier(processes),)) as pool:
        times = list(pool.map(alone, [(count, steps, device)] * processes))
    return 3600 * processes * count / (max(end for _, end in times) - min(began for began, _ in times))


def _wait_with(barrier: Any) -> None:
    global _barrier  # noqa: PLW0603, a process of a pool gets it no other way
    _barrier = barrier


def alone(job: tuple[int, int, str]) -> tuple[float, float]:
    """When a process began to train, as all did, and when it ended."""
    count, steps, device = job
    bench = Bench(device)
    train(bench, 1, 1, steps)  # warm-up
    clock(device)
    _barrier.wait(LATE)  # where one has failed, the others would wait for ever
    began = time.monotonic()
    train(bench, 1, count, steps)
    clock(device)
    return began, time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--processes", type=int, nargs="*", default=[])
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bench = Bench(options.device)
    found: list[dict[str, Any]] = []
    print(f"{'pack':>4}{'candidates/h':>14}{'share of limit':>16}{'busy share':>12}")
    for pack in options.packs:
        found.append(measured(bench, pack, max(pack, options.candidates), options.steps, options.device))
        hourly, share, busy = list(found[-1].values())[1:]
        print(f"{pack:4}{hourly:14.1f}{share:16.2f}{busy:12.2f}", flush=True)
    beside = {n: several(n, options.candidates, options.steps, options.device) for n in options.processes}
    for processes, hourly in beside.items():
        print(f"{processes} processes: {hourly:.1f} candidates/h")
    if options.json:
        content = {"device": options.device, "steps": options.steps, "packs": found, "processes": beside}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
