"""One service with one finished search, which most tests only look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Service, finished, material, serving

pytest.importorskip("fastapi")


@dataclass(frozen=True)
class Shared:
    """A service, a client with its token, the small config by names, and a finished search of it."""

    service: Service
    client: httpx.Client
    config: dict[str, Any]
    search: str

    @property
    def run(self) -> Path:
        return self.service.root / "searches" / self.search / "run"

    def get(self, path: str, **query: Any) -> Any:
        answer = self.client.get(f"/v1/searches/{self.search}{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("service")
    options, config = material(folder / "small")
    with serving(folder / "root", *options) as service, service.client() as client:
        made = client.post("/v1/searches", json=config, headers={"Idempotency-Key": "the first"})
        assert made.status_code == 201, made.text
        search = finished(client, made.json()["id"])
        yield Shared(service, client, config, search["id"])
