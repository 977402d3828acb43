"""Starts the service: puts its parts together, and listens."""

import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import uvicorn

from pareto_search.database import is_url
from pareto_search.errors import ConfigError, RunError
from pareto_search.loopback import is_loopback
from pareto_search.service import app
from pareto_search.service.catalogue import Catalogue
from pareto_search.service.fleet import Fleet
from pareto_search.service.jobs import Jobs, only_service
from pareto_search.service.previews import Previews
from pareto_search.service.record import Record

TOKEN = "PARETO_SEARCH_TOKEN"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Settings:
    """How an operator starts a service; see `pareto-search serve --help`."""

    host: str
    port: int
    root: Path
    data: Sequence[str] = ()
    bases: Sequence[str] = ()
    names: Sequence[str] = ()
    address: str | None = None
    store: str | None = None
    searches: int = 1


def serve(settings: Settings) -> None:
    """Serves until it is stopped; searches and deployments go on without it.

    Raises:
        UserError: the host wants a token, the port is taken, the root has another service, the record is another
            root's, a source is not there.
    """
    token, own = _token(settings.host)
    with ExitStack() as stack:
        mine = stack.enter_context(only_service(settings.root))
        record = Record(settings.store or settings.root / "service.db", partial(click.echo, err=True))
        stack.callback(record.close)
        root = settings.root.resolve()
        record.claim(mine, root)
        catalogue = Catalogue(root, record, settings.data, settings.bases)
        shared = settings.store if is_url(settings.store or "") else None
        jobs = Jobs(root, record, catalogue, address=settings.address, most=settings.searches, store=shared)
        listener = stack.enter_context(_listen(settings.host, settings.port))
        stack.enter_context(jobs.kept())
        fleet, previews = Fleet(root, record, jobs), Previews()
        stack.enter_context(fleet.kept())
        stack.callback(previews.close)
        hosts = {*LOOPBACK, settings.host, *settings.names}
        config = uvicorn.Config(
            app.create(record, catalogue, jobs, fleet, previews, token=token, hosts=hosts),
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=2,  # who watches would keep it open
        )
        place = f"[{settings.host}]" if ":" in settings.host else settings.host
        link = f"http://{place}:{listener.getsockname()[1]}/"
        click.echo(f"Open {link}#token={token}" if own else f"Serving at {link}")
        click.echo("Ctrl-C ends the service; its searches and deployments go on.")
        uvicorn.Server(config).run([listener])


def _token(host: str) -> tuple[str, bool]:
    """The token, and whether it is our own and has to be told."""
    given = os.environ.get(TOKEN, "")
    if given:
        if len(given) < 16 or not given.isascii() or not given.isprintable() or " " in given:
            raise ConfigError(f"{TOKEN} is too weak; expected at least 16 printable ASCII characters without blanks")
        return given, False
    if not is_loopback(host):
        raise ConfigError(f"host {host} can be reached from elsewhere; set {TOKEN} to a token of your own first")
    return secrets.token_urlsafe(32), True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"{host}:{port} cannot be listened on ({reason}); give another --host or --port") from None
