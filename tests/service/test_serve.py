import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from conftest import Shared
from running import Call, Ended, call
from serving import TOKEN, saying, serving

from pareto_search.errors import RunError
from pareto_search.service.submit import submit

__all__ = ["call"]

OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
"""What another service answers."""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--host", "0.0.0.0"], "set PARETO_SEARCH_TOKEN to a token of your own first"),
        (["--port", "99999"], "cannot be listened on"),
        (["--data", "books"], "'books' is not of the form NAME=SOURCE"),
        (["--data", "Books=movielens-100k"], "with a name of lower-case letters, digits and dashes"),
        (["--data", "books=nowhere"], "data source 'nowhere' is not there"),
        (["--base", "mine=owner/model"], "OWNER/MODEL@REVISION"),
        (["--store", "mysql://u@h/d"], "a store of kind 'mysql' is not known"),
        (["--searches", "0"], "0 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_service_that_cannot_start_says_so_in_one_line(
    call: Call, arguments: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARETO_SEARCH_TOKEN", raising=False)
    assert complaint in call("serve", "--root", tmp_path / "root", *arguments).complaint


def test_a_record_has_services_of_one_root(call: Call, tmp_path: Path) -> None:
    store = ["--store", tmp_path / "record.db"]
    with serving(tmp_path / "root", *store) as first:
        first.kill()
    refused = call("serve", "--root", tmp_path / "other", "--port", "0", *store).complaint
    assert f"the record of another root, {tmp_path / 'root'} (" in refused
    with serving(tmp_path / "root", *store):
        pass


def test_a_weak_token_is_refused(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETO_SEARCH_TOKEN", "short")
    assert "too weak" in call("serve", "--root", tmp_path / "root").complaint


def test_without_a_token_it_makes_one_and_prints_a_link_that_carries_it(tmp_path: Path) -> None:
    with serving(tmp_path / "root", token=None) as service:
        address, _, token = service.address.partition("#token=")
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        assert len(token) >= 32
        service.address = address
        with service.client(token) as client, service.client(token="x" * 43) as stranger:
            assert client.get("/v1/data").json()["data"][0]["name"] == "movielens-100k"
            assert stranger.get("/v1/data").status_code == 401
        service.process.terminate()
        said = "".join(service.process.communicate())
        assert token not in said


Submit = Callable[..., Ended]


@pytest.fixture
def submitted(call: Call, shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Submit:
    """Submits a config to the shared service."""
    path = shared.service.root.parent / "submitted.yaml"

    def run(config: object, *options: str, token: str = TOKEN) -> Ended:
        path.write_text(yaml.safe_dump(config))
        monkeypatch.setenv("PARETO_SEARCH_TOKEN", token)
        return call("submit", path, "--server", shared.service.address, *options)

    return run


def test_submit_prints_the_search_and_how_to_watch_it(submitted: Submit, shared: Shared) -> None:
    told = submitted(shared.config)
    assert (told.code, told.err) == (0, "")
    search, _, _ = told.out.partition(" is ")
    assert shared.client.get(f"/v1/searches/{search}").json()["config"] == shared.config
    assert f"{shared.service.address}v1/searches/{search}/events" in told.out
    as_json = submitted(shared.config, "--json")
    second = json.loads(as_json.out)["id"]
    for name in (search, second):
        shared.client.post(f"/v1/searches/{name}/cancel")


def test_submit_tells_what_the_service_refuses(submitted: Submit, shared: Shared) -> None:
    assert submitted(shared.config, token="").complaint.startswith("PARETO_SEARCH_TOKEN is not set")
    assert submitted(shared.config, token="w" * 20).complaint.startswith("the token is missing or wrong")
    refused = submitted({**shared.config, "data": {"source": "smal"}}).complaint
    assert refused == "data set 'smal' is not registered; did you mean 'small'?"


def test_submit_needs_a_service(call: Call, shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETO_SEARCH_TOKEN", TOKEN)
    path = shared.service.root.parent / "small" / "search.yaml"
    for nobody in ("http://127.0.0.1:9", "nowhere", "http://127.0.0.1:86x2"):
        assert f"no service answers at {nobody}" in call("submit", path, "--server", nobody).complaint
    for told, line in ((b"SSH-2.0\r\n", "no service answers at"), (OTHER, "is no pareto-search service")):
        with saying(told) as address:
            assert line in call("submit", path, "--server", address).complaint


@contextmanager
def hearing(silences: int) -> Iterator[tuple[str, list[str]]]:
    """The address of a service that hears every request, under these keys, and answers none of the first ones."""
    keys: list[str] = []

    class Heard(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers["Idempotency-Key"])
            if len(keys) > silences:
                self.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n{"id": "small-1"}')

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Heard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", keys
        finally:
            server.shutdown()


def test_submit_asks_once_more_under_the_same_key_and_says_what_may_have_become_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARETO_SEARCH_TOKEN", TOKEN)
    with hearing(silences=1) as (address, keys):
        assert submit({"name": "small"}, address) == {"id": "small-1"}
        assert (len(keys), len(set(keys))) == (2, 1)
        submit({"name": "small"}, address)
        assert len(set(keys)) == 2
    with hearing(silences=2) as (address, keys):
        with pytest.raises(RunError, match=r"was reached and has not answered .* may have the search all the same"):
            submit({"name": "small"}, address)
        assert len(keys) == 2
