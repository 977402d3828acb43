import errno
import http.client
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import Shared
from fastapi import FastAPI, HTTPException
from running import PATIENCE
from serving import TOKEN
from starlette.applications import Starlette
from starlette.testclient import TestClient

from pareto_search.database import Database
from pareto_search.service import app
from pareto_search.service.catalogue import Catalogue
from pareto_search.service.fleet import Fleet
from pareto_search.service.guard import Guard
from pareto_search.service.jobs import Jobs
from pareto_search.service.previews import Previews
from pareto_search.service.record import Record, UnansweredError

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
PUBLIC = {
    "/",
    *(
        f"/static/{name}"
        for name in (
            "api.js",
            "app.js",
            "brushes.js",
            "charts.js",
            "comparison.js",
            "deployments.js",
            "dom.js",
            "entries.js",
            "home.js",
            "icon.svg",
            "index.html",
            "plotly.min.js",
            "recommend.js",
            "search.js",
            "style.css",
        )
    ),
}
"""What everybody may have. Whoever adds to it has decided so."""


@pytest.fixture(scope="module")
def stranger(shared: Shared) -> Iterator[httpx.Client]:
    """Somebody without a token."""
    with shared.service.client(token=None) as client:
        yield client


@pytest.fixture(scope="module")
def paths(shared: Shared) -> list[str]:
    """Every path of the OpenAPI document, with names that are there."""
    document = shared.client.get("/v1/openapi.json").json()
    names = {"search": shared.search, "candidate": "c0000", "name": "small", "kind": "pair", "deployment": "small-0"}
    return [re.sub(r"{(\w+)}", lambda match: names[match[1]], path) for path in document["paths"]]


def test_the_document_describes_what_is_served(shared: Shared) -> None:
    from pareto_search.service import app

    document = shared.client.get("/v1/openapi.json").json()
    served = {"/v1/searches", "/v1/searches/{search}/events", "/v1/data", "/v1/bases", "/v1/estimate", "/v1/compare"}
    served |= {f"/v1/deployments/{{deployment}}/{deed}" for deed in ("canary", "promote", "rollback", "restart")}
    served |= {"/v1/deployments", "/v1/deployments/events", "/v1/deployments/{deployment}/recommend"}
    served |= {"/v1/searches/{search}/recommend"}
    assert served <= set(document["paths"])
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["description"]
            assert operation["security"] == [{"HTTPBearer": []}]
            assert {"400", "401", "404"} <= set(operation["responses"])
    assert app.PUBLIC == PUBLIC


def test_nothing_but_the_page_answers_without_the_token(
    shared: Shared, stranger: httpx.Client, paths: list[str]
) -> None:
    everything = {*paths, *PUBLIC, "/v1/openapi.json", "/v1", "/docs", "/redoc", "/static/", "/nowhere", "/static/../x"}
    answered = set()
    for path in everything:
        for method in METHODS:
            answer = stranger.request(method, path)
            if answer.status_code != 401:
                answered.add((method, path))
            else:
                assert answer.headers["www-authenticate"] == "Bearer"
    assert answered == {(method, path) for path in PUBLIC for method in ("GET", "HEAD")}


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Guard]:
    """That of a service without a process of its own."""
    record = Record(tmp_path / "service.db")
    catalogue = Catalogue(tmp_path, record, [], [])
    jobs = Jobs(tmp_path, record, catalogue, most=0)
    fleet, previews = Fleet(tmp_path, record, jobs), Previews()
    yield app.create(record, catalogue, jobs, fleet, previews, token=TOKEN, hosts={"testserver"})
    record.close()


def route(guard: Guard, path: str, answer: Callable[[], str], methods: Sequence[str] = ("GET",)) -> None:
    behind = guard._app
    assert isinstance(behind, FastAPI)
    behind.add_api_route(path, answer, methods=list(methods), include_in_schema=False)


def test_a_route_that_is_added_answers_nobody_without_the_token(guard: Guard) -> None:
    route(guard, "/v1/new", lambda: "new", [m for m in METHODS if m != "TRACE"])
    with TestClient(guard) as client:
        assert {client.request(method, "/v1/new").status_code for method in METHODS} == {401}
        known = client.get("/v1/new", headers={"Authorization": f"Bearer {TOKEN}"})
        assert (known.status_code, known.json()) == (200, "new")


@pytest.mark.parametrize("is_upload", [False, True])
def test_a_full_disk_is_no_mistake_of_the_service(guard: Guard, is_upload: bool) -> None:
    def full() -> str:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/secret/place")
        if is_upload:  # FastAPI makes this of what is raised while it reads a body
            raise HTTPException(400, "There was an error parsing the body") from error
        raise error

    route(guard, "/v1/full", full)
    with TestClient(guard) as client:
        answer = client.get("/v1/full", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 507
    assert "No space left on device" in answer.json()["error"]
    assert "secret" not in answer.text


def test_a_database_that_is_away_is_no_mistake_of_who_asks(guard: Guard) -> None:
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is an extra")

    def away() -> str:
        with closing(Database("postgresql://nobody:secret@127.0.0.1:1/none")) as database, database.reading():
            return "there"

    route(guard, "/v1/away", away)
    with TestClient(guard) as client:
        answer = client.get("/v1/away", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 507
    assert "its database cannot be used; tell its operator" in answer.json()["error"]
    assert "none" not in answer.text


def test_a_process_that_does_not_answer_is_no_mistake_of_who_asks(guard: Guard) -> None:
    def silent() -> str:
        raise UnansweredError("the deployment does not answer")

    route(guard, "/v1/silent", silent)
    with TestClient(guard) as client:
        answer = client.get("/v1/silent", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.json()) == (502, {"error": "the deployment does not answer"})


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer wrong", "Basic {token}", "Bearer {token}x", "Bearer \xe9"]
)
def test_another_token_is_none(shared: Shared, stranger: httpx.Client, authorization: str) -> None:
    value = authorization.format(token=TOKEN).encode("latin-1")
    assert stranger.get("/v1/searches", headers={"Authorization": value}).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "["])
