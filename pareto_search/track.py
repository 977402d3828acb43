"""Experiment trackers behind one small interface, off by default: TensorBoard, MLflow, Weights & Biases.

Each hears of every candidate that ends (front size and hypervolume) and, at the end, of the front. MLflow also takes
exported entries into its registry.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pareto_search.config import SearchConfig
from pareto_search.errors import ConfigError, nearest
from pareto_search.results import FRONT, Document

if TYPE_CHECKING:
    from pareto_search.search import Progress  # loads pymoo, for which --help need not wait

PROJECT = "pareto-search"


class Tracker(Protocol):
    """Who is told."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step: the number of candidates that have ended, or the rank of an entry on the front."""
        ...

    def finished(self, run: Path) -> None:
        """The run folder is whole."""
        ...

    def close(self) -> None:
        """Nothing more comes; where nothing was `finished`, the search or the telling has failed or was stopped."""
        ...


class TensorBoard:
    """Event files in `tensorboard/RUN` beside the run folder, so that one TensorBoard shows several searches."""

    def __init__(self, config: SearchConfig, run: Path) -> None:
        self._writer = _needed("tensorboard.summary", "tensorboard").Writer(str(run.parent / "tensorboard" / run.name))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finished(self, run: Path) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """One MLflow run, where MLFLOW_TRACKING_URI says."""

    def __init__(self, config: SearchConfig, run: Path) -> None:
        self._client = _needed("mlflow", "mlflow").MlflowClient()
        self._run, self._status = _mlflow_run(self._client, config.name).run_id, "FAILED"
        try:
            for key, value in _flat(config.model_dump(mode="json", by_alias=True, exclude={"store"})):
                self._client.log_param(self._run, _mlflow_name(key), value)
        except Exception:
            self._client.set_terminated(self._run, "FAILED")
            raise

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, _mlflow_name(name), value, step=step)

    def finished(self, run: Path) -> None:
        self._client.log_artifact(self._run, str(run / FRONT))
        self._status = "FINISHED"

    def close(self) -> None:
        self._client.set_terminated(self._run, self._status)


class WeightsAndBiases:
    """One W&B run; WANDB_MODE=offline keeps it on this machine, beside the run folder."""

    def __init__(self, config: SearchConfig, run: Path) -> None:
        content = config.model_dump(mode="json", by_alias=True, exclude={"store"})
        library = _needed("wandb", "wandb")
        self._run = library.init(project=PROJECT, name=config.name, dir=str(run.absolute().parent), config=content)
        self._code = 1  # with which a run counts as failed

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        # W&B wants one clock that only goes forward, so the step is a value of its own.
        prefix = next(iter(values)).partition("/")[0]
        self._run.log({**values, f"{prefix}/step": step})

    def finished(self, run: Path) -> None:
        self._run.save(str(run / FRONT), base_path=str(run), policy="now")
        self._code = 0

    def close(self) -> None:
        self._run.finish(self._code)


TRACKERS: Mapping[str, Callable[[SearchConfig, Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


class Several:
    """Tells each of several trackers, and no more whoever has failed: a search does not end with its tracker.

    Args:
        notice: is told in one line of a tracker that has failed.
    """

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._trackers: dict[str, Tracker] = {}
        self._notice = notice

    def add(self, name: str, tracker: Tracker) -> None:
        """One more to tell."""
        self._trackers[name] = tracker

    def progress(self, now: "Progress") -> None:
        """A candidate has ended."""
        values = {"search/front": float(now.front), "search/hypervolume": now.hypervolume, "search/failed": now.failed}
        self._each(lambda tracker: tracker.scalars(values, now.finished + now.failed))

    def finished(self, front: Document, run: Path) -> None:
        """The search is over: validation and test of each entry, at its rank on the front."""

        def tell(tracker: Tracker) -> None:
            for rank, entry in enumerate(front["front"]):
                scores = {f"front/validation/{name}": value for name, value in entry["validation"].items()}
                scores |= {f"front/test/{name}": score["mean"] for name, score in entry["test"].items()}
                tracker.scalars(scores, rank)
            tracker.finished(run)

        self._each(tell)

    def close(self) -> None:
        """Nothing more comes."""
        self._each(lambda tracker: tracker.close())

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except Exception as error:  # each library has errors of its own
                del self._trackers[name]
                with suppress(Exception):  # so that what it was told so far is whole, where that can be
                    tracker.close()
                self._notice(f"{name} fails and is told no more: {_said(error)}")


@contextmanager
def tracking(
    names: Sequence[str], config: SearchConfig, run: Path, notice: Callable[[str], None] = lambda _: None
) -> Iterator[Several]:
    """The named trackers for the length of a block.

    Args:
        notice: is told in one line of a tracker that fails on the way.

    Raises:
        ConfigError: a name is unknown, its package is missing, or it does not begin.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"tracker '{name}' is unknown; {nearest(name, TRACKERS)}")
    several = Several(notice)
    try:
        for name in dict.fromkeys(names):
            try:
                several.add(name, TRACKERS[name](config, run))
            except ConfigError:
                raise
            except Exception as error:
                raise ConfigError(f"{name} does not begin: {_said(error)}") from None
        yield several
    finally:
        several.close()


def register(model: str, folder: Path, front: Document, entry: Document) -> str:
    """Makes an exported entry a new version of a model in MLflow's registry, where MLFLOW_TRACKING_URI says.

    The version's files are artifacts of an MLflow run of its own, which has the entry's genes and scores.

    Args:
        folder: the export.
        entry: what was exported of the front.

    Returns:
        The version.

    Raises:
        ConfigError: MLflow is missing or refuses; says why.
    """
    library = _needed("mlflow", "mlflow")
    client = library.MlflowClient()
    tags = {"search": front["search"], "entry": entry["entry"], "data_sha256": front["data_sha256"]}
    try:
        run = _mlflow_run(client, f"{front['search']} {entry['entry']}")
        for key, value in _flat({key: entry[key] for key in ("weighting", "genes", "serving")}):
            client.log_param(run.run_id, _mlflow_name(key), value)
        for name, value in entry["validation"].items():
            client.log_metric(run.run_id, _mlflow_name(f"validation/{name}"), value)
            client.log_metric(run.run_id, _mlflow_name(f"test/{name}"), entry["test"][name]["mean"])
        client.log_artifacts(run.run_id, str(folder), "entry")
        client.set_terminated(run.run_id)
        if not client.search_registered_models(f"name = '{model}'"):
            client.create_registered_model(model)
        version = client.create_model_version(model, f"{run.artifact_uri}/entry", run.run_id, tags=tags)
    except library.exceptions.MlflowException as error:
        raise ConfigError(f"MLflow does not register '{model}': {_said(error)}") from None
    return str(version.version)


def _mlflow_run(client: Any, name: str) -> Any:
    """A new run in our experiment."""
    experiment = client.get_experiment_by_name(PROJECT)
    number = experiment.experiment_id if experiment else client.create_experiment(PROJECT)
    return client.create_run(number, run_name=name).info


def _mlflow_name(name: str) -> str:
    """MLflow has few signs in its names: neither @ nor brackets."""
    return re.sub(r"[^\w\-./ ]", "_", name.replace("@", "_at_").replace("=", "_is_"))


def _said(error: Exception) -> str:
    """An error of a library in one line."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _needed(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(f"tracking needs {package}: pip install 'pareto-search[track]'") from None
