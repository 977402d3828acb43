"""The service over HTTP: its routes, its page, and how errors are told."""

import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import plotly
from fastapi import APIRouter, FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.params import Security
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from pareto_search.errors import ConfigError, TroubleError, UserError
from pareto_search.service import answers, deployments, fronts, searches
from pareto_search.service.catalogue import Catalogue
from pareto_search.service.fleet import Fleet
from pareto_search.service.guard import Guard
from pareto_search.service.jobs import Jobs
from pareto_search.service.previews import Previews
from pareto_search.service.record import ConflictError, MissingError, Record, UnansweredError

STATIC = Path(__file__).parent / "static"
PLOTLY = Path(str(plotly.__file__)).parent / "package_data" / "plotly.min.js"
ASSETS = {f"/static/{file.name}": file for file in (*sorted(STATIC.iterdir()), PLOTLY)}
"""What is served to everybody, by its whole path: no path is ever made from a request."""
PUBLIC = frozenset({"/", *ASSETS})

_STATUS: dict[type[Exception], int] = {MissingError: 404, ConflictError: 409, UnansweredError: 502}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.Refusal, "description": meaning}
    for status, meaning in (
        (400, "Something does not fit"),
        (401, "The token is missing or wrong"),
        (403, "A page of another site asks"),
        (404, "Nothing has that name"),
        (409, "It does not go with how things stand"),
        (411, "The request does not say its length"),
        (413, "The request is too large"),
        (422, "The request has another form"),
        (502, "The process that was to answer is silent, or has ended over it"),
        (507, "The service's machine is in trouble: its disk may be full, or its database away"),
    )
}


def create(
    record: Record, catalogue: Catalogue, jobs: Jobs, fleet: Fleet, previews: Previews, *, token: str, hosts: set[str]
) -> Guard:
    """The ASGI application of a service, behind its guard."""
    app = FastAPI(
        title="pareto-search",
        version=version("pareto-search"),
        description="Launch, watch, compare, select and deploy: the trade-offs of an LLM-based recommender.",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        responses=_REFUSALS,
        dependencies=[Security(HTTPBearer(auto_error=False, description="The guard checks it."))],
    )
    app.include_router(searches.routes(record, catalogue, jobs))
    app.include_router(searches.control(record, jobs))
    app.include_router(fronts.routes(jobs, previews))
    app.include_router(deployments.routes(record, fleet))
    app.include_router(_data_routes(record, catalogue))
    app.include_router(_page_routes())
    app.add_exception_handler(UserError, _told)
    app.add_exception_handler(OSError, _troubled)
    app.add_exception_handler(TroubleError, _troubled)
    app.add_exception_handler(RequestValidationError, _misfit)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _mistake)
    return Guard(app, token, hosts, PUBLIC)


def _data_routes(record: Record, catalogue: Catalogue) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["data"])

    @router.get("/data")
    def list_data() -> answers.DataSets:
        """The data sets that a config may name."""
        return answers.DataSets.model_validate({"data": record.data_sets()}, from_attributes=True)

    @router.post("/data", status_code=201)
    def upload(
        *,
        name: Annotated[answers.Name, Form()],
        archive: Annotated[UploadFile | None, File(description="A zip of RecBole atomic files")] = None,
        interactions: Annotated[UploadFile | None, File(description="CSV or Parquet")] = None,
        items: Annotated[UploadFile | None, File(description="CSV or Parquet")] = None,
        users: Annotated[UploadFile | None, File(description="CSV or Parquet; where the columns have groups")] = None,
        columns: Annotated[str | None, Form(description="JSON, as data.columns in a config")] = None,
    ) -> answers.Data:
        """Uploads a data set: `archive`, or `interactions`, `items`, perhaps `users`, and `columns`."""
        if archive and not any((interactions, items, users, columns)):
            added = catalogue.upload_archive(name, archive.file)
        elif interactions and items and columns and not archive:
            given = {"interactions": interactions, "items": items, "users": users}
            tables = {role: (table.filename or "", table.file) for role, table in given.items() if table}
            added = catalogue.upload_tables(name, tables, columns)
        else:
            raise ConfigError("give either archive, or interactions, items and columns")
        return answers.Data.model_validate(added, from_attributes=True)

    @router.get("/data/{name}")
    def get_data(name: str) -> answers.Data:
        """One data set."""
        return answers.Data.model_validate(record.data_set(name), from_attributes=True)

    @router.get("/data/{name}/items")
    def find_items(
        name: str,
        query: Annotated[str, Query(min_length=1, max_length=100, description="Words, or parts of words.")],
        limit: Annotated[int, Query(ge=1, le=100)] = 10,
    ) -> answers.Found:
        """Items whose title has all the words, the shortest titles first."""
        found = catalogue.find(name, query, limit)
        return answers.Found(items=[answers.Titled(item=item, title=title) for item, title in found])

    @router.delete("/data/{name}", status_code=204)
    def delete_data(name: str) -> None:
        """Removes an uploaded data set that no search uses."""
        catalogue.remove(name)

    @router.get("/bases")
    def list_bases() -> answers.Bases:
        """The base models that a config may name."""
        return answers.Bases(bases=catalogue.bases)

    return router


def _page_routes() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def page() -> FileResponse:
        return FileResponse(ASSETS["/static/index.html"])

    @router.get("/static/{name}")
    def asset(name: str) -> Response:
        file = ASSETS.get(f"/static/{name}")
        if file is None:
            raise HTTPException(404)
        # Plotly is 5 MB, and the same until the next installation.
        caching = {"cache-control": "max-age=86400"} if file == PLOTLY else {"cache-control": "no-cache"}
        return FileResponse(file, headers=caching)

    return router


def _told(_: Request, error: Exception) -> JSONResponse:
    return _refusal(str(error), _STATUS.get(type(error), 400))


def _troubled(_: Request, error: Exception) -> JSONResponse:
    """A full disk, most often; which file or database it is says nothing to whoever asks."""
    traceback.print_exception(error)
    cause = error.__cause__ if isinstance(error, TroubleError) else error
    reason = cause.strerror or type(cause).__name__ if isinstance(cause, OSError) else "its database cannot be used"
    return _refusal(f"the service's machine is in trouble: {reason}; tell its operator, whose log has more", 507)


def _misfit(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    return _refusal(f"{place}: {reason}; /v1/openapi.json says what is expected", 422)


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, OSError):  # an upload that found no room
        return _troubled(request, error.__cause__)
    nothing = "there is nothing at this address; /v1/openapi.json lists what there is"
    return JSONResponse(
        {"error": nothing if error.status_code == 404 else error.detail}, error.status_code, error.headers
    )


def _refusal(error: str, status: int) -> JSONResponse:
    """The line may quote what was asked, and JSON has halves of characters that UTF-8 does not have."""
    return JSONResponse({"error": error.encode(errors="backslashreplace").decode()}, status)


def _mistake(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"error": "a mistake of this service; its log has more"}, 500)
