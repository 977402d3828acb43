"""Deployments over HTTP, on one that all tests of this module share."""

import fcntl
import json
import shutil
import socket
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Shared
from running import eventually
from serving import deployers, saying, serving

from pareto_search import checkpoint, decide, launch, results
from pareto_search.errors import ClusterError, ConfigError, DataError
from pareto_search.objective import Objective
from pareto_search.question import Question
from pareto_search.service.catalogue import Catalogue
from pareto_search.service.deployer import WISH, Told, _changed, ask
from pareto_search.service.fleet import ASKED, MOST, TRIES, Fleet
from pareto_search.service.jobs import Jobs
from pareto_search.service.processes import LOCK, STATUS, TRASH, status_of
from pareto_search.service.record import ConflictError, DataSet, Deployment, Job, Record, UnansweredError


@pytest.fixture(scope="module")
def front(shared: Shared) -> Any:
    return json.loads((shared.run / "front.json").read_text())


@pytest.fixture(scope="module")
def names(front: Any) -> list[str]:
    return [e["entry"] for e in front["front"]]


@pytest.fixture(scope="module")
def deployment(shared: Shared, names: list[str]) -> Iterator[str]:
    """One that serves the first two entries of the front."""
    answer = shared.client.post("/v1/deployments", json={"search": shared.search, "entries": names[:2]})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/v1/deployments/{made['id']}"
    assert (made["state"], made["entries"], made["canary"]) == ("starting", names[:2], None)
    settled(shared.client, made["id"])
    yield made["id"]
    shared.client.delete(f"/v1/deployments/{made['id']}")