def test_another_hosts_name_is_refused(shared: Shared, host: str) -> None:
    answer = shared.client.get("/v1/searches", headers={"Host": host})
    assert answer.status_code == 400


@pytest.mark.parametrize("asked", ["rec.example.com", "REC.example.com:8443", "[::1]:8642", "[FE80::1]"])
def test_its_names_are_known_however_they_are_written(asked: str) -> None:
    guard = Guard(Starlette(), TOKEN, ["Rec.Example.COM:8443", "::1", "[fe80::1]:80", ""], {"/"})
    answer = TestClient(guard).get("/", headers={"Host": asked})
    assert answer.status_code == 404  # which is what is behind it
    for other in ("rec.example", "["):
        assert TestClient(guard).get("/", headers={"Host": other}).status_code == 400


@pytest.mark.parametrize(
    "origin", ["http://[", "http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"]
)
def test_another_sites_page_is_refused(shared: Shared, origin: str) -> None:
    answer = shared.client.post("/v1/searches", json={}, headers={"Origin": origin})
    assert answer.status_code == 403


def test_its_own_page_may_ask(shared: Shared) -> None:
    origin = shared.service.address.rstrip("/")
    assert shared.client.get("/v1/searches", headers={"Origin": origin}).status_code == 200


def test_no_script_but_ours_runs_on_the_page(shared: Shared, stranger: httpx.Client) -> None:
    answer = stranger.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"<script(?! src=)|<style|style=|https?:", answer.text)


def traversals() -> list[str]:
    ups = ["../", "..\\", "....//", "%2e%2e/", "..;/", "..%252f", "\x00../", "//", "/.//../", ".%2e/", "%c0%ae%c0%ae/"]
    ups += ["..%5c", "..%00/", "%2e%2e%2f", "~/", "file:///", "..\uff0f"]
    ends = ["etc/passwd", "service.db", "searches", "..", "app.py", "config.yaml"]
    return list(
        dict.fromkeys(
            quote(up * times + end, safe=safe)
            for up in ups
            for end in ends
            for times in (1, 3, 8)
            for safe in ("", "/%")
        )
    )


def test_no_path_leads_out(shared: Shared) -> None:
    templates = ["/static/{}", "/v1/searches/{}", "/v1/searches/{}/front", "/v1/data/{}", "/{}"]
    templates += ["/v1/deployments/{}"]
    templates += [f"/v1/searches/{shared.search}/{kind}" for kind in ("candidates/{}", "entries/{}/zip")]
    payloads = traversals()
    assert len(payloads) > 500
    connection = http.client.HTTPConnection(httpx.URL(shared.service.address).netloc.decode(), timeout=PATIENCE)
    for number, payload in enumerate(payloads):
        for template in templates if number % 15 == 0 else [templates[number % len(templates)]]:
            # httpx would tidy up what is sent.
            connection.request("GET", template.format(payload), headers={"Authorization": f"Bearer {TOKEN}"})
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status in (400, 404, 405, 422), (template, payload, body)
            assert set(json.loads(body)) == {"error"}


def test_what_is_too_large_is_refused(shared: Shared) -> None:
    body = b'{"name": "' + b"a" * (1 << 20) + b'"}'
    headers = {"Content-Type": "application/json"}
    told = shared.client.post("/v1/searches", content=body, headers=headers)
    assert (told.status_code, told.json()["error"]) == (413, "the request is too large; expected at most 1048576 bytes")
    untold = shared.client.post("/v1/searches", content=iter([body]), headers=headers)
    assert (untold.status_code, set(untold.json())) == (411, {"error"})


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"null", b'{"name": NaN}', b"[" * 100_000, b'"\x00"'])
def test_what_is_no_config_is_refused_in_one_line(shared: Shared, body: bytes) -> None:
    answer = shared.client.post("/v1/searches", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert set(answer.json()) == {"error"}


def changed(config: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {**config, **sections}


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"data": {"source": "/etc"}}, "is not registered"),
        ({"data": {"source": "smal"}}, "did you mean 'small'?"),
        ({"data": {"interactions": "/etc/passwd", "items": "/etc/passwd"}}, "expected data.source"),
        ({"data": "small"}, "data is no mapping"),
        ({"data": {"source": ["small"]}}, "expected data.source"),
        ({"model": {"base": "../base"}}, "expected model.base alone"),
        ({"model": {"base": "owner/model"}}, "expected model.base alone"),
        ({"model": {"base": "minilm", "revision": "main"}}, "model.revision is not this service's"),
        ({"model": {"base": ["minilm"]}}, "expected model.base alone"),
        ({"store": "postgresql://somewhere/else"}, "store is not yours to choose"),
        ({"name": "../up"}, "name is '../up'"),
        ({"colour": "red"}, "colour is no key"),
        ({"constraints": ["\ud800>=1"]}, "half of a character"),
    ],
)
def test_a_config_names_only_what_is_registered(shared: Shared, sections: Any, complaint: str) -> None:
    content, headers = json.dumps(changed(shared.config, **sections)), {"Content-Type": "application/json"}
    answer = shared.client.post("/v1/searches", content=content, headers=headers)
    assert answer.status_code in (400, 404)
    assert complaint in answer.json()["error"]
