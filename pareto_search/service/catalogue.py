"""What a submitted config may name: the data sets and base models of the service. Nothing in a config is a path."""

import json
import re
import secrets
import shutil
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from pareto_search.config import MINILM, SPLITTING, ColumnsSection, SearchConfig
from pareto_search.errors import ConfigError, DataError, nearest
from pareto_search.recsys.dataset import MOVIELENS
from pareto_search.service import reader
from pareto_search.service.making import made, sweep
from pareto_search.service.record import NAME, ConflictError, DataSet, Deployment, Job, Record
from pareto_search.service.turns import Turns

UNPACKED = 1 << 30
"""The most bytes that an uploaded archive may unpack to."""
READ = 4
"""Of how many data sets the titles are kept at hand."""
ATOMIC = (".inter", ".item", ".user")
"""Of which the last one may be missing."""
TABLES = (".csv", ".parquet")


class Catalogue:
    """The data sets in the record, and the base models that the operator allows.

    Args:
        root: the service's folder, where uploads go.
        data: the operator's data sets, `NAME=SOURCE` each.
        bases: the operator's base models, `NAME=FOLDER` or `NAME=OWNER/MODEL@REVISION` each.

    Raises:
        ConfigError: one of them has another form.
        DataError: a source is not there.
    """

    def __init__(self, root: Path, record: Record, data: Sequence[str], bases: Sequence[str]) -> None:
        self._folder, self._record = root / "data", record
        self._lock = threading.Lock()
        self._turns = Turns()
        self._titles: OrderedDict[tuple[str, float], Sequence[tuple[str, str, str]]] = OrderedDict()
        self._bases = {MINILM: {"base": MINILM}} | dict(map(_base, bases))
        self._register(dict(map(_source, data)))
        sweep(self._folder, {_folder_of(d).name for d in record.data_sets() if d.origin == "upload"})

    @property
    def bases(self) -> list[str]:
        """The names of the base models."""
        return list(self._bases)

    def resolved(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A submitted config with what its names stand for.

        Raises:
            ConfigError: it names something by another way than by a registered name.
            MissingError: a name is not registered.
        """
        try:
            json.dumps(config, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ConfigError("the config has half of a character, which UTF-8 does not have; leave it out") from None
        data, model = (_mapping(config, key) for key in ("data", "model"))
        name = data.get("source")
        wrong = next((k for k in ("interactions", "items", "users", "columns") if k in data), None)
        if wrong or not isinstance(name, str):
            known = ", ".join(d.name for d in self._record.data_sets())
            raise ConfigError(
                f"data.{wrong or 'source'} is no name of a data set; expected data.source, one of: {known}"
            )
        base = model.get("base", MINILM)
        if "revision" in model or not isinstance(base, str) or base not in self._bases:
            hint = nearest(str(base)[:80], self._bases)
            wrong = "revision" if "revision" in model else "base"
            raise ConfigError(f"model.{wrong} is not this service's; expected model.base alone, {hint}")
        if config.get("store") is not None:
            raise ConfigError("store is not yours to choose on a service; leave it out")
        section = {**{k: v for k, v in data.items() if k != "source"}, **self._record.data_set(name).section}
        return {**config, "data": section, "model": {**model, **self._bases[base]}}

    def find(self, name: str, words: str, limit: int) -> list[tuple[str, str]]:
        """Ids and titles of items whose title has all the words, or parts of words; the shortest titles first.

        The first question reads the data set, which takes as long as it does for a search.

        Raises:
            MissingError: the data set is not registered.
            DataError: it cannot be read any more.
            ConflictError: too many wait for their first answer.
        """
        data, wanted = self._record.data_set(name), words.lower().split()
        key = (data.name, data.created)
        titles = self._titles.get(key)  # whoever asks for what was read need not wait for what is being read
        if titles is None:
            with self._turns.taken():
                titles = self._titles.get(key) or self._read(data)
        with self._lock:
            self._titles[key] = titles
            self._titles.move_to_end(key)
            while len(self._titles) > READ:
                self._titles.popitem(last=False)
        found = [(item, title) for item, title, small in titles if all(word in small for word in wanted)]
        return sorted(found, key=lambda pair: (len(pair[1]), pair))[:limit]

    def upload_archive(self, name: str, archive: BinaryIO) -> DataSet:
        """Adds a zip archive with one RecBole `.inter`, one `.item` and perhaps one `.user` file.

        Raises:
            ConflictError: the name is taken.
            DataError: the archive cannot be read, or the data in it does not fit.
        """
        with self._new(name) as folder:
            _unpack(archive, folder)
            return self._add(name, {"source": str(folder)}, folder)

    def upload_tables(self, name: str, tables: Mapping[str, tuple[str, BinaryIO]], columns: str) -> DataSet:
        """Adds tables, CSV or Parquet by the ends of their names; `columns` is JSON, as in a config.

        Args:
            tables: `interactions`, `items` and, where the columns have groups, `users`: the name of a file, and it.

        Raises:
            ConflictError: the name is taken.
            ConfigError: the columns do not fit.
            DataError: the data does not fit.
        """
        try:
            section: dict[str, Any] = {"columns": ColumnsSection.model_validate_json(columns).model_dump(mode="json")}
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(("columns", *map(str, first["loc"])))
            raise ConfigError(f"{where}: {first['msg']}; expected what a config has under data.columns") from None
        if ("users" in tables) != bool(section["columns"]["groups"]):
            raise ConfigError("there is one of a users table and columns.groups; expected both, or neither")
        with self._new(name) as folder:
            for role, (file_name, content) in tables.items():
                suffix = Path(file_name).suffix.lower()
                if suffix not in TABLES:
                    raise DataError(
                        f"{role} is of an unknown format; expected a file name that ends in .csv or .parquet"
                    )
                section[role] = str(folder / f"{role}{suffix}")
                with Path(section[role]).open("wb") as file:
                    shutil.copyfileobj(content, file)
            return self._add(name, section, folder)

    def remove(self, name: str) -> None:
        """Removes an uploaded data set.

        Raises:
            MissingError: there is none.
            ConflictError: it is the operator's, or a search or a deployment uses it.
        """
        data = self._record.data_set(name)
        if data.origin == "operator":
            raise ConflictError(f"data set '{name}' is the operator's; only uploads can be deleted")
        users: list[Job | Deployment] = [*self._record.searches(), *self._record.deployments()]
        if user := next((u.id for u in users if u.data == name), None):
            raise ConflictError(f"data set '{name}' is used by '{user}'; delete that first")
        self._record.remove_data(name)
        shutil.rmtree(_folder_of(data), ignore_errors=True)

    def _read(self, data: DataSet) -> Sequence[tuple[str, str, str]]:
        return [(item, title, title.lower()) for item, title in reader.read(data.section).items]

    def _register(self, given: Mapping[str, Mapping[str, Any]]) -> None:
        """Makes the operator's data sets in the record those of this start."""
        known = {d.name: d for d in self._record.data_sets()}
        for name, section in ({MOVIELENS: {"source": MOVIELENS}} | dict(given)).items():
            held = known.pop(name, None)
            if held is not None and held.origin == "upload":
                raise ConfigError(
                    f"data set '{name}' was uploaded; give --data another name, or delete the upload first"
                )
            if held is None or held.section != section:
                self._record.remove_data(name)
                self._record.add_data(DataSet(name, "operator", section))
        for name, held in known.items():
            if held.origin == "operator":
                self._record.remove_data(name)

    @contextmanager
    def _new(self, name: str) -> Iterator[Path]:
        """A folder for an upload, gone again where it fails; its name is ours, not the user's."""
        if any(d.name == name for d in self._record.data_sets()):
            raise ConflictError(f"data set '{name}' is there already; choose another name")
        folder = self._folder / secrets.token_hex(8)
        try:
            with made(folder):
                yield folder
        except DataError as error:  # a user need not know where the service has its files
            raise DataError(str(error).replace(f"{folder}/", "").replace(str(folder), name)) from None

    def _add(self, name: str, section: Mapping[str, Any], folder: Path) -> DataSet:
        """Registers files that can be read as a data set."""
        added = DataSet(name, "upload", section, reader.read(section).facts)
        self._record.add_data(added)
        return added


def _folder_of(upload: DataSet) -> Path:
    files = upload.section.get("interactions")
    return Path(files).parent if files else Path(upload.section["source"])


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key, {})
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is no mapping; expected one such as {{'source': '{MOVIELENS}'}}")
    return value


