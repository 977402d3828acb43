"""What a search on newer data takes over from an older one: its front's checkpoints, over the newer catalogue.

They lie in `old/` of the newer run folder, so that from then on nothing more is wanted of the older one:

    old/c0007/      a checkpoint of the front
    old/ease/       a component that entries of the front blend in
    old/old.json    the entries, and the forerunners: what the newer search's first candidates are made of
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load, save

from pareto_search import checkpoint
from pareto_search.archive import choose
from pareto_search.candidate import Candidate, Forerunner
from pareto_search.config import SearchConfig
from pareto_search.errors import CheckpointError, DataError, RunError
from pareto_search.executor import Files
from pareto_search.fusion import fused, members_of, weights_of
from pareto_search.recsys import dataset
from pareto_search.recsys.dataset import Dataset
from pareto_search.recsys.split import Sequences, Split, split
from pareto_search.results import ENTRIES, Document, load_front, objectives_of, write_whole
from pareto_search.space import BLENDED
from pareto_search.store import Store

FOLDER = "old"
LEAKED = 0.01
"""The share of what is held out that the older search may have trained on: with more, test would flatter its front."""


def take_over(
    source: Path, config: SearchConfig, run: Path, data: Dataset, parts: Split, *, base_sha256: str
) -> list[str]:
    """Writes what `run` needs of the older search in `source`; where it is there already, nothing is done.

    Args:
        config: the older search's.
        data, parts: the newer ones.
        base_sha256: of the base model, which must be the older search's.

    Returns:
        What a user should know.

    Raises:
        RunError: the older search has no front, or `run` holds a search that took over from another one or from none.
        DataError: the data is not a newer state of what the older search was run on.
        CheckpointError: a file of the older search is missing or changed, or its base model is another one.
    """
    front = load_front(source)
    if front["base"]["sha256"] != base_sha256:
        raise CheckpointError(f"base model '{front['base']['id']}' is not what {source} was searched with; restore it")
    entries = front["front"]
    if not entries:
        raise RunError(f"the front of {source} has no entries; expected some to go on from")
    if (run / "search.yaml").is_file():
        if not (run / FOLDER).is_dir() or _read(run)["entries"] != entries:
            raise RunError(f"{run} holds a search that is no refresh of {source}; give --out a new folder")
        return []
    discard(run)
    names = list(dict.fromkeys(e["candidate"] for e in entries))
    files = {name: checkpoint.read(source / "checkpoints" / name) for name in names}
    for name in BLENDED:
        if any(float(e["serving"].get(name, 0.0)) for e in entries):
            files[name] = checkpoint.read(source / "components" / name)
    for name in names:
        files |= {member: found for member, found in members_of(files[name]).items() if member not in files}
    known = json.loads(files[names[0]]["recommender.json"])["items"]
    place = pd.Index(known).get_indexer(pd.Index(data.item_ids))
    if not (place >= 0).any():
        raise DataError(f"no item of {data.name} is known to {source}; expected the same ids, and some new ones")
    notices = _compared(config, front, data, parts)
    for name, content in files.items():
        checkpoint.write(run / FOLDER / name, moved(content, data.item_ids, place, parts.groups))
    store = Store.open(config.store or source / "search.db", config.name)
    forerunners = _forerunners(front, {c.id: c for c in store.candidates()})
    store.close()
    write_whole(run / FOLDER / "old.json", json.dumps({"entries": entries, "forerunners": forerunners}, indent=1))
    new, gone = int((place < 0).sum()), len(known) - int((place >= 0).sum())
    return [*notices, f"Of {len(data.item_ids)} items {new} are new to the old front, and {gone} of its own are gone."]


def discard(run: Path) -> None:
    """Removes what a kill has left of a run folder that was only begun."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def forerunners(run: Path) -> list[Forerunner]:
    """What the first candidates of a run are made of, the best first; nothing where it goes back to no older one."""
    return [Forerunner(**content) for content in _read(run)["forerunners"]]


def entries(run: Path) -> list[Document]:
    """The older front's entries as they were; none where there is no older one."""
    return list(_read(run)["entries"])


def moved(
    files: Files, items: Sequence[str], place: NDArray[np.intp], groups: Mapping[str, Sequence[str]]
) -> dict[str, bytes]:
    """A checkpoint or component over another catalogue.

    An item that it does not know has its text alone: no ID embedding, the average item's bias, nothing similar to it.
    A group that it does not know is as if nobody had told.

    Args:
        items: the ids of the other catalogue, m of them.
        place: `(m,)` where each is in the catalogue of the files, -1 where it is not.
        groups: of each kind that the tower reads, those of the other data.

    Raises:
        CheckpointError: another release wrote the files.
    """
    weights = weights_of(files)
    if weights:
        members = {name: moved(member, items, place, groups) for name, member in members_of(files).items()}
        notes = json.loads(files["recommender.json"])
        return fused(members, weights, notes | {"items": list(items), "group_names": list(groups.items())})
    found = dict(files)
    if "recommender.json" in files and "towers" not in json.loads(files["recommender.json"]):
        raise CheckpointError("the old front was made by another release, whose checkpoints are not read; search anew")
    notes = json.loads(files.get("recommender.json", b"{}"))
    for file in files.keys() & {"recommender.safetensors", "weights.safetensors", "vectors.safetensors"}:
        rows = {name: _rows(name, tensor, place) for name, tensor in load(files[file]).items()}
        if "group" in rows:
            rows["group"] = _group_rows(rows["group"], dict(notes["group_names"]), groups)
        found[file] = save({n: np.ascontiguousarray(r) for n, r in rows.items()})  # of another layout it saves nonsense
    if notes:
        notes |= {"n_items": len(items), "items": list(items)}
        if notes.get("groups"):
            notes |= {"groups": [len(groups[kind]) for kind in groups], "group_names": list(groups.items())}
        found["recommender.json"] = json.dumps(notes, indent=2, sort_keys=True).encode()
    return found


