"""A deployment in a process of its own that outlives the service: `python -m pareto_search.service.deployer FOLDER`.

The service and this process speak through files in the folder: `wish.json` says what is to be served and may change at
any time, `status.json` what is, and `run/` holds the entries with all that they need, whatever becomes of their search.
"""

import json
import socket
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pareto_search.errors import ConfigError, ParetoSearchError, RunError
from pareto_search.question import Canary
from pareto_search.results import write_whole
from pareto_search.service.processes import STATUS, begin
from pareto_search.service.refusal import reason

WISH, RUN = "wish.json", "run"
HOST = "127.0.0.1"
EVERY = 1.0
"""Seconds between two looks at the wish and at what is served."""
PATIENCE = 30.0
"""Seconds for an answer, and for a port that one who was killed has left behind."""

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine's loopback


def ask(port: int, token: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    """What a deployment on this machine answers.

    Args:
        body: JSON for a POST; None is a GET.

    Raises:
        ConfigError: it refuses the request, and says why.
        RunError: nobody answers, or not as it should.
    """
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", body, {"Authorization": f"Bearer {token}"})
    try:
        with _opener.open(request, timeout=PATIENCE) as answer:
            content: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        refusal = RunError if error.code >= 500 else ConfigError
        raise refusal(reason(error, "detail", "the deployment's log may say more")) from None
    except (OSError, ValueError, HTTPException) as error:
        raise RunError(
            f"the deployment does not answer ({getattr(error, 'reason', error)}); look at its state"
        ) from None
    return content


def main(folder: Path) -> None:
    """Serves what the wish says until it is told to stop."""
    begin(folder)
    status: dict[str, Any] = {"served": None, "healthy": False, "error": None}

    def tell(**changes: Any) -> None:
        before = dict(status)
        status.update(changes)
        if status != before or not changes:
            write_whole(folder / STATUS, json.dumps(status))

    tell()

    try:
        _serve(folder, tell)
    except ParetoSearchError as error:
        tell(healthy=False, error=str(error))
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit):  # the latter is how Ray ends a process at SIGTERM
        sys.exit(130)
    except Exception as error:
        traceback.print_exc()
        tell(healthy=False, error=f"a mistake of this program, {type(error).__name__}; the deployment's log has more")
        sys.exit(1)


def _serve(folder: Path, tell: Callable[..., None]) -> None:
    from pareto_search.launch import deploy  # takes a second

    done = None
    while True:
        wish = json.loads((folder / WISH).read_text(encoding="utf-8"))
        port, token, canary = wish["port"], wish["token"], wish["canary"]
        if done is None:
            _wait_for(port)
        if wish != done:
            trial = Canary(**canary) if canary else None
            deploy(folder / RUN, wish["entries"], token=token, canary=trial, host=HOST, port=port)
            done = wish
        try:
            tell(served=ask(port, token, "/entries"), healthy=True)
        except RunError:
            tell(healthy=False)
        time.sleep(EVERY)


def _wait_for(port: int) -> None:
    """Until nobody listens there; whose port it was may be about to find out that it was killed."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with socket.socket() as line:
            if line.connect_ex((HOST, port)):
                return
        time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