def _named(text: str, wish: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not re.fullmatch(NAME, name) or not value:
        raise ConfigError(f"'{text}' is not of the form {wish}, with a name of lower-case letters, digits and dashes")
    return name, value


def _source(text: str) -> tuple[str, Mapping[str, Any]]:
    name, value = _named(text, "NAME=SOURCE")
    if value.endswith((".yaml", ".yml")):
        section = SearchConfig.load(value).data
        return name, section.model_dump(mode="json", exclude_none=True, exclude=set(SPLITTING))
    if value != MOVIELENS and not Path(value).is_dir():
        raise DataError(
            f"data source '{value}' is not there; expected {MOVIELENS}, a folder of atomic files or a config (.yaml)"
        )
    return name, {"source": value if value == MOVIELENS else str(Path(value).resolve())}


def _base(text: str) -> tuple[str, dict[str, str]]:
    name, value = _named(text, "NAME=FOLDER or NAME=OWNER/MODEL@REVISION")
    if Path(value).is_dir():
        return name, {"base": str(Path(value).resolve())}
    hub, _, revision = value.partition("@")
    if hub.count("/") != 1 or not revision:
        raise ConfigError(
            f"base '{value}' is no folder; expected one, or a hub id with its revision, OWNER/MODEL@REVISION"
        )
    return name, {"base": hub, "revision": revision}


def _unpack(archive: BinaryIO, folder: Path) -> None:
    """Only the files that are wanted, under names of ours, and never more than `UNPACKED` bytes each."""
    try:
        with zipfile.ZipFile(archive) as members:
            for suffix in ATOMIC:
                found = [m for m in members.infolist() if m.filename.endswith(suffix)]
                if not found and suffix == ATOMIC[-1]:
                    continue
                if len(found) != 1:
                    raise DataError(f"the archive has {len(found)} files that end in {suffix}; expected one")
                # Of the other methods Python takes any number of bytes into memory at once.
                if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise DataError(
                        f"{suffix} is packed in a way that few programs read; expected zip's usual one, deflate"
                    )
                left = UNPACKED
                with members.open(found[0]) as packed, (folder / f"data{suffix}").open("wb") as file:
                    while chunk := packed.read(1 << 20):
                        left -= len(chunk)
                        if left < 0:
                            raise DataError(f"the archive unpacks to more than {UNPACKED >> 20} MiB; give less data")
                        file.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"the archive cannot be read ({error}); expected a zip file without a password") from None
