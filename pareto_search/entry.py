"""An entry as files: a checkpoint, its serving genes and the components that they blend in."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pareto_search import checkpoint
from pareto_search.candidate import Genes
from pareto_search.errors import CheckpointError
from pareto_search.executor import Files
from pareto_search.fusion import PREFIX, weights_of
from pareto_search.results import find_entry, load_front
from pareto_search.space import BLENDED

SERVING = "serving.json"
VECTORS = "item_vectors"
"""The folder of a run with the item vectors of its front's checkpoints by their names, and the text vectors of the base
model as `BASE`, where distances are measured by them."""
BASE = "base"
WHOSE = "checkpoint.sha256"
"""The file beside item vectors that says of which checkpoint they are, by its `checkpoint.digest`."""
INSIDE = "entry"
"""Where the entry is in an export whose own place belongs to another library's files."""

_OWN = ("adapter_", "recommender.", "features.", PREFIX)
"""How the names of a checkpoint's files begin; an export has a model card and another library's files beside them."""


@dataclass(frozen=True)
class Entry:
    """What it takes to recommend.

    Attributes:
        name: such as `c0007-s03`.
        files: the checkpoint's.
        serving: the serving genes.
        components: name -> files of each component that the serving genes give a weight.
        merged: the folder of a base model that has the adapter in its weights, where the checkpoint has no adapter.
        vectors: the files of the item vectors, and of the base model's text vectors where distances are measured by
            them, where these are known: with them the base model is not needed.
    """

    name: str
    files: Mapping[str, bytes]
    serving: Genes
    components: Mapping[str, Mapping[str, bytes]]
    merged: Path | None = None
    vectors: Files = field(default_factory=dict)

    @property
    def notes(self) -> Mapping[str, Any]:
        """The content of `recommender.json`."""
        return json.loads(self.files["recommender.json"])

    @property
    def fuses(self) -> Mapping[str, float]:
        """The weight of each member of a fused checkpoint, by name; nothing where it is a single one."""
        return weights_of(self.files)

    def to_files(self) -> dict[str, bytes]:
        """The content of a folder that `of_folder` reads; the files of a component carry its name in front."""
        content = {"entry": self.name, "serving": dict(self.serving), "components": sorted(self.components)}
        files = dict(self.files) | {SERVING: json.dumps(content, indent=2, sort_keys=True).encode()}
        for name, parts in self.components.items():
            files |= {f"{name}.{file}": data for file, data in parts.items()}
        return files


def of_run(run: Path, name: str, *, vectors: bool = False) -> Entry:
    """An entry of a run's front.

    Args:
        vectors: whether with its item vectors, if the run has them.

    Raises:
        RunError: the front has no such entry.
        CheckpointError: a file of it is missing or changed, or its item vectors are those of another checkpoint.
    """
    found = find_entry(load_front(run), name)
    serving: Genes = found["serving"]
    blended = [gene for gene in BLENDED if float(serving.get(gene, 0.0))]
    components = {name: checkpoint.read(run / "components" / name) for name in blended}
    if not vectors:
        return Entry(name, checkpoint.read(run / "checkpoints" / found["candidate"]), serving, components)
    files, known = with_vectors(run, found["candidate"])
    base = run / VECTORS / BASE
    if known and base.is_dir():
        known |= checkpoint.read(base)
    return Entry(name, files, serving, components, vectors=known)


def with_vectors(run: Path, candidate: str) -> tuple[Files, dict[str, bytes]]:
    """The files of a checkpoint and of its item vectors, of which a run of an older release has none.

    Raises:
        CheckpointError: as for `of_run`.
    """
    files, own = checkpoint.read(run / "checkpoints" / candidate), run / VECTORS / candidate
    if not own.is_dir():
        return files, {}
    vectors = checkpoint.read(own)
    if vectors.pop(WHOSE, b"").decode() != checkpoint.digest(files):
        raise CheckpointError(f"{own} is not of the checkpoint that is there; delete it, or restore both")
    return files, vectors


def of_folder(folder: Path) -> Entry:
    """An exported entry, in whatever format.

    Raises:
        CheckpointError: the folder is no export, or a file of it is missing or changed.
    """
    if (folder / INSIDE).is_dir():
        folder = folder / INSIDE
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
        elif file.startswith(_OWN):
            own[file] = data
    return Entry(content["entry"], own, content["serving"], components, folder if "config.json" in files else None)
