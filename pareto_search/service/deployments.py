"""The routes of deployments: entries that recommend, and another one that is tried out, promoted and rolled back."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.sse import EventSourceResponse

from pareto_search.question import Canary, Question
from pareto_search.service import answers
from pareto_search.service.deployer import HOST
from pareto_search.service.fleet import Fleet
from pareto_search.service.record import Deployment, Record
from pareto_search.service.watching import changes


def routes(record: Record, fleet: Fleet) -> APIRouter:
    """All of them."""
    router = APIRouter(prefix="/v1", tags=["deployments"])

    @router.get("/deployments")
    def list_deployments() -> answers.Deployments:
        """All deployments, the latest first."""
        return answers.Deployments(deployments=[_summary(fleet, d) for d in reversed(record.deployments())])

    @router.post("/deployments", status_code=201)
    def deploy(wish: answers.Deploy, response: Response, key: answers.Key = None) -> answers.DeploymentDetail:
        """Deploys entries of a search that has ended; whatever becomes of the search, the deployment keeps them.

        Under an idempotency key that was used for the same entries, gives that deployment (200).
        """
        made, new = fleet.deploy(wish.search, wish.entries, key, answers.digest(wish.model_dump()))
        response.status_code = 201 if new else 200
        response.headers["location"] = f"/v1/deployments/{made.id}"
        return _detail(fleet, made)

    @router.get("/deployments/events", response_class=EventSourceResponse)
    async def watch(request: Request) -> AsyncIterator[answers.Deployments]:
        """All deployments as server-sent events: one at once, and one whenever something has changed."""
        async for now in changes(request, list_deployments):
            yield now

    @router.get("/deployments/{deployment}")
    def get_deployment(deployment: str) -> answers.DeploymentDetail:
        """One deployment, with the token of its endpoint."""
        return _detail(fleet, record.deployment(deployment))

    @router.delete("/deployments/{deployment}", status_code=202)
    def delete_deployment(deployment: str) -> answers.Deployment:
        """Stops a deployment and removes it, which takes seconds."""
        return _summary(fleet, fleet.delete(deployment))

    @router.put("/deployments/{deployment}/canary")
    def try_out(deployment: str, canary: answers.Canary) -> answers.Deployment:
        """Lets another entry of the search answer a share of the users, always the same ones."""
        return _summary(fleet, fleet.try_out(deployment, Canary(canary.entry, canary.share)))

    @router.post("/deployments/{deployment}/promote")
    def promote(deployment: str) -> answers.Deployment:
        """Lets the canary answer everybody."""
        return _summary(fleet, fleet.promote(deployment))

    @router.post("/deployments/{deployment}/rollback")
    def roll_back(deployment: str) -> answers.Deployment:
        """Takes back the canary, or else the latest promotion."""
        return _summary(fleet, fleet.roll_back(deployment))

    @router.post("/deployments/{deployment}/restart")
    def restart(deployment: str) -> answers.Deployment:
        """Begins anew one that has failed, or a change that it could not make; 409 where it has no error."""
        return _summary(fleet, fleet.restart(deployment))

    @router.post("/deployments/{deployment}/recommend")
    def recommend(deployment: str, question: Question) -> answers.Recommendations:
        """What the deployment recommends to a user, or to who has a history; its endpoint answers the same."""
        return answers.Recommendations.model_validate(fleet.recommend(deployment, question))

    return router


def _summary(fleet: Fleet, deployment: Deployment) -> answers.Deployment:
    return answers.Deployment(
        id=deployment.id,
        search=deployment.search,
        data=deployment.data,
        state=fleet.state(deployment),
        error=fleet.error(deployment),
        entries=list(deployment.entries),
        canary=answers.Canary(**deployment.canary) if deployment.canary else None,
        earlier=len(deployment.earlier),
        endpoint=f"http://{HOST}:{deployment.port}/recommend",
        answers=fleet.answers(deployment),
        created=deployment.created,
    )


def _detail(fleet: Fleet, deployment: Deployment) -> answers.DeploymentDetail:
    objectives = [o["name"] for o in fleet.front(deployment)["objectives"]]
    return answers.DeploymentDetail(
        **_summary(fleet, deployment).model_dump(), token=deployment.token, objectives=objectives
    )
