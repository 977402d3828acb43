"""A folder that holds another search's result gives it to nobody."""

from pathlib import Path

import pytest

from benchmarks.practitioner import configured
from benchmarks.runs import want_same


def test_a_folder_is_refused_to_a_search_of_another_budget(tmp_path: Path) -> None:
    config = configured(0, 20.0)
    want_same(tmp_path, config)
    (tmp_path / "search.yaml").write_text(config.to_yaml())
    want_same(tmp_path, configured(0, 20))
    for other in (configured(0, 8.0), configured(1, 20.0)):
        with pytest.raises(SystemExit, match="--out another folder"):
            want_same(tmp_path, other)
