"""What a search is given: its data, divided into parts, and refused where it lacks what the config asks for."""

from collections.abc import Callable, Sequence

from pareto_search.config import SearchConfig
from pareto_search.errors import ConfigError
from pareto_search.recsys.dataset import DOMAIN, LARGEST_SQUARE, OWN_GROUPS, Dataset, load
from pareto_search.recsys.metrics import LEAST_SHARE, counted, parse_metric
from pareto_search.recsys.split import Split, split
from pareto_search.space import metric_family

FROM_TRAINING = ("novelty", "credibility", "tail")
"""Metrics of what the training part says of an item."""
OF_FEATURES = ("ild", "calibration", "history_novelty")
"""Metrics of what items have in common."""
MOST_FEATURES = 500_000_000
"""How many numbers the categories of all items may be, two gigabytes."""


def divide(config: SearchConfig, notice: Callable[[str], None]) -> tuple[Dataset, Split]:
    """The data of a search and its parts.

    Args:
        notice: takes one line of text.

    Raises:
        UserError: the data cannot be read, or lacks what the config asks for.
    """
    data = load(**config.data.arguments())
    _check(config, data)
    for reason, number in data.dropped.items():
        notice(f"Left out {reason}: {number}.")
    parts = split(data, **config.splitting())
    _check_groups(config, parts)
    _check_offered(config, data, parts)
    _tell_of_short_lists(config, parts, notice)
    if few := parts.unvalidated:
        notice(
            f"Validation is of {len(parts.validation.users)} users, drawn by lot, and not of {few} more, since "
            "each checkpoint is tried with many settings on it. Test is of all of them."
        )
    return data, parts


def _check(config: SearchConfig, data: Dataset) -> None:
    """Refuses what the data cannot give."""
    for family, given, kind in (
        ("credibility", data.ratings, "ratings"),
        ("calibration", data.categories, "categories"),
    ):
        needy = next((name for name in config.metrics if name.startswith(f"{family}@")), None)
        if needy is not None and given is None:
            raise ConfigError(f"{needy} needs {kind}, and {data.name} has none; leave it out or name their column")
    _check_differences(config, data)
    if _distils(config) and len(data.item_ids) > LARGEST_SQUARE:
        raise ConfigError(
            f"space.distillation needs EASE, which is fitted to {LARGEST_SQUARE:,} items at most; {data.name} has "
            f"{len(data.item_ids):,}"
        )
    if config.data.split == "temporal" and not data.timed:
        raise ConfigError(f"split temporal needs timestamps, and {data.name} has none; use leave_last_out")
    for name, wish in ((name, parse_metric(name)) for name in config.metrics):
        groups = [*data.groups, *(name for name in OWN_GROUPS if name != DOMAIN or data.domains)]
        if wish.by is not None and wish.by not in groups:
            known = ", ".join(groups)
            raise ConfigError(
                f"{name} wants the users' {wish.by}, but {data.name} has {known}; name its column in "
                "data.columns.groups, or give another metric"
            )


def _check_differences(config: SearchConfig, data: Dataset) -> None:
    """Refuses metrics that would be the same of all lists, and more categories than fit into memory."""

    def wanted(families: Sequence[str]) -> str | None:
        return next((name for name in config.metrics if metric_family(name) in families), None)

    alike = data.ratings is not None and data.ratings.min() == data.ratings.max()
    if alike and (name := wanted(["credibility"])) is not None:
        raise ConfigError(f"{name} needs ratings that differ, and all of {data.name} are the same; leave it out")
    if data.categories is None:
        return
    kinds = {frozenset(several) for several in data.categories}
    if len(kinds) == 1 and (name := wanted(OF_FEATURES)) is not None:
        have = ", ".join(sorted(*kinds)) or "none"
        raise ConfigError(
            f"{name} needs categories that differ, and all items of {data.name} have {have}; leave their column "
            "out, so that distances come from the texts, or name another one"
        )
    count = len(frozenset().union(*kinds))
    if count * len(data.categories) > MOST_FEATURES:
        raise ConfigError(
            f"{data.name} has {count:,} categories for {len(data.categories):,} items, which do not fit into memory; "
            "name a coarser column, or check what separates them (columns.separator)"
        )


def _distils(config: SearchConfig) -> bool:
    """Whether candidates may have a teacher."""
    return config.search_space.fixed.get("distillation") != 0.0


def _check_groups(config: SearchConfig, parts: Split) -> None:
    """Refuses metrics of groups that nobody belongs to, or of a gap between fewer than two."""
    for where, part in (("validation", parts.validation), ("test", parts.test)):
        for name, wish in ((name, parse_metric(name)) for name in config.metrics):
            if wish.by is None:
                continue
            groups = counted(part.groups[wish.by])
            known = ", ".join(groups[:10])
            if wish.group is not None and wish.group not in part.groups[wish.by]:
                raise ConfigError(
                    f"{name}: no user of the {where} part has the {wish.by} '{wish.group}'; there is {known}"
                )
            if wish.group is None and len(groups) < 2:
                share = f"{LEAST_SHARE:.0%} of the users of the {where} part"
                raise ConfigError(f"{name}: {len(groups)} groups have {share}; expected two for a gap between them")


def _check_offered(config: SearchConfig, data: Dataset, parts: Split) -> None:
    """Refuses metrics for which what may be recommended is too little, or all alike."""
    whose = f"{config.data.target} of {data.name}" if config.data.target else data.name
    count = parts.n_items if parts.offered is None else int(parts.offered.sum())
    longest = max(config.metrics, key=lambda name: parse_metric(name).k)
    if parse_metric(longest).k > count:
        raise ConfigError(f"{longest} needs more items than the {count} of {whose}; lower its cut-off")
    if parts.offered is not None and not parts.offered[parts.train.items].any():
        if _distils(config):
            raise ConfigError(
                f"space.distillation has EASE as a teacher, which knows no item of {whose}, because none of their "
                "interactions are trained on; leave it out, or give data.shots above 0"
            )
        alike = next((o.name for o in config.objectives if metric_family(o.name) in FROM_TRAINING), None)
        if alike is not None:
            raise ConfigError(
                f"objective {alike} tells no items of {whose} apart, because none of their interactions are trained "
                "on; leave it out, or give data.shots above 0"
            )


def _tell_of_short_lists(config: SearchConfig, parts: Split, notice: Callable[[str], None]) -> None:
    longest = max(parse_metric(name).k for name in config.metrics)
    if few := parts.with_fewer_left(longest):
        notice(
            f"{few} users have fewer than {longest} items left: what may not be shown fills up their lists, and counts "
            "in their metrics."
        )
