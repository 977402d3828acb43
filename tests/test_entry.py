import json
import shutil
from pathlib import Path

import pytest

from pareto_search import checkpoint, entry
from pareto_search.errors import CheckpointError

FILES = {"adapter_config.json": b"{}", "recommender.json": b'{"metrics": ["ndcg@10"]}'}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one entry, which blends in EASE and not SASRec."""
    checkpoint.write(tmp_path / "checkpoints" / "c0001", FILES)
    checkpoint.write(tmp_path / "components" / "ease", {"weights.safetensors": b"ease"})
    checkpoint.write(tmp_path / "components" / "sasrec", {"recommender.json": b"sasrec"})
    found = {"entry": "c0001-s03", "candidate": "c0001", "serving": {"ease": 0.3, "sasrec": 0.0, "diversity": 0.2}}
    (tmp_path / "front.json").write_text(json.dumps({"front": [found]}))
    return tmp_path


def test_an_entry_has_its_checkpoint_and_the_components_that_it_gives_a_weight(run: Path) -> None:
    found = entry.of_run(run, "c0001-s03")
    assert dict(found.files) == FILES
    assert found.components == {"ease": {"weights.safetensors": b"ease"}}
    assert found.notes == {"metrics": ["ndcg@10"]}


def test_an_entry_comes_with_its_item_vectors_where_these_are_of_its_checkpoint(run: Path) -> None:
    vectors = run / "item_vectors"
    checkpoint.write(vectors / "base", {"features.safetensors": b"text"})
    assert entry.of_run(run, "c0001-s03", vectors=True) == entry.of_run(run, "c0001-s03")  # of an older release
    own = {"item_vectors.safetensors": b"items"}
    checkpoint.write(vectors / "c0001", {**own, "checkpoint.sha256": checkpoint.digest(FILES).encode()})
    found = entry.of_run(run, "c0001-s03", vectors=True)
    assert found.vectors == {**own, "features.safetensors": b"text"}
    assert entry.of_run(run, "c0001-s03").vectors == {}
    assert not found.to_files().keys() & found.vectors.keys()
    checkpoint.write(run / "checkpoints" / "c0001", {**FILES, "adapter_config.json": b"[]"})  # made again, say
    for files in ({**own, "checkpoint.sha256": checkpoint.digest(FILES).encode()}, own):
        checkpoint.write(vectors / "c0001", files)
        with pytest.raises(CheckpointError, match=r"item_vectors/c0001 is not of the checkpoint that is there; delete"):
            entry.of_run(run, "c0001-s03", vectors=True)


def test_an_entry_comes_back_from_its_files(run: Path, tmp_path: Path) -> None:
    found = entry.of_run(run, "c0001-s03")
    checkpoint.write(tmp_path / "exported", found.to_files() | {"README.md": b"a card"})
    assert entry.of_folder(tmp_path / "exported") == found


def test_an_entry_is_found_inside_of_another_librarys_folder(run: Path, tmp_path: Path) -> None:
    found = entry.of_run(run, "c0001-s03")
    checkpoint.write(tmp_path / "exported" / "entry", found.to_files())
    (tmp_path / "exported" / "modules.json").touch()
    assert entry.of_folder(tmp_path / "exported") == found


def test_a_component_that_is_gone_is_named(run: Path) -> None:
    shutil.rmtree(run / "components" / "ease")
    with pytest.raises(CheckpointError, match="components/ease"):
        entry.of_run(run, "c0001-s03")


def test_a_component_with_a_changed_byte_is_named(run: Path) -> None:
    (run / "components" / "ease" / "weights.safetensors").write_bytes(b"eaze")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        entry.of_run(run, "c0001-s03")


def test_a_checkpoint_is_no_export(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no serving\.json"):
        entry.of_folder(run / "checkpoints" / "c0001")
