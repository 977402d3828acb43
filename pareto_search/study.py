"""The archive of a search as an Optuna study, which Optuna's dashboard opens."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
        RunError: the file exists, or its folder does not.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("export-study needs optuna: pip install 'pareto-search[track]'") from None
    if path.exists():
        raise RunError(f"{path} is there already; give --to a new file")
    if not path.absolute().parent.is_dir():
        raise RunError(f"{path} cannot be written; expected a file name in a folder that exists")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    new = path.absolute().with_name(f".{path.name}.new")  # gets its name when it is whole
    new.unlink(missing_ok=True)
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
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=row,
                distributions={gene: kinds[gene] for gene in row},
                values=[evaluation.values[o.name] for o in objectives],
                user_attrs={
                    "entry": evaluation.entry,
                    "candidate": evaluation.candidate,
                    "kind": genes[evaluation.candidate].kind,
                    "steps": evaluation.steps,
                },
            )
            for row, evaluation in zip(rows, evaluations, strict=True)
        ]
    )
    new.replace(path)
    return len(rows)


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
