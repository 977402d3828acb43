"""What several tests share: a tiny data set and base model, and the real ones for the few tests that need them."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray lets its workers wait for whatever else runs: beside other tests, for minutes.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
# Ray reads this once in a process. A search that one test runs in it would set it, and a token, for all that follow.
os.environ["RAY_AUTH_MODE"] = "disabled"

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from postgres import server

from pareto_search import checkpoint
from pareto_search.candidate import Attempt, Candidate
from pareto_search.objective import Objective
from pareto_search.recsys.dataset import Columns, Dataset, load_movielens, load_tables
from pareto_search.recsys.split import Split, split
from pareto_search.space import BLENDED, SearchSpace, default_genes

# torch and transformers are imported where they are used: most tests do without.

WORDS = ("red", "green", "blue", "old", "young", "river", "mountain", "city", "winter", "summer")
GENRES = {"comedy": 2, "drama": 3, "war": 5}
DIGITS = [str(d) for d in range(10)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *WORDS, *GENRES, *DIGITS, *(f"##{d}" for d in DIGITS)]


LONG = ("faults", "service", "test_domains.py", "test_serving.py", "test_cli.py")
"""Folders and files whose tests wait for processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: not set(LONG) & set(item.path.parts))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a server, without a database's name."""
    with server() as url:
        yield url


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """A database that holds nothing, whatever the test before left in it."""
    url = f"{postgresql_server}/postgres"
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")  # quicker than another database
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a record that holds nothing yet, in either database."""
    if request.param == "sqlite":
        return str(tmp_path / "record.db")
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """30 users who read 8 to 10 of 20 items round a circle: item i + 1 always follows item i."""
    folder = tmp_path_factory.mktemp("toy")
    read = [(u, (7 * u + time) % 20, time) for u in range(30) for time in range(8 + u % 3)]
    ratings = [f"{u},{item},{1 + (3 * item + u) % 5},{time}\n" for u, item, time in read]
    titles = [f"{i} {' '.join(WORDS[(i + j) % 10] for j in range(i % 4))}" for i in range(20)]
    genres = ["|".join(name for name, every in GENRES.items() if i % every == 0) for i in range(20)]
    (folder / "ratings.csv").write_text("user,item,rating,time\n" + "".join(ratings))
    (folder / "items.csv").write_text(
        "item,title,genres\n" + "".join(f"{i},{titles[i]},{genres[i]}\n" for i in range(20))
    )
    columns = Columns(
        user="user", item="item", rating="rating", timestamp="time", text=("title", "genres"), categories="genres"
    )
    return load_tables(str(folder / "ratings.csv"), str(folder / "items.csv"), columns, "toy")


@pytest.fixture(scope="session")
def toy_split(toy: Dataset) -> Split:
    return split(toy, "leave_last_out", 0)


@pytest.fixture(scope="session")
def objectives() -> tuple[Objective, ...]:
    """The default four, at a cut-off that fits 20 items."""
    floors = {"ndcg@5": 0.02, "ild@5": 0.1, "novelty@5": 0.05, "credibility@5": 0.1}
    return tuple(Objective(name, "maximise", floor, 1.0) for name, floor in floors.items())


@pytest.fixture(scope="session")
def genes() -> dict[str, Any]:
    """Training genes under which a tiny model learns."""
    return {
        "weight.ild@5": 0.01,
        "weight.novelty@5": 0.01,
        "weight.credibility@5": 0.01,
        "scalarisation": "weighted_sum",
        "adapter": "lora",
        "rank": 4,
        "alpha": 16.0,
        "dropout": 0.1,
        "targets": "query_value",
        "layers": 2,
        "adapter_lr": 1e-2,
        "tower_lr": 5e-3,
        "weight_decay": 0.01,
        "temperature": 1.0,
        "id_embeddings": True,
        "distillation": 0.0,
    }


@pytest.fixture(scope="session")
def save_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Any]:
    """Saves a base model of any config, with random weights and a WordPiece tokenizer for the toy data."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoModel, PreTrainedTokenizerFast

    from pareto_search.workers.base import locate

    def save(config: Any) -> Any:
        folder = tmp_path_factory.mktemp(config.model_type)
        pieces = Tokenizer(models.WordPiece({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
        pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        pieces.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        PreTrainedTokenizerFast(tokenizer_object=pieces, **names).save_pretrained(folder)
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
        return locate(str(folder))

    return save


@pytest.fixture(scope="session")
def tiny_base(save_base: Callable[[Any], Any]) -> Any:
    """A BERT of 3 blocks and width 32."""
    from transformers import BertConfig

    return save_base(
        BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.3,
        )
    )


@pytest.fixture(scope="session")
def encoder(tiny_base: Any, toy: Dataset) -> Any:
    """The tiny base model over the toy data's texts; whoever uses it leaves it as it was."""
    from pareto_search.workers.encoder import Encoder

    return Encoder(tiny_base, toy.texts, max_tokens=16, layers=3)


@pytest.fixture(scope="session")
def workload(tiny_base: Any, toy: Dataset, toy_split: Split, objectives: tuple[Objective, ...]) -> Any:
    """A search over the toy data, for workers in this process."""
    from pareto_search.workers.workload import Workload

    return Workload(
        base=tiny_base.id,
        revision=None,
        dtype="float32",
        max_item_tokens=16,
        history=6,
        tower="attention",
        towers=2,
        time_gaps=True,
        width=16,
        texts=toy.texts,
        categories=toy.categories,
        split=toy_split,
        objectives=objectives,
        constraints=(),
        metrics=tuple(o.name for o in objectives),
        space=SearchSpace.build(default_genes(objectives, BLENDED), {}).of("serving"),
        rungs=(3,),
        patience=None,
        serving_settings=12,
        seed=0,
        rank=32,
        layers=3,
        notes={"items": list(toy.item_ids)},
    )


@pytest.fixture(scope="session")
def toy_run(make_run: Callable[[Any], Path], workload: Any) -> Path:
    """One that nobody changes."""
    return make_run(workload)


@pytest.fixture(scope="session")
def make_run(
    tmp_path_factory: pytest.TempPathFactory,
    toy: Dataset,
    objectives: tuple[Objective, ...],
    genes: dict[str, Any],
) -> Callable[..., Path]:
    """Makes a run folder whose one checkpoint has an adapter far from zero, and two entries: `c0000-s02` re-ranks and
    blends in EASE, and is diverse; `c0000-s00` is the checkpoint alone, and accurate. Genes can be given others."""
    return lambda workload, **others: _run(
        tmp_path_factory.mktemp("toy") / "run", workload, toy, objectives, genes | others
    )


def _run(
    folder: Path,
    workload: Any,
    toy: Dataset,
    objectives: tuple[Objective, ...],
    genes: dict[str, Any],
) -> Path:
    from pareto_search.workers.worker import Worker

    parts = workload.split
    split_by = {"strategy": "leave_last_out", "tie_seed": 0, "groups": list(parts.groups), "sha256": parts.sha256}
    notes = {"data_sha256": toy.sha256, "split": split_by, "metrics": [o.name for o in objectives]}
    worker = Worker(replace(workload, notes=notes, serving_settings=1))
    warm, ease = worker.fit("warm-start"), worker.fit("ease")
    assert warm is not None
    assert ease is not None
    worker.equip({"warm-start": warm})
    checkpoint.write(folder / "checkpoints" / "c0000", worker.run(Attempt(Candidate("c0000", genes))).files)
    checkpoint.write(folder / "components" / "ease", ease)
    names = [o.name for o in objectives]
    entries = [
        {
            "entry": name,
            "candidate": "c0000",
            "kind": "trained",
            "weighting": {"ild@5": 0.01},
            "genes": {"rank": 4, "targets": "query_value"},
            "serving": {"ease": 0.4, "sasrec": 0.0, "diversity": 0.3, "novelty": 0.5} if name == "c0000-s02" else {},
            "validation": dict(zip(names, values, strict=True)),
            "test": {metric: {"mean": 0.2, "low": 0.1234, "high": 0.3} for metric in names},
        }
        for name, values in (("c0000-s02", (0.25, 0.6, 0.3, 0.5)), ("c0000-s00", (0.5, 0.4, 0.2, 0.5)))
    ]
    front = {
        "search": "toy",
        "data_sha256": toy.sha256,
        "split_sha256": parts.sha256,
        "base": {"id": worker.base.id, "sha256": worker.base.sha256},
        "objectives": [
            {"name": o.name, "direction": o.direction, "reference": o.reference, "ideal": o.ideal} for o in objectives
        ],
        "front": entries,
    }
    (folder / "front.json").write_text(json.dumps(front))
    return folder


@pytest.fixture(scope="session")
def movielens() -> Dataset:
    return load_movielens()


@pytest.fixture(scope="session")
def minilm(movielens: Dataset) -> Any:
    """The packaged base model over MovieLens' texts, in the precision that a search uses here."""
    from pareto_search.workers.base import locate
    from pareto_search.workers.encoder import Encoder, precision

    return Encoder(locate("minilm"), movielens.texts, max_tokens=32, layers=2, dtype=precision("auto", "cpu"))
