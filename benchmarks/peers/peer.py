"""A peer's search in its folder: what it is, what its trials share, and the record of each that has ended.

The folder looks as a run folder of ours does. Beside `search.yaml`, `components/` and `checkpoints/` lie `search.json`,
which says whose search it is and when its process began, and, for all but ours, `trials/`, a file for each trial. In
the tier `tuned` there is also `known.json`, the settings from which each inner search starts.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pareto_search import checkpoint
from pareto_search.archive import choose
from pareto_search.candidate import Evaluation, Genes
from pareto_search.comparison import EARLY_SETTINGS
from pareto_search.config import SearchConfig
from pareto_search.executor import Result
from pareto_search.launch import workload
from pareto_search.objective import Values, is_feasible
from pareto_search.recsys.dataset import load
from pareto_search.recsys.split import split
from pareto_search.results import ENTRIES, write_whole
from pareto_search.space import BLENDED, SASREC, SearchSpace
from pareto_search.store import Store
from pareto_search.workers.workload import Workload

if TYPE_CHECKING:  # the process that leads a search of ours loads no torch, and must not here
    from pareto_search.workers.worker import Components, Worker

Tier = Literal["tuned", "default"]
Report = Callable[[int, Values], None]
"""Is told the steps taken, and the values of the checkpoint alone, at each rung below the full one."""
OURS = "ours"


@dataclass(frozen=True)
class Trial:
    """A trial that has ended well.

    Attributes:
        elapsed: seconds since the search's process began.
    """

    elapsed: float
    evaluations: Sequence[Evaluation]


@dataclass(frozen=True)
class PeerSearch:
    """One search by one peer, ours included.

    Attributes:
        began: a Unix time.
    """

    folder: Path
    config: SearchConfig
    peer: str
    tier: Tier
    began: float

    @classmethod
    def begin(cls, folder: Path, config: SearchConfig, peer: str, tier: Tier) -> "PeerSearch":
        """Writes a new folder; the clock runs from here."""
        folder.mkdir(parents=True)
        (folder / "search.yaml").write_text(config.to_yaml(), encoding="utf-8")
        content = {"peer": peer, "tier": tier, "began": time.time()}
        (folder / "search.json").write_text(json.dumps(content), encoding="utf-8")
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "PeerSearch":
        content = json.loads((folder / "search.json").read_text(encoding="utf-8"))
        return cls(folder, SearchConfig.load(folder / "search.yaml"), **content)

    @property
    def space(self) -> SearchSpace:
        """What the peer searches: in the tier `default` one serving setting a trial, as one writes it first."""
        whole = self.config.search_space
        return whole if self.tier == "default" else whole.of("training")

    @property
    def random_trials(self) -> int:
        """How many of MO-TPE's proposals are random: its own 10 would all be, in a search as short as these."""
        return 4 if self.tier == "tuned" else 10

    @cached_property
    def workload(self) -> Workload:
        data = load(**self.config.data.arguments())
        return workload(self.config, data, split(data, **self.config.splitting()))

    def losses(self, values: Values) -> dict[str, float]:
        """The objectives for those who only minimise."""
        return {o.name: -o.normalise(values[o.name]) for o in self.config.objectives}

    def prepare(self, worker: "Worker") -> None:
        """Fits what all trials share, unless it is there; the processes that come at the same time share the work. In
        the tier `tuned` the worker then has all that ours have.
        """
        for name, what in self._fits.items():
            if self._claims(name):
                checkpoint.write(self.folder / "components" / name, worker.fit(*what) or {})
        components = self.components()
        if self.tier == "tuned":
            worker.equip(components)
            if self._claims("known"):
                write_whole(self.folder / "known.json", json.dumps(self._known(worker, components)))
            worker.teach(json.loads(_there(self.folder / "known.json").read_text(encoding="utf-8")))

    def components(self) -> "Components":
        """Waits until they are fitted; one that the catalogue is too large for is left out.

        Ours has ended when it is asked, perhaps before all of them were there.
        """
        if self.peer == OURS:
            folders = {name: self.folder / "components" / name for name in self._fits}
            return {name: checkpoint.read(folder) for name, folder in folders.items() if folder.is_dir()}
        from pareto_search.workers.recommender import joined

        files = {name: checkpoint.read(_there(self.folder / "components" / name)) for name in self._fits}
        towers = [files.pop(name) for name, (component, *_) in self._fits.items() if component == "warm-start"]
        return {"warm-start": joined(towers), **{name: found for name, found in files.items() if found}}

    @property
    def _fits(self) -> dict[str, tuple[str] | tuple[str, int]]:
        """What all trials need, by the name of its folder, and how a worker fits it: the longest first.

        Our launch hands out the warm start's towers one by one too, but keeps them as one.
        """
        each = {f"warm-start-{n}": ("warm-start", n) for n in range(self.config.model.towers)}
        towers = {"warm-start": ("warm-start",)} if self.peer == OURS else each
        alone = {name: (name,) for name in self.config.blended}
        longest = {name: fit for name, fit in alone.items() if name == SASREC}
        return {**longest, **towers, **alone}

    def record(self, genes: Genes, result: Result) -> None:
        """Keeps what a trial has found; the trial counts from the moment at which that is safe."""
        name = result.evaluations[0].candidate
        checkpoint.write(self.folder / "checkpoints" / name, result.files)
        content: dict[str, Any] = {"genes": dict(genes), "seconds": result.seconds}
        content["evaluations"] = [asdict(e) for e in result.evaluations]
        (self.folder / "trials").mkdir(exist_ok=True)
        text = json.dumps({"elapsed": time.time() - self.began, **content})
        write_whole(self.folder / "trials" / f"{name}.json", text)

    def trials(self) -> list[Trial]:
        """All that have ended well, in the order in which they did."""
        found = self._attempts() if self.peer == OURS else self._recorded()
        return sorted(found, key=lambda trial: trial.elapsed)

    def _claims(self, name: str) -> bool:
        """Whether this process is the one to do it."""
        try:
            (self.folder / f"{name}.claimed").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _known(self, worker: "Worker", components: "Components") -> list[Genes]:
        """The settings that serve the warm start well, of as many as our launch tries before its first entry."""
        config = self.config
        count = EARLY_SETTINGS * config.search.serving_settings
        curve = worker.curve("warm-start", [n for n in BLENDED if n in components], count)
        kept = [(setting, v) for setting, v in curve if is_feasible(v, config.objectives, config.constraints)]
        return [dict(kept[i][0]) for i in choose([v for _, v in kept], config.objectives, ENTRIES)]

    def _recorded(self) -> list[Trial]:
        contents = [json.loads(path.read_text(encoding="utf-8")) for path in self.folder.glob("trials/[!.]*.json")]
        return [Trial(c["elapsed"], [Evaluation(**e) for e in c["evaluations"]]) for c in contents]

    def _attempts(self) -> list[Trial]:
        """Our record's attempts at the full rung."""
        store = Store.open(self.folder / "search.db")
        mine: dict[tuple[str, int], list[Evaluation]] = defaultdict(list)
        for evaluation in store.evaluations():
            if evaluation.steps == self.config.search.steps:
                mine[evaluation.candidate, evaluation.attempt].append(evaluation)
        ends = {(a.candidate, a.number): a.ended for a in store.attempts() if a.ended is not None}
        store.close()
        return [Trial(ends[attempt] - self.began, evaluations) for attempt, evaluations in mine.items()]


def _there(path: Path) -> Path:
    """Waits for what another process is making."""
    while not path.exists():
        time.sleep(0.1)
    return path
