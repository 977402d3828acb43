import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Shared
from postgres import server
from running import eventually, title
from serving import begun, ended, finished, material, runners, serving

from pareto_search.config import SearchConfig
from pareto_search.errors import AbsentError
from pareto_search.service.catalogue import Catalogue
from pareto_search.service.jobs import Jobs, _forget
from pareto_search.service.record import Job, Record
from pareto_search.store import SearchRecord, Store

Material = tuple[list[str | Path], dict[str, Any]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Where the service's record is, as options."""
    if request.param == "sqlite":
        yield []
        return
    with server() as url:
        yield ["--store", f"{url}/postgres"]


def submit(client: httpx.Client, config: dict[str, Any], **search: Any) -> str:
    answer = client.post("/v1/searches", json={**config, "search": {**config["search"], **search}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_killed_service_finds_what_goes_on_and_what_has_ended(small: Material, tmp_path: Path) -> None:
    options, config = small
    root = tmp_path / "root"
    with serving(root, *options, "--searches", "2") as service, service.client() as client:
        long, short = submit(client, config, candidates=5000), submit(client, config, candidates=20)
        waiting = submit(client, config)
        assert client.get(f"/v1/searches/{waiting}").json()["state"] == "queued"
        begun(client, long)
        service.kill()
        assert any(long in title(r) for r in runners(root))
        # The short one ends while nobody looks.
        eventually(lambda: not any(short in title(r) for r in runners(root)))

        with serving(root, *options, "--searches", "2") as again, again.client() as other:
            listed = other.get("/v1/searches").json()["searches"]
            states = {s["id"]: s["state"] for s in listed}
            assert list(states) == [waiting, long, short]
            assert (states[long], states[short]) == ("running", "finished")
            eventually(lambda: other.get(f"/v1/searches/{waiting}").json()["state"] in ("running", "finished"))
            assert other.post(f"/v1/searches/{long}/cancel").status_code == 200
            assert ended(other, long)["state"] == "cancelled"
            assert not any(long in title(r) for r in runners(root))
            assert other.post(f"/v1/searches/{long}/resume").status_code == 409
            assert other.get(f"/v1/searches/{long}/front").json()["final"] is False


def test_a_paused_search_goes_on_with_a_larger_budget_and_loses_nothing(shared: Shared) -> None:
    client, config = shared.client, shared.config
    search = submit(client, config, candidates=5000)
    begun(client, search)
    client.post(f"/v1/searches/{search}/pause")
    assert ended(client, search)["state"] == "paused"
    run = shared.service.root / "searches" / search / "run"
    before = Store.open(run / "search.db")
    kept = before.evaluations()
    done = sum(a.state == "finished" and a.candidate.startswith("c") for a in before.attempts())
    before.close()
    assert kept

    answer = client.post(f"/v1/searches/{search}/resume", json={"candidates": done + 1})
    assert answer.status_code == 200, answer.text
    assert finished(client, search)["progress"]["total"] == done + 1
    after = Store.open(run / "search.db")
    assert after.evaluations()[: len(kept)] == kept
    after.close()

    assert client.delete(f"/v1/searches/{search}").status_code == 204
    assert not run.parent.exists()
    assert client.get(f"/v1/searches/{search}").status_code == 404


def test_fifty_submissions_under_one_key_are_one_search(small: Material, store: list[str], tmp_path: Path) -> None:
    options, config = small
    config = {**config, "name": "once", "search": {**config["search"], "candidates": 1}}

    with serving(tmp_path / "root", *options, *store) as service, service.client() as client:
        known = {s["id"] for s in client.get("/v1/searches").json()["searches"]}

        def send(_: int) -> httpx.Response:
            return client.post("/v1/searches", json=config, headers={"Idempotency-Key": "one and the same"})

        with ThreadPoolExecutor(10) as clients:
            answers = list(clients.map(send, range(50)))
        assert sorted(a.status_code for a in answers) == [200] * 49 + [201]
        assert len({a.json()["id"] for a in answers}) == 1
        assert {s["id"] for s in client.get("/v1/searches").json()["searches"]} - known == {answers[0].json()["id"]}
        other = client.post(
            "/v1/searches", json={**config, "name": "other"}, headers={"Idempotency-Key": "one and the same"}
        )
        assert (other.status_code, "another config" in other.json()["error"]) == (409, True)


def test_a_services_database_has_the_records_of_its_searches_until_they_are_deleted(
    small: Material, postgresql: str, tmp_path: Path
) -> None:
    options, config = small
    with serving(tmp_path / "root", *options, "--store", postgresql) as service, service.client() as client:
        search = submit(client, config, candidates=2)
        finished(client, search)
        record = Store.open(postgresql, search)
        assert client.get(f"/v1/searches/{search}/archive").json()["total"] == len(record.evaluations()) > 0
        record.close()
        assert not list((tmp_path / "root" / "searches").rglob("search.db"))
        assert client.get(f"/v1/searches/{search}").json()["config"]["name"] == config["name"]
        assert client.delete(f"/v1/searches/{search}").status_code == 204
        with pytest.raises(AbsentError):
            Store.open(postgresql, search)


def test_a_search_that_cannot_go_on_says_why(shared: Shared) -> None:
    client, config = shared.client, shared.config
    objectives = [*config["objectives"][:2], {"metric": "novelty@31", "reference": 0.01, "ideal": 0.8}]
    search = submit(client, {**config, "objectives": objectives})
    found = ended(client, search)
    assert found["state"] == "failed"
    assert found["error"].startswith("novelty@31 needs more items than the 30")
    waits = client.get(f"/v1/searches/{search}/front")
    assert (waits.status_code, set(waits.json())) == (409, {"error"})
    assert client.delete(f"/v1/searches/{search}").status_code == 204


def test_one_root_has_one_service(small: Material, tmp_path: Path) -> None:
    from running import pareto_search

    with serving(tmp_path / "root"):
        said = pareto_search("serve", "--root", tmp_path / "root", "--port", "0").complaint
    assert said.startswith("another service uses")
    shutil.rmtree(tmp_path / "root")


def test_searches_are_found_again_when_the_databases_password_has_changed(tmp_path: Path) -> None:
    record = Record(tmp_path / "service.db")
    stores = {
        "mine": "postgresql://service:old@host/db",
        "other": "postgresql://service:old@host/another",
        "file": None,
    }
    for name, store in stores.items():
        record.add_search(Job(name, "films", "films", "minilm", {}, state="finished"))
        folder = tmp_path / "searches" / name / "run"
        folder.mkdir(parents=True)
        config = SearchConfig.parse({"name": name, "data": {"source": "films"}, "store": store})
        (folder / "search.yaml").write_text(config.to_yaml())
    now = "postgresql://service:new@host/db"
    with Jobs(tmp_path, record, Catalogue(tmp_path, record, [], []), most=0, store=now).kept():
        found = {name: SearchConfig.load(tmp_path / "searches" / name / "run" / "search.yaml").store for name in stores}
    assert found == stores | {"mine": now}
    assert (tmp_path / "searches" / "mine" / "run" / "search.yaml").stat().st_mode & 0o077 == 0
    record.close()


def test_a_search_whose_config_is_refused_by_now_leaves_no_record_behind(where: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    Store.create(where, SearchRecord("old", "i", "", 0, "d", "s", "b", "b", lanes=1)).close()
    Store.create(where, SearchRecord("other", "i", "", 0, "d", "s", "b", "b", lanes=1)).close()
    (run / "search.yaml").write_text(f"{{name: old, store: '{where}', data: {{source: films}}, colour: red}}")
    _forget(run)
    with pytest.raises(AbsentError, match="holds other"):
        Store.open(where, "old")
    _forget(run)  # it is gone, and that is no mistake
    Store.open(where, "other").close()
