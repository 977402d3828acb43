"""One search in a process of its own, which outlives the service: `python -m pareto_search.service.runner FOLDER`.

The service and this process speak through files in the folder: `config.yaml` says what to search, `status.json` how it
goes and how it ended, and the lock on `runner.lock`, which holds the process's id, whether it is there at all.
"""

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pareto_search.config import SearchConfig
from pareto_search.errors import ParetoSearchError
from pareto_search.results import write_whole
from pareto_search.service.processes import STATUS, begin

if TYPE_CHECKING:
    from pareto_search.search import Progress

CONFIG, RUN = "config.yaml", "run"


class _Told:
    """Writes down what the search tells."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATUS
        self._status: dict[str, Any] = {"notice": "Starting.", "progress": None, "ended": None, "error": None}
        self._write()

    def notice(self, text: str) -> None:
        print(text, flush=True)
        self._status["notice"] = text
        self._write()

    def progress(self, now: "Progress") -> None:
        self._status |= {"notice": "Searching.", "progress": asdict(now)}
        self._write()

    def end(self, how: str, error: str | None = None) -> None:
        print(error or how, flush=True)
        self._status |= {"ended": how, "error": error}
        self._write()

    def _write(self) -> None:
        write_whole(self._path, json.dumps(self._status))


def main(folder: Path, address: str | None) -> None:
    """Searches to the end of the budget, or until it is told to stop."""
    begin(folder)
    told = _Told(folder)
    from pareto_search.launch import run_search  # takes a second
    from pareto_search.search import Watcher

    try:
        config = SearchConfig.load(folder / CONFIG)
        run_search(config, folder / RUN, address=address, watcher=Watcher(told.notice, told.progress))
    except ParetoSearchError as error:
        told.end("failed", str(error))
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit):  # the latter is how Ray ends a process at SIGTERM
        told.end("stopped")
        sys.exit(130)
    except Exception as error:
        traceback.print_exc()
        told.end("failed", f"a mistake of this program, {type(error).__name__}; the service's log of it has more")
        sys.exit(1)
    told.end("finished")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
