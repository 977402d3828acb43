"""An entry in a folder of its own that needs nothing else, as it is or in the format of another library.

    adapter                 the checkpoint as it is: PEFT loads it over the base model, or each member of a fused one
    merged                  a Hugging Face model with the adapter in its weights
    sentence-transformers   the text encoder for that library, and the checkpoint inside, in `entry/`
    onnx                    the text encoder for onnxruntime in float32 and int8, and the checkpoint inside, in `entry/`

All of them hold what the recommender needs beside the text encoder, and a model card; `entry.of_folder` reads each.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from pareto_search import checkpoint
from pareto_search.card import card
from pareto_search.entry import INSIDE, Entry, of_run
from pareto_search.errors import ConfigError, RunError, nearest
from pareto_search.recsys.dataset import Dataset
from pareto_search.results import load_front

FORMATS = ("adapter", "merged", "sentence-transformers", "onnx")
CARD = "README.md"


def export(run: Path, name: str, data: Dataset, folder: Path, form: str = "adapter") -> Mapping[str, Any]:
    """Writes an entry of a run's front into a new folder.

    Args:
        data: what the search was run on.

    Returns:
        What was measured: the least cosine between an item's text vector and the checkpoint's and, for ONNX, what
        float32 and int8 are worth.

    Raises:
        ConfigError: the form is unknown or none for a fused entry, or a package that it needs is missing.
        RunError: the front has no such entry; or the folder exists and is not empty, or cannot be written.
        CheckpointError: a file of the entry is missing or changed, or the export is not what the checkpoint is.
    """
    if form not in FORMATS:
        raise ConfigError(f"format '{form}' is unknown; {nearest(form, FORMATS)}")
    found, front = of_run(run, name), load_front(run)
    if found.fuses and form != "adapter":
        members = ", ".join(found.fuses)
        raise ConfigError(
            f"{name} averages the scores of {members}, and {form} is for one of them; export it as adapter"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is there already; give --to a new folder")
    folder = folder.absolute()
    files, measures = (found.to_files(), {}) if form == "adapter" else _converted(found, data, form)
    files[CARD] = card(found, front, data, form, measures=measures, files=files).encode()
    if form in ("adapter", "merged"):
        checkpoint.write(folder, files)
    else:
        _write(folder, files, found)
    return measures


def _converted(entry: Entry, data: Dataset, form: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    from pareto_search.workers.convert import convert, features  # torch, which the format adapter does without

    with TemporaryDirectory() as place:
        measures = convert(entry, data, form, Path(place))
        files = {str(p.relative_to(place)): p.read_bytes() for p in sorted(Path(place).rglob("*")) if p.is_file()}
    if form == "merged":
        own = {name: content for name, content in entry.to_files().items() if not name.startswith("adapter_")}
        own["recommender.json"] = json.dumps({**entry.notes, "dtype": "float32"}, indent=2, sort_keys=True).encode()
        files |= own
        if data.categories is None:
            files |= features(entry, data)
    return files, measures


def _write(folder: Path, files: Mapping[str, bytes], entry: Entry) -> None:
    """Writes another library's files with the entry inside, whole or not at all."""
    new = folder.with_name(f".{folder.name}.{uuid4().hex}")
    try:
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content)
        checkpoint.write(new / INSIDE, entry.to_files())
        os.replace(new, folder)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}); mend that, or give --to another folder"
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)  # gone already, unless something went wrong
