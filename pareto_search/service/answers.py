"""What goes over the wire."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from pareto_search.service.record import NAME, Origin, State

Name = Annotated[str, Field(pattern=NAME)]
Budget = Annotated[int, Field(ge=1, le=1_000_000)]


class Asked(BaseModel):
    """A request's body: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid")


class Refusal(BaseModel):
    """Why not, in one line: what was wrong, what was expected, what to do."""

    error: str


class Progress(BaseModel):
    """Where a search stands; seconds left are absent until a candidate has finished."""

    finished: int
    merged: int
    failed: int
    total: int
    front: int
    hypervolume: float
    elapsed: float
    left: float | None


class Search(BaseModel):
    """A search: `state` is how things are, `wish` what it has been told; `created` is a Unix time."""

    id: str
    name: str
    data: str
    base: str
    state: State
    wish: Literal["run", "pause", "cancel"]
    error: str | None
    notice: str | None
    progress: Progress | None
    created: float


class SearchDetail(Search):
    """With its config as it was submitted."""

    config: dict[str, Any]


class Searches(BaseModel):
    searches: list[Search]


class Data(BaseModel):
    """A data set that a config may name as `data.source`; the facts are counted when it is uploaded."""

    name: str
    origin: Origin
    facts: dict[str, Any]
    created: float


class DataSets(BaseModel):
    data: list[Data]


class Bases(BaseModel):
    """The base models that a config may name as `model.base`."""

    bases: list[str]


class Estimate(BaseModel):
    """Seconds, where anything is known, and what that is judged by."""

    seconds: float | None
    because: str


class Resume(Asked):
    """A new budget, which may be larger; what is absent stays as it is."""

    candidates: Budget | None = None
    minutes: Annotated[FiniteFloat, Field(gt=0)] | None = None


class Select(Asked):
    """Within the bounds of `where`: the best by weights (`prefer`), of one objective (`best`), or the knee."""

    prefer: Annotated[dict[str, FiniteFloat], Field(max_length=50)] = {}
    where: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=50)] = []
    best: Annotated[str, Field(max_length=200)] | None = None


class Selection(BaseModel):
    """An entry of the front, why it, and the entries that keep the bounds."""

    entry: dict[str, Any]
    reason: str
    kept: list[str]


class Archive(BaseModel):
    """A page of the archive, in the order in which the evaluations came."""

    total: int
    offset: int
    evaluations: list[dict[str, Any]]
