"""The routes of a search's life: submitted, watched, paused, resumed, cancelled, deleted."""

import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response
from fastapi.sse import EventSourceResponse

from pareto_search.config import MINILM, SearchConfig
from pareto_search.service import answers
from pareto_search.service.catalogue import Catalogue
from pareto_search.service.estimate import estimate
from pareto_search.service.jobs import Jobs
from pareto_search.service.record import ConflictError, Job, Record
from pareto_search.service.watching import changes

ENDED = ("finished", "failed", "cancelled", "paused")

Config = Annotated[
    dict[str, Any],
    Body(
        description="A config as for `pareto-search run`; `data.source` and `model.base` are names that are registered "
        "here, and there is neither a path nor a store in it.",
        openapi_examples={"demo": {"value": {"name": "demo", "data": {"source": "movielens-100k"}}}},
    ),
]


def routes(record: Record, catalogue: Catalogue, jobs: Jobs) -> APIRouter:
    """The routes over all searches."""
    router = APIRouter(prefix="/v1", tags=["searches"])

    def parsed(config: Mapping[str, Any]) -> SearchConfig:
        return SearchConfig.parse(catalogue.resolved(config))

    @router.get("/searches")
    def list_searches(offset: answers.Offset = 0, limit: answers.Limit = 100) -> answers.Searches:
        """The searches page by page: first those that run or wait, then the latest."""
        total, page = record.latest(offset, limit)
        return answers.Searches(total=total, offset=offset, searches=[_summary(jobs, job) for job in page])

    @router.post("/searches", status_code=201)
    def submit(
        config: Config,
        response: Response,
        key: answers.Key = None,
    ) -> answers.SearchDetail:
        """Submits a search. Under an idempotency key that was used for the same config, gives that search (200)."""
        body = answers.digest(config)
        checked = parsed(config)
        job = Job(
            id=f"{checked.name[:52].rstrip('-')}-{secrets.token_hex(4)}",
            name=checked.name,
            data=config["data"]["source"],
            base=config.get("model", {}).get("base", MINILM),
            config=config,
            key=key,
            body_sha256=body,
        )
        if not record.add_search(job):
            held = record.submitted(key or "")
            if held is None or held.body_sha256 != body:
                raise ConflictError("this Idempotency-Key was used for another config; choose a new key")
            job, response.status_code = held, 200
        else:
            jobs.look()
        response.headers["location"] = f"/v1/searches/{job.id}"
        return _detail(jobs, record.search(job.id))

    @router.post("/estimate")
    def estimate_time(config: Config) -> answers.Estimate:
        """What a search would take, judged by earlier ones over the same data and base model."""
        checked = parsed(config)
        base = config.get("model", {}).get("base", MINILM)
        like = (jobs.run_of(job) for job in reversed(record.like(config["data"]["source"], base)))
        seconds, because = estimate(checked, (run for run in like if run.is_dir()))
        workers, hours = checked.workers, None if seconds is None else seconds / 3600
        cpus, gpus = (None if hours is None else hours * workers.count * n for n in (workers.cpus, workers.gpus))
        return answers.Estimate(seconds=seconds, cpu_hours=cpus, gpu_hours=gpus, because=because)

    @router.get("/events", response_class=EventSourceResponse)
    async def watch_all(request: Request) -> AsyncIterator[answers.Searches]:
        """The first page of searches as server-sent events: one at once, and one whenever something has changed."""
        async for now in changes(request, list_searches):
            yield now

    return router


def control(record: Record, jobs: Jobs) -> APIRouter:
    """The routes of one search's life."""
    router = APIRouter(prefix="/v1", tags=["searches"])

    @router.get("/searches/{search}")
    def get_search(search: str) -> answers.SearchDetail:
        """One search."""
        return _detail(jobs, record.search(search))

    @router.delete("/searches/{search}", status_code=204)
    def delete_search(search: str) -> None:
        """Removes a search that does not run, with all of its files."""
        jobs.delete(search)

    @router.post("/searches/{search}/pause")
    def pause(search: str) -> answers.SearchDetail:
        """Stops it; what was evaluated is kept, and it can go on."""
        return _detail(jobs, jobs.pause(search))

    @router.post("/searches/{search}/resume")
    def resume(search: str, budget: answers.Resume | None = None) -> answers.SearchDetail:
        """Lets it go on: paused, failed, or finished and now with a larger budget."""
        changes = budget.model_dump(exclude_none=True) if budget else {}
        return _detail(jobs, jobs.resume(search, **changes))

    @router.post("/searches/{search}/cancel")
    def cancel(search: str) -> answers.SearchDetail:
        """Stops it for good; what was evaluated can still be looked at."""
        return _detail(jobs, jobs.cancel(search))

    def known(search: str) -> Job:
        # Asked before the answer begins: later there is no way left to say 404.
        return record.search(search)

    @router.get("/searches/{search}/events", response_class=EventSourceResponse, dependencies=[Depends(known)])
    async def watch(search: str, request: Request) -> AsyncIterator[answers.SearchDetail]:
        """A search as server-sent events: one at once, one whenever it has changed, and the last when it has ended."""
        async for now in changes(request, lambda: get_search(search)):
            yield now
            if now.state in ENDED:
                return

    return router


def _summary(jobs: Jobs, job: Job) -> answers.Search:
    status = jobs.status(job)
    told = {"notice": status["notice"], "progress": status["progress"]}
    return answers.Search.model_validate({**asdict(job), **told})


def _detail(jobs: Jobs, job: Job) -> answers.SearchDetail:
    return answers.SearchDetail(**_summary(jobs, job).model_dump(), config=dict(job.config))
