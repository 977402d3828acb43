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
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pareto_search.errors import ClusterError, ConfigError, ParetoSearchError, TroubleError, UserError
from pareto_search.question import Canary
from pareto_search.results import write_whole
from pareto_search.service.processes import STATUS, begin
from pareto_search.service.record import UnansweredError
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
        UnansweredError: nobody answers, or not as it should.
    """
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", body, {"Authorization": f"Bearer {token}"})
    try:
        with _opener.open(request, timeout=PATIENCE) as answer:
            content: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        refusal = UnansweredError if error.code >= 500 else ConfigError
        raise refusal(reason(error, "detail", "the deployment's log may say more")) from None
    except (OSError, ValueError, HTTPException) as error:
        raise UnansweredError(
            f"the deployment does not answer ({getattr(error, 'reason', error)}); look at its state"
        ) from None
    return content


class Told:
    """Writes down how things stand. What cannot be written is so later: who asks is answered on a full disk, too.

    `error` is why the process has ended, and `refused` why it goes on with what it serves instead of the latest wish.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATUS
        self._status: dict[str, Any] = {"served": None, "healthy": False, "error": None, "refused": None}
        self._written: Mapping[str, Any] = {}
        self._complaint = ""

    def __call__(self, **changes: Any) -> None:
        self._status |= changes
        if self._status == self._written:
            return
        try:
            write_whole(self._path, json.dumps(self._status))
        except (TroubleError, OSError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                with suppress(OSError):  # the log is on the same disk
                    print(error, flush=True)
        else:
            self._written, self._complaint = dict(self._status), ""


def main(folder: Path) -> None:
    """Serves what the wish says until it is told to stop."""
    begin(folder)
    tell = Told(folder)
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
    done, tried = None, 0
    while True:
        written = (folder / WISH).stat().st_mtime_ns
        wish = json.loads((folder / WISH).read_text(encoding="utf-8"))
        if done is None:
            _wait_for(wish["port"])
            _deploy(folder, wish)
            done = wish
        elif wish == done:
            tell(refused=None)
        elif written != tried:  # else it has been refused, and nobody has asked again
            refused, tried = _changed(folder, done, wish), written
            done = wish if refused is None else done
            tell(refused=refused)
        try:
            tell(served=ask(done["port"], done["token"], "/entries"), healthy=True)
        except UnansweredError:
            tell(healthy=False)
        time.sleep(EVERY)


def _deploy(folder: Path, wish: Mapping[str, Any]) -> None:
    from pareto_search.launch import deploy  # takes a second

    trial = Canary(**wish["canary"]) if wish["canary"] else None
    deploy(folder / RUN, wish["entries"], token=wish["token"], canary=trial, host=HOST, port=wish["port"])


def _changed(folder: Path, done: Mapping[str, Any], wish: Mapping[str, Any]) -> str | None:
    """Changes over to a wish; where that cannot be, serves on what was served, and says why."""
    try:
        _deploy(folder, wish)
    except UserError as error:
        if isinstance(error, ClusterError):  # the change had begun
            _deploy(folder, done)
        return str(error)
    return None


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
