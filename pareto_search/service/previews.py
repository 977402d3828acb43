"""What entries would recommend that are not deployed: a process of its own answers, while anybody asks."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from pareto_search.errors import ConfigError
from pareto_search.question import Question
from pareto_search.service.record import UnansweredError
from pareto_search.service.turns import Turns

IDLE, PATIENCE = 300.0, 300.0
"""Seconds until the process ends where nobody asks any more, and where it does not answer."""


class Previews:
    """The one process, started by the first question."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._child: subprocess.Popen[str] | None = None
        self._end: threading.Timer | None = None

    def recommend(self, run: Path, entry: str, question: Question) -> dict[str, Any]:
        """What an entry answers; who it is asked of stands in place of what the question has of it.

        Args:
            run: the folder of a search that has ended.

        Raises:
            ConfigError: the entry or the question does not fit.
            UnansweredError: the process has ended over it, or made a mistake.
            ConflictError: too many wait for theirs.
        """
        asked = {"run": str(run), "entry": entry, "question": question.model_dump(mode="json")}
        with self._turns.taken():
            child = self._started()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                self._let_live(child, PATIENCE)
                print(json.dumps(asked), file=child.stdin, flush=True)
                line = child.stdout.readline()
            except OSError:  # a broken pipe
                line = ""
            self._let_live(child, IDLE)
        if not line:
            raise UnansweredError("the process that answers has ended, or had no memory left; ask again")
        answer: dict[str, Any] = json.loads(line)
        if "mistake" in answer:
            raise UnansweredError(answer["mistake"])
        if "error" in answer:
            raise ConfigError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._end is not None:
            self._end.cancel()
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _started(self) -> "subprocess.Popen[str]":
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "pareto_search.service.previewer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._child

    def _let_live(self, child: "subprocess.Popen[str]", seconds: float) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = threading.Timer(seconds, child.kill)
        self._end.daemon = True
        self._end.start()
