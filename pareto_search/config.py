"""The config of a search: one YAML file, checked as a whole before anything is started.

Every mistake in it is one `ConfigError`, one line that names the dotted key, what it is and what was expected.
"""

import hashlib
import json
import math
import os
import re
import reprlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pareto_search.errors import ConfigError, nearest
from pareto_search.objective import Constraint, Objective
from pareto_search.recsys.dataset import MOVIELENS, Columns
from pareto_search.recsys.metrics import parse_metric
from pareto_search.space import ACCURACY, BLENDED, SASREC, SearchSpace, default_genes, metric_family

MINILM = "minilm"
"""The alias of the base model that comes with the package."""


def _metric(name: str) -> str:
    try:
        parse_metric(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return name


def _constraint(text: str) -> str:
    try:
        _metric(Constraint.parse(text).metric)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


def _whole_above_one(amount: float) -> float:
    # Ray shares a resource only below 1.
    if amount > 1 and not amount.is_integer():
        raise ValueError(f"{amount:g} cannot be had; expected a whole number, or a fraction below 1")
    return amount


def _database_url(url: str) -> str:
    # A URL may hold a password, so the message does not repeat it.
    if "://" not in url:
        raise ValueError("no database URL; expected one such as postgresql://user@host/database, or null")
    return url


Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
Amount = Annotated[FiniteFloat, AfterValidator(_whole_above_one)]
Listed = Strict(False)
"""YAML has lists where a frozen model has tuples."""


class _Section(BaseModel):
    # Strict: a quoted "16" or a `yes` where a number belongs is a mistake, not a number.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ColumnsSection(_Section):
    """See `recsys.dataset.Columns`."""

    user: Text
    item: Text
    rating: Text | None = None
    timestamp: Text | None = None
    text: Annotated[tuple[Text, ...], Listed, Field(min_length=1)]
    categories: Text | None = None
    separator: Text = "|"
    groups: Annotated[tuple[Text, ...], Listed] = ()
    domain: Text | None = None


SPLITTING = ("split", "tie_seed", "target", "shots")
"""The keys of a data section that say how the data is split."""


class DataSection(_Section):
    """Either `source`, or `interactions`, `items`, perhaps `users`, and `columns`; and how the data is split.

    Attributes:
        split, tie_seed, target, shots: see `recsys.split.split`; `SPLITTING` names them.
    """

    source: Text | None = None
    interactions: Text | None = None
    items: Text | None = None
    users: Text | None = None
    columns: ColumnsSection | None = None
    split: Literal["leave_last_out", "temporal"] = "leave_last_out"
    tie_seed: Seed = 0
    target: Text | None = None
    shots: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _has_domains(self) -> "DataSection":
        if self.shots is not None and self.target is None:
            raise ValueError("has shots and no target; expected the domain that few users are known of as target")
        if self.target is not None and self.columns is not None and self.columns.domain is None:
            raise ValueError("has a target and no columns.domain; expected it to name the column of the items' domains")
        return self

    @model_validator(mode="after")
    def _is_given_once(self) -> "DataSection":
        tables = [self.interactions, self.items, self.columns]
        if any(t is not None for t in tables) if self.source else any(t is None for t in tables):
            raise ValueError("given incompletely or twice; expected either source, or interactions, items and columns")
        if (self.users is None) != (self.columns is None or not self.columns.groups):
            raise ValueError("has one of users and columns.groups; expected both, or neither")
        return self

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `recsys.dataset.load`."""
        if self.columns is None:
            return {"source": self.source}
        columns = Columns(**self.columns.model_dump())
        return {"interactions": self.interactions, "items": self.items, "users": self.users, "columns": columns}

    def at(self, place: str) -> "DataSection":
        """The same tables or atomic files at another place, split in the same way; see `SearchConfig.refreshed`."""
        if place.endswith((".yaml", ".yml")):
            other = SearchConfig.load(place).data
            return other.model_copy(update={name: getattr(self, name) for name in SPLITTING})
        if self.interactions is None or self.items is None:
            return self.model_copy(update={"source": place})
        tables = {"interactions": self.interactions, "items": self.items, "users": self.users}
        there = {k: f"{place.rstrip('/')}/{PurePosixPath(path).name}" for k, path in tables.items() if path is not None}
        return self.model_copy(update=there)

    def resolved(self, folder: Path) -> "DataSection":
        """With paths that are relative to `folder` made absolute; URLs and known data sets stay."""
        given = {
            "source": self.source,
            "interactions": self.interactions,
            "items": self.items,
            "users": self.users,
        }
        paths = {k: v for k, v in given.items() if v is not None and v != MOVIELENS and "://" not in v}
        return self.model_copy(update={k: os.path.abspath(folder / v) for k, v in paths.items()})


class ModelSection(_Section):
    """The base model, and the recommender on top of it.

    Attributes:
        base: `minilm`, a local folder or a hub id.
        dtype: of the base model; `auto` is bfloat16 where the hardware multiplies it faster. With `nf4` its linear maps
            are kept in 4 bits, and all else is bfloat16.
        history: how many of a user's last items the tower reads.
        tower: what makes a user of these items.
        towers: how many towers share the text vectors; they differ by chance, and a score is the mean of theirs. Each
            has ID embeddings of its own: with a hundred thousand items one is enough to pay for.
        time_gaps: whether the attention tower also reads how long after the one before it each of these came, where
            the data has times.
        groups: which of the data's groups the attention tower reads of a user, such as `occupation`; None for none.
        width: the size of item and user vectors.
    """

    base: Text = MINILM
    revision: Text | None = None
    dtype: Literal["auto", "bfloat16", "float32", "nf4"] = "auto"
    max_item_tokens: Annotated[int, Field(ge=3)] = 32  # two of them are the special tokens
    history: Count = 50
    tower: Literal["attention", "decayed_mean"] = "attention"
    towers: Annotated[int, Field(ge=1, le=16)] = 4
    time_gaps: bool = True
    groups: Annotated[tuple[Text, ...], Listed, Field(min_length=1)] | None = None
    width: Annotated[int, Field(ge=2, multiple_of=2)] = 128

    def resolved(self, folder: Path) -> "ModelSection":
        """With a `base` that is a folder under `folder` made absolute; what is none is an alias or a hub id."""
        path = folder / self.base
        is_folder = self.base != MINILM and path.is_dir()
        return self.model_copy(update={"base": os.path.abspath(path)}) if is_folder else self


class ObjectiveSection(_Section):
    """See `objective.Objective`; the direction is the metric's own."""

    metric: Annotated[str, AfterValidator(_metric)]
    reference: FiniteFloat
    ideal: FiniteFloat

    @model_validator(mode="after")
    def _ideal_is_better(self) -> "ObjectiveSection":
        objective = self.objective
        side = "above" if objective.direction == "maximise" else "below"
        if self.reference == self.ideal or (self.ideal > self.reference) != (side == "above"):
            raise ValueError(
                f"the ideal of {self.metric} is {self.ideal:g}; expected one {side} its reference {self.reference:g}, "
                f"because it is to {objective.direction}"
            )
        return self

    @property
    def objective(self) -> Objective:
        return Objective(self.metric, parse_metric(self.metric).direction, self.reference, self.ideal)


_DEFAULT_OBJECTIVES = (
    ObjectiveSection(metric="ndcg@10", reference=0.02, ideal=0.15),
    ObjectiveSection(metric="ild@10", reference=0.4, ideal=1.0),
    ObjectiveSection(metric="novelty@10", reference=0.1, ideal=0.8),
    ObjectiveSection(metric="credibility@10", reference=0.5, ideal=0.85),
)


class OptimiserSection(_Section):
    """The section `search`: the optimiser, its budget and what it keeps.

    Attributes:
        candidates, minutes: the budget; whichever is spent first ends the search.
        mode: `async` tells results as they come, `ordered` as they were asked, which repeats bit for bit.
        steps: training steps of the full rung.
        rungs: steps at which candidates are scored and only the better half or so goes on; ends with `steps`, and is
            only that where absent.
        patience: a fine-tuning looks at validation each tenth of `steps`, ends after so many looks at which its loss
            there was no lower than ever before, and goes back to where it was lowest; None for all steps. It wants the
            full rung alone. A lineage is counted with the steps that were allowed.
        inheritance: whether a child starts from its first parent's weights, and not from the warm start.
        merging: whether front members are also averaged, which costs no training.
        fusions: how often the scores of some front members are averaged too, each time as one checkpoint more, which
            costs no training; they come when the budget is spent, whatever time that leaves.
        candidate_timeout: seconds for a candidate alone; side by side with others (`workers.pack`) it has as many times
            that.
    """

    algorithm: Literal["nsga2", "spea2"] = "nsga2"
    population: Annotated[int, Field(ge=2)] = 16
    candidates: Count = 48
    minutes: Annotated[FiniteFloat, Field(gt=0)] | None = None
    seed: Seed = 0
    mode: Literal["async", "ordered"] = "async"
    steps: Count = 40
    rungs: Annotated[tuple[Count, ...], Listed, Field(validate_default=True)] = ()
    patience: Count | None = None
    inheritance: bool = False
    merging: bool = True
    fusions: Annotated[int, Field(ge=0)] = 0
    serving_settings: Count = 64
    candidate_timeout: Annotated[FiniteFloat, Field(gt=0)] = 600.0
    keep_checkpoints: Literal["front", "all"] = "front"

    @field_validator("rungs")
    @classmethod
    def _end_with_steps(cls, rungs: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        steps = info.data.get("steps")
        if steps is None:  # `steps` has an error of its own
            return rungs
        rungs = rungs or (steps,)
        if list(rungs) != sorted(set(rungs)) or rungs[-1] != steps:
            raise ValueError(f"{list(rungs)} does not fit; expected growing numbers that end with steps, {steps}")
        left = info.data.get("candidates", math.inf)
        for lower, upper in pairwise(rungs):
            left = left * lower // upper
        if left < 1:
            raise ValueError(
                f"{list(rungs)} lets none of {info.data['candidates']} candidates reach the full rung; "
                "expected more candidates, or fewer or closer rungs"
            )
        return rungs


class WorkersSection(_Section):
    """How many workers there are, and what each of them asks Ray for; below 1 a CPU or GPU is shared.

    Attributes:
        pack: how many candidates a worker trains side by side. On a CPU more than one does not pay; on a GPU each takes
            longer, but more of them end in an hour.
    """

    count: Count = 2
    cpus: Annotated[Amount, Field(gt=0)] = 1.0
    gpus: Annotated[Amount, Field(ge=0)] = 0.0
    pack: Count = 1


class SearchConfig(_Section):
    """What a search is made of. `load` and `parse` are the way in.

    Attributes:
        space: gene -> one fixed value, a range [low, high], a list of choices or `fitted`; the others keep their
            defaults.
        store: a database URL; None is the run folder's own.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    data: DataSection
    model: ModelSection = ModelSection()
    objective_sections: Annotated[tuple[ObjectiveSection, ...], Listed, Field(alias="objectives")] = _DEFAULT_OBJECTIVES
    constraint_texts: Annotated[
        tuple[Annotated[str, AfterValidator(_constraint)], ...], Listed, Field(alias="constraints")
    ] = ()
    space: dict[str, Any] = {}
    search: OptimiserSection = OptimiserSection()
    workers: WorkersSection = WorkersSection()
    store: Annotated[str, AfterValidator(_database_url)] | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, in the config's order."""
        return tuple(section.objective for section in self.objective_sections)

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints, in the config's order."""
        return tuple(Constraint.parse(text) for text in self.constraint_texts)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is evaluated: every metric of an objective or a constraint, once."""
        return tuple(dict.fromkeys([*(o.name for o in self.objectives), *(c.metric for c in self.constraints)]))

    @property
    def search_space(self) -> SearchSpace:
        """The genes that vary, and those that are fixed or fitted."""
        return SearchSpace.build(default_genes(self.objectives, self.blended), self.space)

    def splitting(self) -> dict[str, Any]:
        """The keyword arguments of `recsys.split.split`, beside the data set."""
        data = self.data
        how = {"strategy": data.split, "tie_seed": data.tie_seed, "target": data.target, "shots": data.shots}
        by = sorted({by for name in self.metrics if (by := parse_metric(name).by) is not None})
        groups = {"groups": list(self.model.groups or ()), "by": by}
        return how | {name: names for name, names in groups.items() if names}

    @property
    def blended(self) -> tuple[str, ...]:
        """The components that entries blend in."""
        return tuple(name for name in BLENDED if name != SASREC or name in self.space)

    @classmethod
    def load(cls, path: str | Path) -> "SearchConfig":
        """Reads a YAML file; relative paths in it are relative to its folder.

        Raises:
            ConfigError: it cannot be read, or does not fit.
        """
        return cls.parse(read(Path(path)), Path(path).parent)

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], folder: str | Path = ".") -> "SearchConfig":
        """Checks a config that has been read.

        Args:
            folder: what relative paths are relative to; the result's are absolute.

        Raises:
            ConfigError: a key is unknown or missing, or a value does not fit.
        """
        try:
            config = cls.model_validate(dict(mapping))
        except ValidationError as error:
            raise ConfigError(_line(error)) from None
        paths = {"data": config.data.resolved(Path(folder)), "model": config.model.resolved(Path(folder))}
        return config.model_copy(update=paths)

    def refreshed(self, data: str, name: str | None = None) -> "SearchConfig":
        """The same search on newer data.

        Args:
            data: a folder, or the URL of one, with files of the same names as the older data's; or a config, whose
                section `data` is taken. The split stays.
            name: of the newer search.

        Raises:
            ConfigError: the config or the name does not fit, or a shared store wants another one.
        """
        if self.store is not None and name in (None, self.name):
            raise ConfigError(f"the store of {self.name} is shared; give the new search another name with --name")
        section = self.data.at(data)
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return self.parse(
            content | {"data": section.model_dump(mode="json", exclude_none=True)} | ({"name": name} if name else {})
        )

    def to_yaml(self) -> str:
        """The resolved config, which `load` reads back as an equal one."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def identity(self) -> str:
        """The sha256 of all that decides what a search proposes and scores: budget, workers and store do not, and
        fusions only come after the budget.
        """
        return hashlib.sha256(json.dumps(self._decisive(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: "SearchConfig") -> list[str]:
        """The dotted keys by which the other config is of another search."""
        mine, others = _dotted(self._decisive()), _dotted(other._decisive())
        return sorted(key for key in mine.keys() | others.keys() if mine.get(key) != others.get(key))

    def _decisive(self) -> dict[str, Any]:
        budget = {"candidates", "minutes", "candidate_timeout", "keep_checkpoints", "fusions"}
        exclude: Any = {"search": budget, "workers": True, "store": True}
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=exclude)

    @model_validator(mode="after")
    def _fits_together(self) -> "SearchConfig":
        # ConfigErrors pass through pydantic as they are.
        if self.model.groups and self.model.tower != "attention":
            raise ConfigError("model.groups is what the attention tower reads; expected no groups, or tower: attention")
        names = [o.name for o in self.objectives]
        repeated = next((n for n in names if names.count(n) > 1), None)
        if repeated is not None:
            raise ConfigError(f"objectives names {repeated} twice; expected each metric once")
        if len(names) < 2:
            raise ConfigError(f"objectives has {len(names)} entries; expected at least two to trade off")
        if not any(metric_family(n) in ACCURACY for n in names):
            raise ConfigError(
                f"objectives has no accuracy metric, and training needs one; expected one of {', '.join(ACCURACY)} "
                "beside the others, such as ndcg@10"
            )
        for family, column, kind in (("credibility", "rating", "ratings"), ("calibration", "categories", "categories")):
            needy = next((n for n in self.metrics if n.startswith(f"{family}@")), None)
            if needy is not None and self.data.columns is not None and getattr(self.data.columns, column) is None:
                raise ConfigError(
                    f"{needy} needs {kind}; expected data.columns.{column} to name their column, or objectives and "
                    "other metrics without it (it may be one of the default objectives)"
                )
        if self.search.patience and len(self.search.rungs) > 1:
            raise ConfigError(
                f"search.patience is {self.search.patience}, but rungs end candidates too; use one of search.patience "
                "and search.rungs"
            )
        if "latency" in self.metrics and self.search.mode == "ordered":
            raise ConfigError(
                "metric 'latency' is another each time, but in ordered mode a search repeats itself bit for bit; use "
                "search.mode async"
            )
        if "latency" in self.metrics and self.workers.pack > 1:
            raise ConfigError(
                f"workers.pack is {self.workers.pack}, and 'latency' would be that of a worker that trains others "
                "meanwhile; use workers.pack 1"
            )
        if self.workers.pack > 1 and self.search.mode == "ordered":
            raise ConfigError(
                f"workers.pack is {self.workers.pack}, but in ordered mode a search repeats itself bit for bit, and in "
                "a pack the last bits depend on who trains beside whom; use workers.pack 1, or search.mode async"
            )
        _ = self.search_space  # raises where `space` does not fit the genes
        return self


def _dotted(content: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        f"{key}.{name}": v for key, value in content.items() if isinstance(value, dict) for name, v in value.items()
    }
    return inner | {key: value for key, value in content.items() if not isinstance(value, dict)}


_SECTIONS: Mapping[str, type[_Section]] = {
    "": SearchConfig,
    "data": DataSection,
    "data.columns": ColumnsSection,
    "model": ModelSection,
    "objectives": ObjectiveSection,
    "search": OptimiserSection,
    "workers": WorkersSection,
}
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "invalid_key": "a text",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "too_short": "at least one",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "up to 64 lower-case letters, digits and dashes, of which the first is no dash",
}


def _line(error: ValidationError) -> str:
    """The first error as one line; unknown keys come before the missing ones that they were meant to be."""
    first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    location, kind, message = first["loc"], first["type"], first["msg"]
    key = ".".join(map(str, location))
    if kind == "extra_forbidden":
        section = _SECTIONS[".".join(part for part in location[:-1] if isinstance(part, str))]
        known = [field.alias or name for name, field in section.model_fields.items()]
        return f"{key} is no key; {nearest(str(location[-1]), known)}"
    if kind == "missing":
        return f"{key} is missing; add it to the config"
    if kind == "value_error":
        return f"{key}: {message.removeprefix('Value error, ')}"
    got = "empty" if first["input"] is None else reprlib.repr(first["input"])
    wish = message.removeprefix("Input should be ")
    expected = _EXPECTED.get(kind, f"a number {wish}" if wish.startswith(("greater", "less")) else wish)
    return f"{key} is {got}; expected {expected}"


class _Loader(yaml.SafeLoader):
    """As YAML 1.2 has it, 1e-3 is a number; to PyYAML it is a text."""


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers."""


_NUMBER = re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$")
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def read(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file, not yet checked.

    Raises:
        ConfigError: it cannot be read, or holds no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); expected a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML raises ValueError for a date such as 2024-13-01
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else f"{path}"
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{place} is not valid YAML ({reason}); correct it") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no config; expected a mapping that starts with a name and data")
    return content
