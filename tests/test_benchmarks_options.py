"""What the table of options keeps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.options import Kept, Option


def test_what_was_measured_is_not_measured_again_for_the_same_data_and_seed(tmp_path: Path) -> None:
    asked = []

    def ask(folder: Path | None, sha256: str, seed: int, towers: int) -> list[float]:
        data: Any = SimpleNamespace(sha256=sha256 * 16)
        users, seconds = Kept(folder, data, seed).get(
            Option({"towers": towers}), lambda option: asked.append(option) or (np.array([0.1, len(asked)]), 3.0)
        )
        assert seconds == 3.0
        return users.tolist()

    folder = tmp_path / "new"
    first = ask(folder, "a", 0, 1)
    assert ask(folder, "a", 0, 1) == first
    others = [ask(folder, "a", 0, 2), ask(folder, "a", 1, 1), ask(folder, "b", 0, 1)]
    assert [number for _, number in others] == [2, 3, 4]
    assert ask(folder, "a", 0, 1) == first
    assert ask(None, "a", 0, 1) == [0.1, 5]
