"""The archive of a search as an Optuna study, which Optuna's dashboard opens."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pareto_search.candidate import Candidate, Evaluation, GeneValue
from pareto_search.errors import ConfigError, RunError
from pareto_search.objective import Objective


def write_study(
    path: Path,
    name: str,
    objectives: Sequence[Objective],
    candidates: Sequence[Candidate],
    evaluations: Sequence[Evaluation],
) -> int:
    """Writes a new SQLite file with one study, in which each evaluation is one of Optuna's trials.

    Its parameters are the training genes and, with `serving.` in front, the serving genes; which entry, candidate and
    rung it was is in its attributes.

    Returns:
        How many evaluations there are.

    Raises:
        ConfigError: Optuna is missing.
        RunError: the file exists, or cannot be written.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("export-study needs optuna: pip install 'pareto-search[track]'") from None
    if path.exists():
        raise RunError(f"{path} is there already; give --to a new file")
    new = path.absolute().with_name(f".{path.name}.new")  # gets its name when it is whole
    try:
        new.write_bytes(b"")
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}); expected a file name in a folder to write in"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=name,
        storage=f"sqlite:///{new}",
        directions=["maximize" if o.direction == "maximise" else "minimize" for o in objectives],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # names are; the dashboard shows them
        study.set_metric_names([o.name for o in objectives])
    genes = {c.id: c for c in candidates}
    rows = [_parameters(genes[e.candidate], e) for e in evaluations]
    kinds = _distributions(rows, optuna.distributions)
    notes = [
        {"entry": e.entry, "candidate": e.candidate, "kind": genes[e.candidate].kind, "steps": e.steps}
        for e in evaluations
    ]
    _insert(new, rows, kinds, [[e.values[o.name] for o in objectives] for e in evaluations], notes)
    new.replace(path)
    return len(rows)


def _insert(
    path: Path,
    rows: Sequence[Mapping[str, GeneValue]],
    kinds: Mapping[str, Any],
    values: Sequence[Sequence[float]],
    notes: Sequence[Mapping[str, object]],
) -> None:
    """Fills Optuna's tables at once: its own way takes some 50 ms a trial, ten minutes for 10,000 of them."""
    from optuna.distributions import distribution_to_json

    described = {name: distribution_to_json(kind) for name, kind in kinds.items()}
    now = datetime.now()
    engine = sa.create_engine(f"sqlite:///{path}")
    tables = sa.MetaData()
    with engine.begin() as connection:
        tables.reflect(connection)
        study = connection.execute(sa.select(tables.tables["studies"].c.study_id)).scalar_one()

        def fill(name: str, content: Iterable[Mapping[str, Any]]) -> None:
            if listed := list(content):
                connection.execute(sa.insert(tables.tables[name]), listed)

        trial = {"study_id": study, "state": "COMPLETE", "datetime_start": now, "datetime_complete": now}
        fill("trials", ({**trial, "trial_id": n + 1, "number": n} for n in range(len(rows))))
        fill(
            "trial_values",
            (
                {"trial_id": n + 1, "objective": objective, "value": value, "value_type": "FINITE"}
                for n, several in enumerate(values)
                for objective, value in enumerate(several)
            ),
        )
        fill(
            "trial_params",
            (
                {
                    "trial_id": n + 1,
                    "param_name": name,
                    "param_value": kinds[name].to_internal_repr(value),
                    "distribution_json": described[name],
                }
                for n, row in enumerate(rows)
                for name, value in row.items()
            ),
        )
        fill(
            "trial_user_attributes",
            (
                {"trial_id": n + 1, "key": key, "value_json": json.dumps(value)}
                for n, note in enumerate(notes)
                for key, value in note.items()
            ),
        )
    engine.dispose()


def _parameters(candidate: Candidate, evaluation: Evaluation) -> dict[str, GeneValue]:
    return {**candidate.genes, **{f"serving.{name}": value for name, value in evaluation.serving.items()}}


def _distributions(rows: Sequence[Mapping[str, GeneValue]], kinds: Any) -> dict[str, Any]:
    """What Optuna wants to know of each parameter: its range, or its choices."""
    seen: dict[str, list[GeneValue]] = {}
    for row in rows:
        for name, value in row.items():
            seen.setdefault(name, []).append(value)
    found: dict[str, Any] = {}
    for name, values in seen.items():
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < len(values):
            found[name] = kinds.CategoricalDistribution(sorted(set(values), key=str))
        elif all(isinstance(v, int) for v in numbers):
            found[name] = kinds.IntDistribution(min(numbers), max(numbers))
        else:
            found[name] = kinds.FloatDistribution(min(numbers), max(numbers))
    return found
