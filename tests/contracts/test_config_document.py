"""docs/config.md names every key of a config and every gene, with the default that it really has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from pareto_search.config import (
    ColumnsSection,
    DataSection,
    ModelSection,
    ObjectiveSection,
    OptimiserSection,
    SearchConfig,
    WorkersSection,
)
from pareto_search.space import BLENDED, Gene, default_genes

DOCUMENT = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
SECTIONS = {
    "## `data`": DataSection,
    "### `data.columns`": ColumnsSection,
    "## `model`": ModelSection,
    "## `objectives` and `constraints`": ObjectiveSection,
    "## `search`": OptimiserSection,
    "## `workers` and `store`": WorkersSection,
}


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of a section's tables, without their heads."""
    begin = DOCUMENT.index(f"{heading}\n") + len(heading)
    for line in re.split(r"^#+ ", DOCUMENT[begin:], flags=re.MULTILINE)[0].splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def told(value: Any) -> str:
    """A default as the document has it."""
    if value is PydanticUndefined:
        return "needed"
    if value is None:
        return "–"
    if isinstance(value, bool | list):
        return f"`{json.dumps(value)}`"
    return f"`{value}`".replace("|", r"\|") if isinstance(value, str) else f"{value:g}"


def test_the_default_objectives_are_there() -> None:
    told = {
        name.strip("`"): [float(n) for n in numbers.split(",")]
        for name, numbers, _ in rows("### The default objectives")
    }
    given = SearchConfig.parse({"name": "any", "data": {"source": "movielens-100k"}}).objectives
    assert told == {o.name: [o.reference, o.ideal] for o in given}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_there_with_its_default(heading: str) -> None:
    keys = {}
    for name, field in SECTIONS[heading].model_fields.items():
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        keys[name] = "`[steps]`" if name == "rungs" else told(default)
    assert {name.strip("`"): default for name, default, _ in rows(heading)} == keys


def test_every_section_is_there() -> None:
    names = {field.alias or name for name, field in SearchConfig.model_fields.items()} - {"name"}
    assert all(re.search(rf"^## .*`{name}`", DOCUMENT, flags=re.MULTILINE) for name in names)


def searched(gene: Gene) -> str:
    """What a search varies of a gene, as the document has it."""
    if gene.fitted:
        return "`fitted`"
    if gene.default is not None:
        return told(gene.default)
    if gene.kind in ("choice", "boolean"):
        return ", ".join(told(choice) for choice in gene.choices or (False, True))
    return f"{gene.low:.3g} to {gene.high:.3g}"


def test_every_gene_is_there_with_what_is_searched() -> None:
    objectives = SearchConfig.parse({"name": "a", "data": {"source": "b"}}).objectives
    genes = {gene.name: searched(gene) for gene in default_genes(objectives, BLENDED)}
    weights = {genes.pop(name) for name in list(genes) if name.startswith("weight.")}
    genes |= {"sasrec": "absent", "weight.METRIC": weights.pop()}
    assert not weights
    assert {name.strip("`"): what for name, what, _ in rows("## `space`")} == genes
