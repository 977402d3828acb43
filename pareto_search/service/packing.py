"""An exported entry as one zip archive; a process of its own exports it, which needs torch for most formats."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO

from pareto_search import results
from pareto_search.errors import ConfigError, RunError
from pareto_search.service.record import MissingError, UnansweredError
from pareto_search.service.turns import Turns

_turns = Turns()

_PROGRAM = """
import sys
from pareto_search.cli import cli
from pareto_search.errors import ConfigError
try:
    cli(standalone_mode=False)
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""
"""The command line, but for its errors: a full disk or a damaged file is no mistake of who asks."""


def packed(run: Path, name: str, form: str) -> BinaryIO:
    """A zip archive of what `pareto-search export` writes, open at its beginning; closed, it is gone.

    Args:
        run: the folder of a search that has ended.

    Raises:
        MissingError: the front has no such entry.
        RunError: there is no front.
        UnansweredError: the process has ended over it.
        ConfigError: what the export complains about.
        ConflictError: too many wait for theirs.
    """
    front = results.load_front(run)
    try:
        results.find_entry(front, name)
    except RunError as error:
        raise MissingError(str(error)) from None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "export")
        command = [sys.executable, "-c", _PROGRAM, "export", str(run), name]
        with _turns.taken():
            ended = subprocess.run(
                [*command, "--to", str(folder), "--format", form],
                capture_output=True,
                text=True,
                check=False,
            )
        lines = ended.stderr.strip().splitlines()
        if ended.returncode == 2 and lines:
            raise ConfigError(lines[-1])
        if ended.returncode:
            print(ended.stderr, file=sys.stderr, flush=True)
            raise UnansweredError("the export has ended before its time; the service's log has more")
        file = tempfile.TemporaryFile()  # noqa: SIM115  # whoever reads it closes it
        with zipfile.ZipFile(file, "w") as archive:
            for part in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.write(part, Path(name, part.relative_to(folder)))
    file.seek(0)
    return file
