"""The routes that look at a search: its front, archive and plots, what is selected and what is downloaded."""

import os
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from pareto_search import plots
from pareto_search.candidate import Evaluation
from pareto_search.question import Question
from pareto_search.service import answers, packing
from pareto_search.service.jobs import Jobs
from pareto_search.service.previews import Previews
from pareto_search.service.view import Views, compare

Kind = Literal["pair", "pairwise", "parallel", "timeline"]
Form = Literal["adapter", "merged", "sentence-transformers", "onnx"]
CHUNK = 1 << 18
"""Bytes of a download that are in memory."""


def routes(jobs: Jobs, previews: Previews) -> APIRouter:
    """All of them, over one service's searches."""
    router = APIRouter(prefix="/v1", tags=["fronts"])
    view = Views(jobs)

    @router.get("/compare")
    def compare_searches(search: Annotated[list[str], Query(min_length=2, max_length=8)]) -> dict[str, Any]:
        """The fronts of several searches and their hypervolumes, by the objectives that they share."""
        return compare({name: view(name).front() for name in dict.fromkeys(search)})

    @router.get("/searches/{search}/front", response_model=dict[str, Any])
    def front(search: str) -> Response:
        """The content of front.json; while the search goes on, what is known of it (`final` is false)."""
        return Response(view(search).front_json(), media_type="application/json")

    @router.get("/searches/{search}/baselines")
    def baselines(search: str) -> dict[str, Any]:
        """What the front must beat: single models, and the curves of the practitioner and of the warm start."""
        known = view(search).front()
        return {"baselines": known["baselines"], "curves": known["curves"]}

    @router.get("/searches/{search}/archive")
    def archive(
        search: str,
        offset: answers.Offset = 0,
        limit: answers.Limit = 100,
    ) -> answers.Archive:
        """Every evaluation, page by page."""
        total, found = view(search).archive(offset, limit)
        return answers.Archive(total=total, offset=offset, evaluations=[_evaluation(e) for e in found])

    @router.get("/searches/{search}/candidates/{candidate}")
    def candidate(search: str, candidate: str) -> dict[str, Any]:
        """A candidate: genes, attempts, evaluations and ancestors."""
        return view(search).candidate(candidate)

    @router.get("/searches/{search}/plots/{kind}")
    def plot(
        search: str,
        kind: Kind,
        x: Annotated[str | None, Query(max_length=100)] = None,
        y: Annotated[str | None, Query(max_length=100)] = None,
        part: plots.Part = "validation",
    ) -> Response:
        """A figure as Plotly's JSON."""
        figure = view(search).plot(kind, x, y, part)
        return Response(figure.to_json(), media_type="application/json")

    @router.post("/searches/{search}/select")
    def select(search: str, wish: answers.Select) -> answers.Selection:
        """One entry of the front, chosen by its validation scores, and why."""
        found, reason, kept = view(search).select(wish.prefer, wish.where, wish.best)
        return answers.Selection(entry=found, reason=reason, kept=kept)

    @router.post("/searches/{search}/recommend")
    def recommend(search: str, question: Question) -> answers.Recommendations:
        """What an entry of the front would recommend, undeployed; without entry and preferences it is the knee.

        The first question takes seconds, in which the entry is loaded.
        """
        run = jobs.finished(search)
        name = question.entry or view(search).select(question.prefer or {}, [], None)[0]["entry"]
        return answers.Recommendations.model_validate(previews.recommend(run, name, question))

    @router.get("/searches/{search}/entries/{name}/zip", response_class=StreamingResponse)
    def download(search: str, name: str, form: Annotated[Form, Query(alias="format")] = "adapter") -> StreamingResponse:
        """An entry with all it needs, as one zip archive: as `pareto-search export --format` writes it.

        All formats but `adapter` load the base model, and take seconds or minutes.
        """
        packed = packing.packed(jobs.finished(search), name, form)
        headers = {
            "content-disposition": f'attachment; filename="{search}-{name}-{form}.zip"',
            "content-length": str(os.fstat(packed.fileno()).st_size),
        }
        return StreamingResponse(iter(partial(packed.read, CHUNK), b""), headers=headers, media_type="application/zip")

    return router


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    return asdict(evaluation) | {"entry": evaluation.entry}