def settled(client: httpx.Client, deployment: str) -> dict[str, Any]:
    """The deployment once it serves what it is to serve."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/v1/deployments/{deployment}").json()
        assert found["state"] != "failed", found
        return found if found["state"] == "serving" else None

    return eventually(look)


def changed(client: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    answer = client.request(method, f"/v1/deployments/{path}", **options)
    assert answer.status_code == 200, answer.text
    return settled(client, answer.json()["id"])


def test_under_a_key_entries_are_deployed_once(shared: Shared, names: list[str]) -> None:
    wish, key = {"search": shared.search, "entries": names[:1]}, {"Idempotency-Key": "once"}
    first, again = (shared.client.post("/v1/deployments", json=wish, headers=key) for _ in range(2))
    try:
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.headers["location"] == again.headers["location"]
        assert first.json()["id"] == again.json()["id"]
        other = shared.client.post("/v1/deployments", json={**wish, "entries": names[1:2]}, headers=key)
        assert other.status_code == 409
        assert "was used for another deployment" in other.json()["error"]
    finally:
        gone = f"/v1/deployments/{first.json()['id']}"
        shared.client.delete(gone)
    eventually(lambda: shared.client.get(gone).status_code == 404)


def asked(client: httpx.Client, deployment: str, **question: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/deployments/{deployment}/recommend", json={"k": 3, **question})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_user_gets_items_with_titles_scores_and_reasons_from_the_endpoint_and_the_service_alike(
    shared: Shared, deployment: str, names: list[str]
) -> None:
    answer = asked(shared.client, deployment, user="u3", explain=True)
    assert answer["entry"] == names[0]
    assert [sorted(item) for item in answer["items"]] == [["because", "item", "score", "title"]] * 3
    told = shared.client.get(f"/v1/deployments/{deployment}").json()
    body = json.dumps({"user": "u3", "k": 3, "explain": True}).encode()
    request = urllib.request.Request(told["endpoint"], body, {"Authorization": f"Bearer {told['token']}"})
    assert json.load(urllib.request.urlopen(request)) == answer
    one = asked(shared.client, deployment, history=["i1", "i2"], entry=names[1])
    assert (one["entry"], one["unknown"]) == (names[1], [])
    assert asked(shared.client, deployment, history=["i1", "new", "i2"], entry=names[1]) == one | {"unknown": ["new"]}
    assert told["objectives"] == ["ndcg@5", "ild@5", "novelty@5"]


def test_filters_and_preferences_go_through(shared: Shared, deployment: str, front: Any) -> None:
    objectives = [Objective(**o) for o in front["objectives"]]
    values = [e["validation"] for e in front["front"][:2]]
    expected = front["front"][decide.prefer(values, objectives, {"ild@5": 1}).index]["entry"]
    best = asked(shared.client, deployment, user="u3", prefer={"ild@5": 1})
    assert best["entry"] == expected
    first = best["items"][0]["item"]
    without = asked(shared.client, deployment, user="u3", prefer={"ild@5": 1}, exclude=[first])
    assert first not in {item["item"] for item in without["items"]}


def test_a_canary_is_promoted_and_rolled_back(shared: Shared, deployment: str, names: list[str]) -> None:
    client, users = shared.client, [f"u{n}" for n in range(1, 41)]

    def share_of(entry: str) -> float:
        return sum(asked(client, deployment, user=u)["entry"] == entry for u in users) / len(users)

    trial = {"entry": names[2], "share": 0.5}
    tried = changed(client, "PUT", f"{deployment}/canary", json=trial)
    assert (tried["entries"], tried["canary"]) == (names[:2], trial)
    before = dict(tried["answers"])
    share = share_of(names[2])
    assert 0.25 < share < 0.75
    counted = eventually(
        lambda: (
            (found := client.get(f"/v1/deployments/{deployment}").json()["answers"])
            and sum(found.values()) - sum(before.values()) == len(users)
            and found
        )
    )
    assert counted[names[2]] - before.get(names[2], 0) == share * len(users)

    promoted = changed(client, "POST", f"{deployment}/promote")
    assert (promoted["entries"], promoted["canary"], promoted["earlier"]) == ([names[2], *names[:2]], None, 1)
    assert share_of(names[2]) == 1
    changed(client, "PUT", f"{deployment}/canary", json={"entry": names[0], "share": 1})
    assert share_of(names[0]) == 1
    # The canary goes first, then the promotion.
    assert changed(client, "POST", f"{deployment}/rollback")["canary"] is None
    assert share_of(names[2]) == 1
    assert changed(client, "POST", f"{deployment}/rollback")["entries"] == names[:2]
    assert share_of(names[0]) == 1
    again = client.post(f"/v1/deployments/{deployment}/rollback")
    assert (again.status_code, "nothing to roll back" in again.json()["error"]) == (409, True)
    none = client.post(f"/v1/deployments/{deployment}/promote")
    assert (none.status_code, "has no canary" in none.json()["error"]) == (409, True)


def test_a_change_that_cannot_be_made_leaves_what_is_served_until_it_can(
    shared: Shared, deployment: str, names: list[str]
) -> None:
    client, data = shared.client, shared.service.root.parent / "small" / "ratings.csv"
    away = data.rename(data.with_name("elsewhere.csv"))
    try:
        assert client.put(f"/v1/deployments/{deployment}/canary", json={"entry": names[2], "share": 1}).is_success
        found = eventually(lambda: (told := client.get(f"/v1/deployments/{deployment}").json())["error"] and told)
        assert (found["state"], "ratings.csv" in found["error"]) == ("changing", True)
        assert asked(client, deployment, user="u3")["entry"] == names[0]
    finally:
        away.rename(data)
    assert changed(client, "POST", f"{deployment}/restart")["error"] is None
    assert asked(client, deployment, user="u3")["entry"] == names[2]
    well = client.post(f"/v1/deployments/{deployment}/restart")
    assert (well.status_code, "is serving; what has an error" in well.json()["error"]) == (409, True)
    changed(client, "POST", f"{deployment}/rollback")


def test_whoever_watches_hears_of_changes(shared: Shared, deployment: str, names: list[str]) -> None:
    heard = []
    with shared.client.stream("GET", "/v1/deployments/events") as events:
        for line in events.iter_lines():
            if line.startswith("data:"):
                [found] = [d for d in json.loads(line.removeprefix("data:"))["deployments"] if d["id"] == deployment]
                heard.append(found["canary"])
                if len(heard) == 1:
                    changed(shared.client, "PUT", f"{deployment}/canary", json={"entry": names[1], "share": 0.25})
                if found["canary"]:
                    break
    assert heard[0] is None
    changed(shared.client, "POST", f"{deployment}/rollback")


@pytest.mark.parametrize(
    ("question", "status", "complaint"),
    [
        ({}, 422, "give either user or history"),
        ({"user": "nobody"}, 400, "user 'nobody' is not in the data"),
        ({"user": "u1", "entry": "c9999-s00"}, 400, "entry 'c9999-s00' is not served"),
        ({"user": "u1", "k": 0}, 422, "body.k"),
        ({"user": "u1", "prefer": {"price": 1}}, 400, "'price' is no objective"),
        ({"user": "u1", "least": {"price": 1}}, 422, "expected credibility or novelty"),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["deployments", "searches"])
def test_a_question_that_does_not_fit_gets_one_line(
    shared: Shared, deployment: str, where: str, question: Any, status: int, complaint: str
) -> None:
    if where == "searches" and "entry" in question:
        complaint = "entry 'c9999-s00' is not on the front"
    name = deployment if where == "deployments" else shared.search
    answer = shared.client.post(f"/v1/{where}/{name}/recommend", json=question)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert complaint in answer.json()["error"]


def test_what_cannot_be_deployed_or_tried_out_gets_one_line(shared: Shared, deployment: str, names: list[str]) -> None:
    client = shared.client

    def refused(path: str, wish: Any, method: str = "POST") -> tuple[int, str]:
        answer = client.request(method, f"/v1/deployments{path}", json=wish)
        assert set(answer.json()) == {"error"}
        return answer.status_code, answer.json()["error"]

    assert refused("", {"search": "nothing", "entries": names[:1]})[0] == 404
    assert refused("", {"search": shared.search, "entries": []})[0] == 422
    status, error = refused("", {"search": shared.search, "entries": ["c9999-s00"]})
    assert (status, error.startswith("entry 'c9999-s00' is not on the front")) == (400, True)
    search = client.post("/v1/searches", json={**shared.config, "name": "later"}).json()["id"]
    status, error = refused("", {"search": search, "entries": names[:1]})
    assert (status, "has not ended" in error) == (409, True)
    client.post(f"/v1/searches/{search}/cancel")
    eventually(lambda: client.delete(f"/v1/searches/{search}").status_code == 204)  # it may have begun
    assert refused(f"/{deployment}/canary", {"entry": names[2], "share": 2}, "PUT")[0] == 422
    status, error = refused(f"/{deployment}/canary", {"entry": names[0], "share": 0.5}, "PUT")
    assert (status, "answers already" in error) == (400, True)
    assert len(client.get("/v1/deployments").json()["deployments"]) == 1


def test_an_entry_recommends_without_a_deployment_as_with_one(
    shared: Shared, deployment: str, front: Any, names: list[str]
) -> None:
    def previewed(**question: Any) -> Any:
        answer = shared.client.post(f"/v1/searches/{shared.search}/recommend", json={"k": 3, "user": "u5", **question})
        assert answer.status_code == 200, answer.text
        return answer.json()

    for name in names[:2]:
        assert previewed(entry=name, explain=True) == asked(
            shared.client, deployment, user="u5", entry=name, explain=True
        )
    objectives, values = [Objective(**o) for o in front["objectives"]], [e["validation"] for e in front["front"]]
    assert previewed()["entry"] == names[decide.knee(values, objectives).index]
    assert previewed(prefer={"ild@5": 2})["entry"] == names[decide.prefer(values, objectives, {"ild@5": 2}).index]


def test_there_are_only_so_many_and_their_data_stays(tmp_path: Path) -> None:
    record = Record(tmp_path / "service.db")
    catalogue = Catalogue(tmp_path, record, [], [])
    record.add_data(DataSet("mine", "upload", {"source": str(tmp_path / "nowhere")}))
    record.add_search(Job("films-1", "films", "mine", "minilm", {}))
    for n in range(MOST):
        record.add_deployment(Deployment(f"films-{n}", "films-0", "mine", ["c0000-s00"], 1 + n, "token"))
    fleet = Fleet(tmp_path, record, Jobs(tmp_path, record, catalogue, most=1))
    with pytest.raises(ConflictError, match="delete one first"):
        fleet.deploy("films-1", ["c0000-s00"])
    record.remove_search("films-1")
    with pytest.raises(ConflictError, match="is used by 'films-0'"):
        catalogue.remove("mine")
    record.close()


@pytest.mark.parametrize(
    ("status", "body", "kind", "line"),
    [
        ("400 Bad Request", b'{"detail": "no such entry"}', ConfigError, "^no such entry$"),
        ("404 Not Found", b"nothing", ConfigError, "the answer is 404, without a reason"),
        ("500 Internal Server Error", b'{"error": "?"}', UnansweredError, "the answer is 500, without a reason"),
    ],
)
def test_a_refusal_is_told_and_a_mistake_is_not_blamed_on_who_asks(
    status: str, body: bytes, kind: type[Exception], line: str
) -> None:
    answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with saying(answer) as address, pytest.raises(kind, match=line):
        ask(int(address.rpartition(":")[2]), "token", "/entries")


class Mortal:
    """Processes that end without a word as soon as they have begun."""

    def __init__(self) -> None:
        self.begun = 0

    def is_running(self, folder: Path) -> bool:
        return False

    def start(self, folder: Path, prepare: Callable[[], None]) -> None:
        self.begun += 1
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STATUS).write_text(json.dumps({"served": None, "healthy": False, "error": None}))


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    """With one deployment."""
    record = Record(tmp_path / "service.db")
    record.add_deployment(Deployment("films-0", "films-0", "mine", ["c0000-s00"], 1, "token"))
    yield record
    record.close()


@pytest.fixture
def fleet(tmp_path: Path, record: Record) -> Fleet:
    return Fleet(tmp_path, record, Jobs(tmp_path, record, Catalogue(tmp_path, record, [], []), most=1))


def test_one_that_ends_again_and_again_before_it_serves_is_given_up_until_it_is_restarted(
    record: Record, fleet: Fleet
) -> None:
    fleet._processes = mortal = Mortal()
    for _ in range(2 * TRIES):
        fleet.look()
    assert mortal.begun == TRIES
    assert fleet.state(record.deployment("films-0")) == "failed"
    assert "had no memory left; mend that and restart it" in (record.deployment("films-0").error or "")
    begun = fleet.restart("films-0")
    assert (begun.error, fleet.state(begun)) == (None, "starting")
    with pytest.raises(ConflictError, match="is starting; what has an error can be restarted"):
        fleet.restart("films-0")
    fleet.look()
    assert mortal.begun == TRIES + 1


def test_what_serves_is_not_written_again_when_another_entry_comes(
    record: Record, fleet: Fleet, tmp_path: Path
) -> None:
    record.add_search(Job("films-0", "films", "mine", "minilm", {}))
    run = fleet._jobs.run("films-0")
    for name in ("c0000", "c0001"):
        checkpoint.write(run / "checkpoints" / name, {"model": name.encode()})
        whose = checkpoint.digest({"model": name.encode()}).encode()
        checkpoint.write(run / "item_vectors" / name, {"vectors": name.encode(), "checkpoint.sha256": whose})
    for folder in ("item_vectors/base", "components/ease"):
        checkpoint.write(run / folder, {"shared": b"by all"})
    (run / "search.yaml").write_text("name: films-0")
    entries = [{"entry": f"c000{n}-s00", "candidate": f"c000{n}", "checkpoint": f"checkpoints/c000{n}"} for n in (0, 1)]
    (run / "front.json").write_text(json.dumps({"front": entries}))
    own, held = tmp_path / "deployments" / "films-0" / "run", record.deployment("films-0")

    def files() -> dict[str, int]:
        """And when each was written last, whatever it says of that."""
        return {str(p.relative_to(own)): p.stat().st_ctime_ns for p in own.glob("*/*/*")}

    fleet._keep(held, ["c0000-s00"])
    before = files()
    assert {name.rsplit("/", 1)[0] for name in before} == {
        "checkpoints/c0000",
        "components/ease",
        "item_vectors/base",
        "item_vectors/c0000",
    }
    fleet._keep(held, ["c0001-s00"])
    after = files()
    assert before.items() < after.items()
    assert {"checkpoints/c0001/model", "item_vectors/c0001/vectors"} < after.keys()


def test_a_process_hears_of_a_change_that_the_service_was_killed_over(
    record: Record, fleet: Fleet, tmp_path: Path
) -> None:
    folder = tmp_path / "deployments" / "films-0"
    folder.mkdir(parents=True)
    (folder / WISH).write_text('{"entries": ["c0000-s00"], "canary": null, "port": 1, "token": "token"}')
    record.change_deployment("films-0", canary={"entry": "c0001-s00", "share": 0.5})
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as its process holds it
        fleet.look()
        told = (folder / WISH).stat()
        assert json.loads((folder / WISH).read_text())["canary"] == {"entry": "c0001-s00", "share": 0.5}
        fleet.look()
        assert (folder / WISH).stat() == told  # once


def test_a_folder_that_cannot_be_written_does_not_keep_the_others_waiting(
    record: Record, fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record.add_deployment(Deployment("films-1", "films-0", "mine", ["c0000-s00"], 2, "token", wish="delete"))
    for folder in (f"deployments/films-0/{WISH}/in the way", "deployments/films-1", TRASH):
        (tmp_path / folder).mkdir(parents=True)
    fleet.look()
    assert [d.id for d in record.deployments()] == ["films-0"]
    assert f"pareto-search: deployment films-0: {tmp_path}" in capsys.readouterr().err


def test_few_wait_for_a_deployment_that_is_silent(record: Record, fleet: Fleet, tmp_path: Path) -> None:
    question = Question(user="u1")
    with socket.create_server(("127.0.0.1", 0), backlog=4 * ASKED) as silent, ThreadPoolExecutor(2 * ASKED) as threads:
        port = silent.getsockname()[1]
        record.change_deployment("films-0", port=port)
        folder = tmp_path / "deployments" / "films-0"
        folder.mkdir(parents=True)
        served = {"entries": ["c0000-s00"], "canary": None}
        (folder / STATUS).write_text(json.dumps({"served": served, "healthy": True, "error": None}))
        asked = [threads.submit(fleet.recommend, "films-0", question) for _ in range(2 * ASKED)]
        eventually(lambda: sum(a.done() for a in asked) == ASKED)
        assert all(isinstance(a.exception(), ConflictError) for a in asked if a.done())
        silent.close()
        assert sum(isinstance(a.exception(), UnansweredError) for a in asked) == ASKED


def test_a_status_that_cannot_be_written_is_written_when_it_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / STATUS / "in the way").mkdir(parents=True)
    tell = Told(tmp_path)
    for number in range(3):
        tell(served={"answers": number})
    assert capsys.readouterr().out.count("cannot be written") == 1
    shutil.rmtree(tmp_path / STATUS)
    tell(served={"answers": 2})
    assert status_of(tmp_path)["served"] == {"answers": 2}


def test_what_a_change_has_begun_to_replace_is_served_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = ({"entries": [name], "canary": None, "port": 1, "token": "token"} for name in ("old", "new"))
    served: list[str] = []
    error: Exception = DataError("the data is not there")

    def deploy(_: Path, entries: list[str], **__: object) -> None:
        served.extend(entries)
        if entries == ["new"]:
            raise error

    monkeypatch.setattr(launch, "deploy", deploy)
    assert (_changed(tmp_path, old, new), served) == ("the data is not there", ["new"])
    error = ClusterError("the deployment did not start")
    assert (_changed(tmp_path, old, new), served) == ("the deployment did not start", ["new", "new", "old"])


def test_it_survives_a_kill_of_the_service_and_of_itself_and_the_end_of_its_search(
    shared: Shared, names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("other") / "root"
    folder = shared.service.root.parent / "small"
    options = ["--data", f"small={folder / 'search.yaml'}", "--base", f"tiny={folder / 'base'}"]
    with serving(root, *options) as service, service.client() as client:
        # A search that has ended, as its run folder has it.
        search = client.post("/v1/searches", json=shared.config).json()["id"]
        client.post(f"/v1/searches/{search}/cancel")
        eventually(lambda: client.get(f"/v1/searches/{search}").json()["state"] == "cancelled")
        shutil.rmtree(root / "searches" / search / "run", ignore_errors=True)
        shutil.copytree(shared.run, root / "searches" / search / "run")
        wish = {"search": search, "entries": names[:1]}
        made = client.post("/v1/deployments", json=wish).json()
        settled(client, made["id"])
        expected = asked(client, made["id"], user="u3")
        own = root / "deployments" / made["id"] / "run"
        [kept] = own.glob("item_vectors/*")
        assert kept.name == results.load_front(own)["front"][0]["candidate"]
        run = root / "searches" / search / "run"
        found = results.find_entry(results.load_front(run), names[1])
        (run / found["checkpoint"] / "recommender.json").write_text("{}")
        for part in (run / "components").iterdir():  # which it has already, and need not take again
            shutil.rmtree(part)
        damaged = client.put(f"/v1/deployments/{made['id']}/canary", json={"entry": names[1], "share": 0.5})
        assert (damaged.status_code, "recommender.json" in damaged.json()["error"]) == (400, True)
        assert client.get(f"/v1/deployments/{made['id']}").json()["state"] == "serving"
        assert client.delete(f"/v1/searches/{search}").status_code == 204
        [process] = deployers(root)
        service.kill()
        body = json.dumps({"user": "u3", "k": 3}).encode()
        request = urllib.request.Request(made["endpoint"], body, {"Authorization": f"Bearer {made['token']}"})
        assert json.load(urllib.request.urlopen(request))["entry"] == names[0]

        with serving(root, *options) as again, again.client() as other:
            found = other.get(f"/v1/deployments/{made['id']}").json()
            assert (found["state"], found["endpoint"], found["token"]) == (
                "serving",
                made["endpoint"],
                made["token"],
            )
            process.kill()
            [starting] = eventually(lambda: [p for p in deployers(root) if p.pid != process.pid])
            eventually((root / "deployments" / made["id"] / "status.json").is_file)
            assert other.get(f"/v1/deployments/{made['id']}").json()["state"] == "starting"
            starting.kill()  # as when the machine goes again, before it has come up
            settled(other, made["id"])
            assert asked(other, made["id"], user="u3") == expected
            missing = other.put(f"/v1/deployments/{made['id']}/canary", json={"entry": names[1], "share": 0.5})
            assert missing.status_code == 404
            gone = other.delete(f"/v1/deployments/{made['id']}")
            assert (gone.status_code, gone.json()["state"]) == (202, "deleting")
            eventually(lambda: other.get(f"/v1/deployments/{made['id']}").status_code == 404)
            assert deployers(root) == []
            assert not list((root / "deployments").iterdir())