def _rows(name: str, tensor: NDArray[np.float32], place: NDArray[np.intp]) -> NDArray[np.float32]:
    known = place >= 0  # towers are the first axis
    if name == "item_bias":
        return np.where(known, tensor[:, place], tensor.mean(1, keepdims=True)).astype(tensor.dtype)
    if name == "item_embedding":
        return np.where(known[:, None], tensor[:, place], 0).astype(tensor.dtype)
    if name == "weights":
        return np.where(known[:, None] & known, tensor[np.ix_(place, place)], 0).astype(tensor.dtype)
    if name == "vectors":
        return np.where(known[:, None], tensor[place], 0).astype(tensor.dtype)
    return tensor


def _group_rows(
    tensor: NDArray[np.float32], old: Mapping[str, Sequence[str]], new: Mapping[str, Sequence[str]]
) -> NDArray[np.float32]:
    """Group embeddings `(towers, 1 + old groups, d)` in the order of other groups; of those that are new, zero."""
    row = {group: row for row, group in enumerate(((k, g) for k, several in old.items() for g in several), start=1)}
    found = [row.get((kind, group), 0) for kind, several in new.items() for group in several]
    return tensor[:, [0, *found]]  # the first row, of what is not known, is zero


def leaked(old: tuple[Dataset, Split], new: tuple[Dataset, Split]) -> int:
    """How many (user, item) pairs the newer split holds out that the older one trained on and the newer does not."""
    (old_data, old_split), (new_data, new_split) = old, new
    users, items = (
        pd.Index(theirs).get_indexer(pd.Index(ours))
        for theirs, ours in ((new_data.user_ids, old_data.user_ids), (new_data.item_ids, old_data.item_ids))
    )
    n = len(new_data.item_ids)

    def pairs(owners: NDArray[np.int_], sequences: Sequences) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
        return np.repeat(owners, np.diff(sequences.indptr)), sequences.items.astype(np.int64)

    owner, item = pairs(users, old_split.train)
    item = items[item]
    theirs = pd.Series((owner * n + item)[(owner >= 0) & (item >= 0)]).value_counts()
    owner, item = pairs(np.arange(new_split.n_users), new_split.train)
    ours = pd.Series(owner * n + item).value_counts()
    held = [pairs(part.users.astype(np.int64), part.targets) for part in (new_split.validation, new_split.test)]
    out = np.unique(np.concatenate([owner * n + item for owner, item in held]))
    return int((theirs.reindex(out, fill_value=0).to_numpy() > ours.reindex(out, fill_value=0).to_numpy()).sum())


def _compared(config: SearchConfig, front: Document, data: Dataset, parts: Split) -> list[str]:
    """What can be said of the data beside that of the older search, which may have been overwritten since."""
    try:
        old = dataset.load(**config.data.arguments())
    except DataError:
        old = None
    if old is None or old.sha256 != front["data_sha256"]:
        return ["The old front's own data is there no more: whether the new one is later cannot be checked."]
    for what in ("ratings", "categories"):
        if (getattr(old, what) is None) != (getattr(data, what) is None):
            have, has = ("none", "some") if getattr(data, what) is None else ("some", "none")
            raise DataError(
                f"{data.name} has {have} where the old front's data has {has}: {what}; expected the same columns"
            )
    count = leaked((old, split(old, **{**config.splitting(), "groups": ()})), (data, parts))
    held = sum(len(part.targets.items) for part in (parts.validation, parts.test))
    if count > LEAKED * held:
        raise DataError(
            f"{count} of the {held} interactions that {data.name} holds out are ones that the old front was trained "
            "on; expected data that goes on where the old one ends"
        )
    return [f"The old front was trained on {count} of the {held} interactions that are held out."] if count else []


def _forerunners(front: Document, candidates: Mapping[str, Candidate]) -> list[Document]:
    """One for each of the genes on the front, those that add most to its hypervolume first.

    A merged checkpoint has the genes of the trained ancestor that has most part in it. For a fused one there are its
    members.
    """
    entries, objectives = front["front"], objectives_of(front)
    order = choose([e["validation"] for e in entries], objectives, ENTRIES)
    members = (
        pair for i in order for pair in (entries[i].get("fuses") or {entries[i]["candidate"]: entries[i]}).items()
    )
    found: dict[str, Document] = {}
    for name, member in members:
        ancestor = candidates[name]
        while ancestor.kind == "merged" and ancestor.parents:
            first, second = (candidates[parent] for parent in ancestor.parents)
            larger, smaller = (first, second) if float(ancestor.genes["share"]) >= 0.5 else (second, first)
            ancestor = larger if larger.genes else smaller  # the warm start has none
        if ancestor.kind == "trained":
            content = {
                "id": f"{FOLDER}/{name}",
                "genes": dict(ancestor.genes),
                "steps": member["lineage_steps"],
            }
            found.setdefault(ancestor.id, content)
    return list(found.values())


def _read(run: Path) -> Document:
    try:
        content: Document = json.loads((run / FOLDER / "old.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"entries": [], "forerunners": []}
    return content
