"""Requests of every form at a service: whatever schemathesis makes of its OpenAPI document, right and wrong.

Goals: no answer 5xx, none after more than five seconds, and whoever is refused is told why in JSON. Half of the
requests break the document as far as it lets them; half name a search that is there, or send a config that is nearly
right. The service runs no search.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as some
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from benchmarks.load import SOURCE, Archive, service

HANGS = 5.0
"""Seconds."""
EXAMPLES = 50
"""Evaluations of the search that is there."""
CONFIG: Mapping[str, Any] = {"name": "fuzz", "data": {"source": SOURCE}}
SECTIONS = ("name", "data", "model", "objectives", "constraints", "space", "search", "workers", "store")
KEYS = (
    *SECTIONS,
    *("source", "split", "base", "history", "metric", "reference", "ideal", "rank", "layers", "candidates"),
    *("population", "minutes", "steps", "rungs", "mode", "algorithm", "count", "cpus", "gpus", "pack"),
)
PLAIN: some.SearchStrategy[Any] = some.one_of(
    some.none(),
    some.booleans(),
    some.integers(),
    some.floats(allow_nan=False, allow_infinity=False),
    some.text(max_size=8),
    some.sampled_from((SOURCE, "minilm", "ndcg@10", "ild@10", "coverage@10>=0.1")),
)
ANYTHING = some.recursive(
    PLAIN, lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(KEYS), inner, max_size=3)
)
TWISTS = some.dictionaries(some.sampled_from(SECTIONS), ANYTHING, max_size=2)
"""What takes the place of sections of a config."""


@dataclass
class Found:
    """What was answered.

    Attributes:
        wrong: request and answer, where that is a mistake.
        slow: the same of the others, where it came late; that may be for a machine that is busy with something else.
        slowest: seconds.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    slowest: float = 0.0


def fuzz(number: int) -> Found:
    """Sends so many requests to a service of its own, evenly over its operations."""
    found = Found()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), requests.Session() as session:
        warnings.simplefilter("ignore")  # schemathesis and hypothesis on what they are used for here
        root = Path(folder, "root")
        there = {"search": Archive(root, evaluations=EXAMPLES).id, "candidate": "c0000", "name": "c0000-s00"}
        with service(root) as (port, token):
            address = f"http://127.0.0.1:{port}"
            session.headers["Authorization"] = f"Bearer {token}"
            schema = schemathesis.openapi.from_dict(session.get(f"{address}/v1/openapi.json").json())
            operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
            for place, operation in enumerate(operations):
                share = number * (place + 1) // len(operations) - number * place // len(operations)
                _send(operation, share, there, partial(_ask, session=session, address=address, found=found))
    return found


def _send(operation: Any, number: int, there: Mapping[str, str], ask: Callable[[Any], None]) -> None:
    """So many requests to one operation; as many of them break the document as it lets one break."""
    left = number
    for mode in (GenerationMode.NEGATIVE, GenerationMode.POSITIVE):
        wish = left // 2 if mode is GenerationMode.NEGATIVE else left
        # Hypothesis ends early where there are few different requests; they are sent again then.
        for again in range(wish):
            sent = _examples(operation.as_strategy(generation_mode=mode), wish, there, ask, again)
            wish, left = wish - sent, left - sent
            if wish <= 0 or not sent:
                break


def _examples(strategy: Any, number: int, there: Mapping[str, str], ask: Callable[[Any], None], start: int) -> int:
    sent = 0

    @seed(start)
    @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=strategy, known=some.booleans(), twist=TWISTS)
    def send(case: Any, known: bool, twist: Mapping[str, Any]) -> None:
        nonlocal sent
        if known and case.method == "POST" and case.path in ("/v1/searches", "/v1/estimate"):
            case.body, case.media_type = {**CONFIG, **twist}, "application/json"
        if known and case.method != "DELETE":
            case.path_parameters |= {name: value for name, value in there.items() if name in case.path_parameters}
        ask(case)
        sent += 1

    with suppress(Unsatisfiable):  # an operation without parameters has nothing to break
        send()
    return sent


def _ask(case: Any, *, session: requests.Session, address: str, found: Found) -> None:
    began = time.perf_counter()
    case.headers.pop("Authorization", None)
    try:
        with session.request(**case.as_transport_kwargs(base_url=address), stream=True, timeout=4 * HANGS) as answer:
            # Events go on for ever, and their first bytes are answer enough.
            watched = answer.headers.get("content-type", "").startswith("text/event-stream")
            body = next(answer.iter_content(1), b"") if watched else answer.content
    except requests.exceptions.InvalidHeader:
        return  # what no client would send; hypothesis makes another
    took = time.perf_counter() - began
    found.statuses[answer.status_code] += 1
    found.operations[f"{case.operation.method.upper()} {case.operation.path}"] += 1
    found.slowest = max(found.slowest, took)
    refused = answer.status_code >= 400
    is_wrong = answer.status_code >= 500 or (refused and set(json.loads(body)) != {"error"})
    if is_wrong or took > HANGS:
        told = f"{case.as_curl_command()} -> {answer.status_code} after {took:.1f} s: {body[:200]!r}"
        (found.wrong if is_wrong else found.slow).append(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    found = fuzz(options.requests)
    for name, count in sorted(found.operations.items()):
        print(f"{count:6} {name}")
    statuses = dict(sorted(found.statuses.items()))
    print(f"{found.statuses.total()} requests, slowest {found.slowest:.2f} s, by status {statuses}")
    print(*(found.wrong + found.slow)[:20], sep="\n")
    if options.json:
        counts = {"requests": found.statuses.total(), "slowest_s": found.slowest}
        content = {**counts, "wrong": found.wrong, "slow": found.slow}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if found.wrong or found.slow else 0)


if __name__ == "__main__":
    main()
