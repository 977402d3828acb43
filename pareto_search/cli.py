"""The command line: reads options, calls, prints. No logic of its own."""

import dataclasses
import json
import os
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pareto_search import __version__, decide, display, entry, results
from pareto_search import publish as publishing
from pareto_search.config import SearchConfig, read
from pareto_search.errors import ConfigError, ParetoSearchError
from pareto_search.loopback import is_loopback
from pareto_search.objective import Constraint
from pareto_search.plots import pairwise
from pareto_search.question import Canary
from pareto_search.recsys import fetch
from pareto_search.recsys.dataset import MOVIELENS, Dataset, load
from pareto_search.render import write
from pareto_search.report import report
from pareto_search.store import Store, lock
from pareto_search.track import register, tracking

if TYPE_CHECKING:
    from pareto_search.workers.recommend import Serving

RUN = click.argument("run", type=publishing.local)
HERE = click.argument("run", type=click.Path(path_type=Path))
ENTRY = click.argument("name", metavar="ENTRY")
PLACE = click.argument("place", metavar="ENTRY_FOLDER | RUN", type=publishing.local)
PERHAPS_ENTRY = click.argument("name", metavar="[ENTRY]", required=False)
DATA = click.option("--data", help="movielens-100k, a folder of atomic files or a config; needed for an ENTRY_FOLDER.")
BASE = click.option("--base", help="Where the base model is, if not where it was in the search.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
RETRAIN = click.option(
    "--retrain-front", is_flag=True, help="Also train entries that inherited weights from scratch, and show both."
)
TRACK = click.option("--track", multiple=True, metavar="TRACKER", help="Also tell tensorboard, mlflow or wandb.")
ADDRESS = click.option(
    "--address", help="A running Ray cluster: HOST:PORT, ray://HOST:PORT or auto; without it, a local Ray is started."
)

DEMO: Mapping[str, Any] = {
    "name": "demo",
    "data": {"source": MOVIELENS},
    "search": {"population": 6, "candidates": 16, "minutes": 7, "steps": 10},
}
"""Sized so that two cores need six to nine minutes."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pareto-search")
def cli() -> None:
    """Finds the trade-offs of an LLM-based recommender: a front of LoRA checkpoints, searched on Ray.

    Example: pareto-search demo --out runs/demo
    """


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, type=click.Path(path_type=Path), help="The run folder.")
@ADDRESS
def demo(out: Path, address: str | None) -> None:
    """The main job on MovieLens-100K, with the packaged MiniLM and a local Ray; prints the front.

    Example: pareto-search demo --out runs/demo
    """
    _search(SearchConfig.parse(DEMO), out, address)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="RUN", help="The run folder.")
@ADDRESS
@click.option("--seed", type=int, help="In place of the config's; another seed is another search.")
@RETRAIN
@TRACK
def run(
    *, config: Path, out: Path, address: str | None, seed: int | None, retrain_front: bool, track: tuple[str, ...]
) -> None:
    """A search. An existing RUN goes on, if the config differs in budget or workers alone.

    Example: pareto-search run search.yaml --out runs/first
    """
    read = SearchConfig.load(config)
    _search(read if seed is None else _changed(read, seed=seed), out, address, retrain_front, track)


@cli.command()
@HERE
@click.option("--candidates", type=int, help="A new budget of candidates.")
@click.option("--minutes", type=float, help="A new budget of time: how long it searches, in all.")
@click.option("--fusions", type=int, help="How often to average the scores of front members.")
@ADDRESS
@RETRAIN
@TRACK
def resume(
    *,
    run: Path,
    candidates: int | None,
    minutes: float | None,
    fusions: int | None,
    address: str | None,
    retrain_front: bool,
    track: tuple[str, ...],
) -> None:
    """Goes on after a stop or a crash, or with a larger budget.

    Example: pareto-search resume runs/first --candidates 96
    """
    config = _budgeted(_config_of(run), candidates=candidates, minutes=minutes, fusions=fusions)
    _search(config, run, address, retrain_front, track)


@cli.command()
@RUN
@click.option("--data", required=True, metavar="NEW", help="A folder with files of the same names, or a config.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="NEW_RUN", help="Its run folder.")
@click.option("--name", help="Another name for the new search, which a shared store wants.")
@click.option("--candidates", type=int, help="Another budget of candidates.")
@click.option("--minutes", type=float, help="Another budget of time.")
@ADDRESS
@RETRAIN
@TRACK
def refresh(
    *,
    run: Path,
    data: str,
    out: Path,
    name: str | None,
    candidates: int | None,
    minutes: float | None,
    address: str | None,
    retrain_front: bool,
    track: tuple[str, ...],
) -> None:
    """A search on newer data that begins with the old front, and both fronts on the new test part.

    Example: pareto-search refresh runs/first --data data/october --out runs/october
    """
    config = _budgeted(_config_of(run).refreshed(data, name), candidates=candidates, minutes=minutes)
    _search(config, out, address, retrain_front, track, refreshes=run)


@cli.command()
@RUN
@AS_JSON
def front(run: Path, as_json: bool) -> None:
    """The front as a table, validation and test, with the baselines underneath.

    Example: pareto-search front runs/demo
    """
    found = results.load_front(run)
    click.echo(json.dumps(found, indent=1)) if as_json else display.show_front(found)


@cli.command()
@RUN
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="FILE.html or FILE.png.")
def plot(run: Path, out: Path | None) -> None:
    """The report as HTML, or the pairwise front as PNG.

    Example: pareto-search plot runs/demo --out front.png
    """
    if out is None and publishing.is_copy(run):
        raise ConfigError("give --out FILE; what is published stays as it is")
    found, out = results.load_front(run), out or run / "report.html"
    config = _config_of(run)
    store = Store.open(config.store or run / "search.db", config.name)
    evaluations = [e for e in store.evaluations() if e.steps == config.search.steps]
    if out.suffix == ".png":
        write(pairwise(found, evaluations), out)
    else:
        moments = results.moments(store, config.objectives, config.constraints, config.search.steps)
        write(report(found, evaluations, moments), out)
    store.close()
    click.echo(f"Wrote {out}")


@cli.command()
@RUN
@click.option("--knee", is_flag=True, help="The entry that gives up least in total (the default).")
@click.option("--prefer", metavar="WEIGHTS", help="By weights, such as 'ndcg@10=3,ild@10=1'.")
@click.option("--best", metavar="METRIC", help="The one with the best value of an objective.")
@click.option(
    "--where",
    "bounds",
    metavar="BOUND",
    multiple=True,
    help="Within a bound, such as 'ndcg@10>=0.05' or 'gini@10<=0.9'.",
)
@AS_JSON
def select(
    *, run: Path, knee: bool, prefer: str | None, best: str | None, bounds: tuple[str, ...], as_json: bool
) -> None:
    """One entry of the front, chosen by its validation scores, and why.

    Example: pareto-search select runs/demo --where 'ndcg@10>=0.05' --best ild@10
    """
    found = results.load_front(run)
    objectives = results.objectives_of(found)
    values = [e["validation"] for e in found["front"]]
    if knee + bool(prefer) + bool(best) > 1:
        raise ConfigError("give one of --knee, --prefer WEIGHTS and --best METRIC, with or without --where BOUND")
    weights = decide.parse_preferences(prefer) if prefer else {}
    constraints = [Constraint.parse(bound) for bound in bounds]
    choice, _ = decide.within(values, objectives, constraints, weights=weights, best=best)
    chosen = found["front"][choice.index]
    if as_json:
        click.echo(json.dumps({**chosen, "reason": choice.reason}, indent=1))
    else:
        click.echo(f"{chosen['entry']}: {choice.reason}")


@cli.command()
@PLACE
@PERHAPS_ENTRY
@DATA
@click.option("--split", "part", default="test", show_default=True, type=click.Choice(["validation", "test"]))
@BASE
@AS_JSON
def evaluate(
    *,
    place: Path,
    name: str | None,
    data: str | None,
    part: Literal["validation", "test"],
    base: str | None,
    as_json: bool,
) -> None:
    """Scores an entry again, from its files alone.

    Example: pareto-search evaluate exported/ --data movielens-100k --split test
    """
    if name is not None and part == "test" and publishing.is_copy(place):
        raise ConfigError(
            "looks at the test part are counted in the run itself; take --split validation, or bring the run into "
            "a folder with 'pareto-search fetch'"
        )
    served = _served(place, name, data, base)
    if name is not None and part == "test":
        with lock(place):  # a search that goes on would write the front meanwhile
            scores = served.evaluate(part)
            _count_test(place)
    else:
        scores = served.evaluate(part)
    click.echo(json.dumps(scores, indent=1)) if as_json else display.show_scores(served.entry.name, part, scores)


@cli.command()
@RUN
@ENTRY
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="DIR", help="A new folder.")
@click.option(
    "--format", "form", default="adapter", show_default=True, help="adapter, merged, sentence-transformers or onnx."
)
@click.option(
    "--register", "model", metavar="MODEL", help="Also make it a new version of a model in MLflow's registry."
)
def export(run: Path, name: str, to: Path, form: str, model: str | None) -> None:
    """Writes an entry with all it needs into a folder of its own.

    Example: pareto-search export runs/demo c0007-s03 --to exported --format onnx
    """
    from pareto_search import export as exports

    measures = exports.export(run, name, load(**_config_of(run).data.arguments()), to, form)
    click.echo(f"Wrote {to}")
    display.show_export(measures)
    if model is not None:
        front = results.load_front(run)
        version = register(model, to, front, results.find_entry(front, name))
        click.echo(f"Registered it with MLflow as {model}, version {version}")


@cli.command()
@HERE
@click.argument("url")
def publish(run: Path, url: str) -> None:
    """Copies a finished run to a URL that fsspec opens; the commands that read a run take it too.

    Example: pareto-search publish runs/demo s3://models/demo
    """
    size = publishing.publish(run, url)
    click.echo(f"Published {size / 1e6:.0f} MB at {url}")


@cli.command(name="fetch")
@click.argument("url")
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="RUN", help="A new run folder.")
def fetch_run(url: str, to: Path) -> None:
    """Brings a published run into a folder, where its search can be resumed.

    Example: pareto-search fetch s3://models/demo --to runs/demo
    """
    publishing.fetch(url, to)
    click.echo(f"Wrote {to}")


@cli.command(name="export-study")
@RUN
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="FILE", help="A new file, study.db.")
def export_study(run: Path, to: Path) -> None:
    """Writes every evaluation at the full rung into an Optuna study, for its dashboard.

    Example: pareto-search export-study runs/demo --to study.db
    """
    from pareto_search.study import write_study

    config = _config_of(run)
    store = Store.open(config.store or run / "search.db", config.name)
    full = [e for e in store.evaluations() if e.steps == config.search.steps]
    count = write_study(to, config.name, config.objectives, store.candidates(), full)
    store.close()
    click.echo(f"Wrote {count} evaluations to {to}; pip install optuna-dashboard, and: optuna-dashboard sqlite:///{to}")


@cli.command()
@PLACE
@PERHAPS_ENTRY
@DATA
@BASE
@click.option("--user", help="A user of the data set.")
@click.option("--history", help="Or item ids, oldest first: 'ID,ID,…'.")
@click.option("--times", help="When each of these was, in the data's unit of time: 'TIME,TIME,…'.")
@click.option("--group", "groups", multiple=True, help="What this user belongs to: 'occupation=artist'; repeatable.")
@click.option("-k", default=10, show_default=True, help="How many items.")
@click.option("--explain", is_flag=True, help="Say why.")
@AS_JSON
def recommend(
    *,
    place: Path,
    name: str | None,
    data: str | None,
    base: str | None,
    user: str | None,
    history: str | None,
    times: str | None,
    groups: tuple[str, ...],
    k: int,
    explain: bool,
    as_json: bool,
) -> None:
    """Items for a user, with titles and scores, from a run or from an exported entry.

    Example: pareto-search recommend runs/demo c0007-s03 --user 42 --explain
    """
    if (user is None) == (history is None):
        raise ConfigError("give either --user ID or --history 'ID,ID,…'")
    if times is not None and history is None:
        raise ConfigError("--times says when the items of --history were; give both, or --user alone")
    if groups and history is None:
        raise ConfigError("--group says who has the --history; give both, or --user alone")
    if (wrong := next((group for group in groups if "=" not in group), None)) is not None:
        raise ConfigError(f"--group is '{wrong}'; expected 'occupation=artist'")
    try:
        when = None if times is None else [float(time) for time in times.split(",")]
    except ValueError:
        raise ConfigError(f"--times is '{times}'; expected numbers, as in '881250949,881250950'") from None
    served = _served(place, name, data, base, vectors=base is None)
    if history is None:
        known = served.history_of(str(user))
    else:
        belongs = {kind: group for kind, _, group in (each.partition("=") for each in groups)}
        known = served.history_with([item.strip() for item in history.split(",")], when, belongs)
    found = served.recommend(known, k, explain=explain)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(r) for r in found], indent=1))
    else:
        display.show_recommendations(found)


@cli.command()
@PLACE
@PERHAPS_ENTRY
@DATA
@BASE
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="FILE", help="A new .csv or .parquet.")
@click.option("-k", default=10, show_default=True, help="How many items for each user.")
def recommend_all(*, place: Path, name: str | None, data: str | None, base: str | None, to: Path, k: int) -> None:
    """Items for all users of the data as a table: user, rank, item and score.

    Example: pareto-search recommend-all runs/demo c0007-s03 --to lists.parquet
    """
    from pareto_search.workers import everybody  # only now: it loads torch

    everybody.want_new(to)
    served = _served(place, name, data, base, vectors=base is None)
    users, rows = everybody.write(everybody.lists(served, k), to)
    click.echo(f"Wrote {rows:,} items for {users:,} users to {to}")


@cli.command()
@click.argument("run")
@click.argument("names", metavar="ENTRY...", nargs=-1, required=True)
@click.option("--canary", metavar="ENTRY=SHARE", help="Another entry for a share of the users, such as c0009-s07=0.1.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1), help="Processes that share the port.")
@ADDRESS
def deploy(
    *,
    run: str,
    names: tuple[str, ...],
    canary: str | None,
    host: str,
    port: int,
    replicas: int,
    address: str | None,
) -> None:
    """Recommendations over HTTP by Ray Serve. On a running cluster they stay until 'undeploy'; a second call swaps
    what is served.

    The token is PARETO_SEARCH_TOKEN, or one of its own that it prints.

    Example: pareto-search deploy runs/demo c0007-s03 c0012-s41 --port 8000
    """
    from pareto_search import launch

    given = os.environ.get("PARETO_SEARCH_TOKEN")
    if not given and not is_loopback(host):
        raise ConfigError(f"--host {host} can be reached by others; set PARETO_SEARCH_TOKEN to a token of your choice")
    if not given and address is not None:
        raise ConfigError(
            "a deployment on a cluster outlives this command; set PARETO_SEARCH_TOKEN, and keep it for swaps"
        )
    token = given or secrets.token_urlsafe(32)
    trial = Canary.parse(canary) if canary else None
    launch.deploy(
        run,
        names,
        token=token,
        canary=trial,
        host=host,
        port=port,
        replicas=replicas,
        address=address,
        notice=partial(click.echo, err=True),
    )
    click.echo(f"Serving {', '.join(names)} at http://{host}:{port}/recommend")
    if address is not None and is_loopback(host):
        click.echo("Only from the nodes that Ray put the replicas on; --host 0.0.0.0 is for others, too.")
    if not given:
        click.echo(f"Token: {token}")
    if address is None:
        click.echo("Ctrl-C ends it.")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


@cli.command()
@click.option("--address", required=True, help="The Ray cluster: HOST:PORT, ray://HOST:PORT or auto.")
def undeploy(address: str) -> None:
    """Ends the deployment on a running cluster, which outlives the command that made it.

    Example: pareto-search undeploy --address 10.0.0.1:6379
    """
    from pareto_search import launch

    launch.undeploy(address)
    click.echo(f"Nothing is served on the cluster at {address} any more")


@cli.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; elsewhere than here it wants a token."
)
@click.option("--port", default=8642, show_default=True, help="0 takes a free one.")
@click.option("--root", default="service", show_default=True, type=click.Path(path_type=Path), help="Its folder.")
@click.option("--data", multiple=True, metavar="NAME=SOURCE", help="A folder of atomic files, or a config's data.")
@click.option("--base", multiple=True, metavar="NAME=MODEL", help="A folder, or OWNER/MODEL@REVISION.")
@click.option("--name", multiple=True, metavar="HOST", help="Another name under which it is reached.")
@ADDRESS
@click.option("--store", metavar="URL", help="PostgreSQL for the records of service and searches, in place of files.")
@click.option("--searches", default=1, show_default=True, type=click.IntRange(min=1), help="How many run at once.")
def serve(
    *,
    host: str,
    port: int,
    root: Path,
    data: tuple[str, ...],
    base: tuple[str, ...],
    name: tuple[str, ...],
    address: str | None,
    store: str | None,
    searches: int,
) -> None:
    """The service and its page: launch, watch, compare and select in a browser or over HTTP.

    PARETO_SEARCH_TOKEN holds the token; without it, the service makes its own and prints a link that carries it.

    Example: pareto-search serve --data books=data/books
    """
    try:
        from pareto_search.service.serve import Settings
        from pareto_search.service.serve import serve as start
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}; run: pip install 'pareto-search[service]'") from None
    start(Settings(host, port, root, data, base, name, address, store, searches))


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--server", required=True, metavar="URL", help="Where the service is.")
@AS_JSON
def submit(config: Path, server: str, as_json: bool) -> None:
    """A search on a service; its data and base model are named as they are registered there.

    Example: pareto-search submit search.yaml --server http://127.0.0.1:8642
    """
    from pareto_search.service.submit import submit as send

    found = send(read(config), server)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    address = f"{server.rstrip('/')}/v1/searches/{found['id']}"
    click.echo(f"{found['id']} is {found['state']}; watch it on the service's page, or with:")
    click.echo(f'curl -N -H "Authorization: Bearer $PARETO_SEARCH_TOKEN" {address}/events')


@cli.group()
def data() -> None:
    """Data sets.

    Example: pareto-search data fetch movielens-100k
    """


@data.command(name="fetch")
@click.argument("source", type=click.Choice([MOVIELENS]))
def fetch_command(source: str) -> None:
    """Brings and verifies a public data set.

    Example: pareto-search data fetch movielens-100k
    """
    click.echo(f"{source} is in {fetch.movielens_100k()}")


def _search(
    config: SearchConfig,
    run: Path,
    address: str | None,
    retrain: bool = False,
    track: Sequence[str] = (),
    *,
    refreshes: Path | None = None,
) -> None:
    from pareto_search.launch import run_search
    from pareto_search.search import Progress, Watcher

    try:
        with display.live() as shown, tracking(track, config, run, shown.notice) as told:

            def progress(now: Progress) -> None:
                shown.progress(now)
                told.progress(now)

            watcher = Watcher(shown.notice, progress)
            found = run_search(config, run, address=address, retrain=retrain, refreshes=refreshes, watcher=watcher)
            told.finished(found, run)
    except KeyboardInterrupt:
        where = f" --address {address}" if address else ""
        click.echo(f"pareto-search: stopped; go on with: pareto-search resume {run}{where}", err=True)
        sys.exit(130)
    display.show_front(found)
    click.echo(f"\nRun folder: {run}; report: {run / 'report.html'}")


def _budgeted(config: SearchConfig, **budget: float | None) -> SearchConfig:
    given = {name: number for name, number in budget.items() if number is not None}
    return _changed(config, **given) if given else config


def _changed(config: SearchConfig, **values: Any) -> SearchConfig:
    content = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return SearchConfig.parse(content | {"search": content["search"] | values})


def _config_of(run: Path) -> SearchConfig:
    from pareto_search.launch import load_config

    return load_config(run)


def _served(place: Path, name: str | None, data: str | None, base: str | None, *, vectors: bool = False) -> "Serving":
    """An entry of a run, or one that was exported; with its base model, unless its item vectors are to do."""
    from pareto_search.workers.recommend import Serving  # only now: it loads torch

    if name is not None:
        known = _data(data) if data else load(**_config_of(place).data.arguments())
        return Serving(entry.of_run(place, name, vectors=vectors), known, base)
    if data is None:
        raise ConfigError(
            "give RUN ENTRY, or an ENTRY_FOLDER with --data: movielens-100k, a folder of atomic files or a config"
        )
    return Serving(entry.of_folder(place), _data(data), base)


def _data(wish: str) -> Dataset:
    if wish.endswith((".yaml", ".yml")):
        return load(**SearchConfig.load(wish).data.arguments())
    if Path(wish).is_file():
        raise ConfigError(
            f"--data {wish} is a file; expected movielens-100k, a folder of atomic files, or a config (.yaml) that "
            "names tables and columns, such as the search's own search.yaml"
        )
    return load(source=wish)


def _count_test(run: Path) -> None:
    """Counts a look at the test part."""
    config = _config_of(run)
    store = Store.open(config.store or run / "search.db", config.name)
    try:
        with store.transaction() as record:
            record.count_test_evaluation()
        results.save(results.load_front(run) | {"test_evaluations": store.search.test_evaluations}, run)
    finally:
        store.close()


def main() -> None:
    """The entry point: a user's error is one line and exit 2."""
    try:
        cli(prog_name="pareto-search", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        place = context.command_path if context else "pareto-search"
        click.echo(f"pareto-search: {error.format_message()} (see {place} --help)", err=True)
        sys.exit(2)
    except ParetoSearchError as error:
        click.echo(f"pareto-search: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("pareto-search: stopped", err=True)
        sys.exit(130)
