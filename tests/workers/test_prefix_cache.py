import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from pareto_search.recsys.dataset import Dataset
from pareto_search.workers import prefix_cache, scratch
from pareto_search.workers.encoder import Encoder
from pareto_search.workers.prefix_cache import PrefixCache, Tensors

PATIENCE = 60


@pytest.fixture
def cache(tmp_path: Path) -> PrefixCache:
    return PrefixCache(tmp_path)


def part(name: str) -> Tensors:
    return {"states": torch.full((2, 3), int(name), dtype=torch.bfloat16)}


def refuse(name: str) -> Tensors:
    raise AssertionError(f"{name} is there already")


def test_what_one_worker_has_computed_is_mapped_by_all(cache: PrefixCache, tmp_path: Path) -> None:
    [(name, first), *_] = cache.each(["7", "8"], part)
    [(again, second), *_] = cache.each(["7", "8"], refuse)
    assert name == again == "7"
    assert torch.equal(second["states"], part("7")["states"])
    assert torch.equal(first["states"], second["states"])
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path / "7") in maps


def test_what_another_worker_is_at_comes_last_and_is_computed_once(cache: PrefixCache) -> None:
    begun, go_on = threading.Event(), threading.Event()
    counts: Counter[str] = Counter()
    seen: Queue[str] = Queue()

    def slow(name: str) -> Tensors:
        counts[name] += 1
        begun.set()
        assert go_on.wait(PATIENCE)
        return part(name)

    def quick(name: str) -> Tensors:
        counts[name] += 1
        return part(name)

    def other() -> None:
        for name, _ in cache.each(["1", "2"], quick):
            seen.put(name)

    first = threading.Thread(target=lambda: list(cache.each(["1", "2"], slow)))
    second = threading.Thread(target=other)
    first.start()
    assert begun.wait(PATIENCE)
    second.start()
    assert seen.get(timeout=PATIENCE) == "2"
    assert seen.empty()
    go_on.set()
    assert seen.get(timeout=PATIENCE) == "1"
    first.join(PATIENCE)
    second.join(PATIENCE)
    assert counts == {"1": 1, "2": 1}


def test_what_a_worker_died_at_is_computed_by_the_next(cache: PrefixCache, tmp_path: Path) -> None:
    if not (child := os.fork()):
        list(cache.each(["1"], lambda _: os._exit(0)))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (tmp_path / "1.part").write_bytes(b"half of it")
    [(_, found)] = cache.each(["1"], part)
    assert torch.equal(found["states"], part("1")["states"])


def test_on_a_full_disk_each_worker_has_its_own(
    cache: PrefixCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Tensors, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(prefix_cache, "save_file", full)
    [(_, found)] = cache.each(["1"], part)
    assert torch.equal(found["states"], part("1")["states"])
    assert {p.name for p in tmp_path.iterdir()} == {"1.lock", "1.full"}

    both = threading.Barrier(2, timeout=PATIENCE)

    def together(name: str) -> Tensors:
        both.wait()
        return part(name)

    with ThreadPoolExecutor() as threads:
        for found in threads.map(lambda _: dict(cache.each(["1"], together)), range(2)):
            assert torch.equal(found["1"]["states"], part("1")["states"])


def test_where_there_is_no_place_for_it_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert prefix_cache.shared_prefixes(scratch.name()) is None


def test_an_encoder_with_anothers_prefixes_is_the_same_to_the_bit(
    cache: PrefixCache, tiny_base: Any, toy: Dataset, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(cache: PrefixCache) -> Encoder:
        return Encoder(tiny_base, toy.texts, max_tokens=16, layers=3, cache=cache)

    first = make(cache)
    run: Callable[..., Tensors] = refuse
    monkeypatch.setattr(Encoder, "_run", run)
    for other in (first, make(cache)):
        assert torch.equal(other.frozen, encoder.frozen)
        for layers in (1, 2, 3):
            assert torch.equal(other.catalogue(layers), encoder.catalogue(layers))
