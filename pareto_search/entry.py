"""An entry as files: a checkpoint, its serving genes and the components that they blend in."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pareto_search import checkpoint
from pareto_search.candidate import Genes
from pareto_search.errors import CheckpointError, ConfigError, RunError, nearest
from pareto_search.results import find_entry, load_front
from pareto_search.space import BLENDED

SERVING = "serving.json"
FORMATS = ("adapter",)


@dataclass(frozen=True)
class Entry:
    """What it takes to recommend.

    Attributes:
        name: such as `c0007-s03`.
        files: the checkpoint's.
        serving: the serving genes.
        components: name -> files of each component that the serving genes give a weight.
    """

    name: str
    files: Mapping[str, bytes]
    serving: Genes
    components: Mapping[str, Mapping[str, bytes]]

    @property
    def notes(self) -> Mapping[str, Any]:
        """The content of `recommender.json`."""
        return json.loads(self.files["recommender.json"])


def of_run(run: Path, name: str) -> Entry:
    """An entry of a run's front.

    Raises:
        RunError: the front has no such entry.
        CheckpointError: a file of it is missing or changed.
    """
    found = find_entry(load_front(run), name)
    serving: Genes = found["serving"]
    blended = [gene for gene in BLENDED if float(serving.get(gene, 0.0))]
    components = {name: checkpoint.read(run / "components" / name) for name in blended}
    return Entry(name, checkpoint.read(run / "checkpoints" / found["candidate"]), serving, components)


def of_folder(folder: Path) -> Entry:
    """An exported entry.

    Raises:
        CheckpointError: the folder is no export, or a file of it is missing or changed.
    """
    files = checkpoint.read(folder)
    if SERVING not in files:
        raise CheckpointError(f"{folder} has no {SERVING}; expected a folder that 'pareto-search export' wrote")
    content = json.loads(files[SERVING])
    components: dict[str, dict[str, bytes]] = {name: {} for name in content["components"]}
    own: dict[str, bytes] = {}
    for file, data in files.items():
        owner, _, rest = file.partition(".")
        if owner in components:
            components[owner][rest] = data
        elif file != SERVING:
            own[file] = data
    return Entry(content["entry"], own, content["serving"], components)


def export(entry: Entry, folder: Path, form: str = "adapter") -> None:
    """Writes an entry into a new folder that needs nothing else: PEFT loads it as it is.

    The files of a component carry its name in front: `ease.weights.safetensors`.

    Raises:
        ConfigError: the form is unknown.
        RunError: the folder exists and is not empty, or cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"format '{form}' is unknown; {nearest(form, FORMATS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is there already; give --to a new folder")
    content = {"entry": entry.name, "serving": dict(entry.serving), "components": sorted(entry.components)}
    files = dict(entry.files) | {SERVING: json.dumps(content, indent=2, sort_keys=True).encode()}
    for name, parts in entry.components.items():
        files |= {f"{name}.{file}": data for file, data in parts.items()}
    checkpoint.write(folder.absolute(), files)
