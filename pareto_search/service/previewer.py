"""Answers for entries that are not deployed: a process that reads a request a line, and writes an answer a line.

A request has `run`, the folder of a search that has ended, `entry`, and the `question` to it; an answer is that of a
deployment, or has an `error`, or a `mistake` that is not of who asks. The end of its input is the end of it.
"""

import json
import os
import sys
import traceback
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pareto_search.errors import ParetoSearchError, RunError
from pareto_search.launch import load_config
from pareto_search.question import Question
from pareto_search.recsys.dataset import load
from pareto_search.results import FRONT
from pareto_search.workers.answer import Desk

SEARCHES, ENTRIES = 2, 8
"""How many of them are kept at hand: each search has its models in memory."""

_desks: OrderedDict[tuple[str, int], Desk] = OrderedDict()


def answered(run: Path, entry: str, question: Question) -> dict[str, Any]:
    """The answer of an entry.

    Raises:
        ParetoSearchError: the entry, the data or the question does not fit, or the search has gone on.
    """
    try:
        key = (str(run), (run / FRONT).stat().st_mtime_ns)  # a search that has gone on since is another one
    except FileNotFoundError:
        raise RunError("the search has gone on since you asked; its entries are there when it has ended") from None
    desk = _desks.get(key)
    if desk is None:
        desk = _desks[key] = Desk(run, [entry], load(**load_config(run).data.arguments()))
        if len(_desks) > SEARCHES:
            _desks.popitem(last=False)
    elif entry not in desk.names:
        desk.swap([*desk.names[1 - ENTRIES :], entry])
    _desks.move_to_end(key)
    [answer] = desk.answer([question.model_copy(update={"entry": entry, "prefer": None})])
    if isinstance(answer, ParetoSearchError):
        raise answer
    return asdict(answer)


def main() -> None:
    """Answers until there is nothing more to read."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            question = Question.model_validate(asked["question"])
            answer = answered(Path(asked["run"]), asked["entry"], question)
        except ParetoSearchError as error:
            answer = {"error": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"mistake": f"a mistake of this program, {type(error).__name__}; the service's log has more"}
        print(json.dumps(answer), file=told, flush=True)


if __name__ == "__main__":
    main()
