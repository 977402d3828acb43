"""What goes over the wire."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Header, Query
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from pareto_search.service.fleet import State as FleetState
from pareto_search.service.record import NAME, Origin, State

Name = Annotated[str, Field(pattern=NAME)]
Budget = Annotated[int, Field(ge=1, le=1_000_000)]
Offset = Annotated[int, Query(ge=0, le=10**9, description="How many to leave out.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many a page has at most.")]

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
"""Who asks again under the key of an earlier request gets what that one made."""


def digest(body: Mapping[str, Any]) -> str:
    """What tells two bodies apart that come under one key."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


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
    fused: int = 0  # what an older release left of a search does not say
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
    """A page of the searches: first those that run or wait, then the latest.

    Attributes:
        total: how many there are on all pages.
    """

    total: int
    offset: int
    searches: list[Search]


class Data(BaseModel):
    """A data set that a config may name as `data.source`; the facts are counted when it is uploaded."""

    name: str
    origin: Origin
    facts: dict[str, Any]
    created: float


class Titled(BaseModel):
    item: str
    title: str


class Found(BaseModel):
    """Items of a data set by what is in their title."""

    items: list[Titled]


class DataSets(BaseModel):
    data: list[Data]


class Bases(BaseModel):
    """The base models that a config may name as `model.base`."""

    bases: list[str]


class Estimate(BaseModel):
    """What a search will take, where anything is known, and what that is judged by.

    Attributes:
        seconds: until the front is there.
        cpu_hours, gpu_hours: what its workers hold for as long: CPU cores, and GPUs.
    """

    seconds: float | None
    cpu_hours: float | None
    gpu_hours: float | None
    because: str


class Resume(Asked):
    """A new budget, which may be larger; what is absent stays as it is."""

    candidates: Budget | None = None
    minutes: Annotated[FiniteFloat, Field(gt=0)] | None = None
    fusions: Annotated[int, Field(ge=0, le=1000)] | None = None


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


class Canary(Asked):
    """Another entry of the front, and the share of the users that it answers, 0..1."""

    entry: Annotated[str, Field(max_length=200)]
    share: Annotated[FiniteFloat, Field(ge=0, le=1)]


class Deploy(Asked):
    """Entries of a search that has ended; the first one answers who names none."""

    search: str
    entries: Annotated[list[Annotated[str, Field(max_length=200)]], Field(min_length=1, max_length=16)]


class Deployment(BaseModel):
    """Entries that recommend over HTTP.

    `endpoint` listens on the service's machine only. `answers` has how many questions each entry has answered since the
    process began, `earlier` how many promotions can be rolled back; `created` is a Unix time. With an `error` it has
    failed or, in any other state, answers with what it served before a change that could not be made.
    """

    id: str
    search: str
    data: str
    state: FleetState
    error: str | None
    entries: list[str]
    canary: Canary | None
    earlier: int
    endpoint: str
    answers: dict[str, int]
    created: float


class DeploymentDetail(Deployment):
    """With the token of its endpoint, and the objectives that a question may prefer."""

    token: str
    objectives: list[str]


class Deployments(BaseModel):
    deployments: list[Deployment]


class Item(BaseModel):
    """An item that is recommended: `score` is the entry's blended score, to compare for one user only, and `because`
    has the titles of the history that add most to the model's score, where reasons are asked for."""

    item: str
    title: str
    score: float
    because: list[str] | None = None


class Recommendations(BaseModel):
    """Items, the best first, the entry that chose them, and items of the question that its data does not have."""

    entry: str
    items: list[Item]
    unknown: list[str] = []


class Archive(BaseModel):
    """A page of the archive, in the order in which the evaluations came."""

    total: int
    offset: int
    evaluations: list[dict[str, Any]]
