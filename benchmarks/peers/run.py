"""The process of one search: `python -m benchmarks.peers.run FOLDER`."""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from benchmarks.peers.peer import OURS, PeerSearch

MODULES: Mapping[str, str] = {
    OURS: "ours",
    "ray-optuna-motpe": "ray_optuna",
    "ray-optuna-nsga2": "ray_optuna",
    "optuna": "optuna_alone",
    "pymoo-ray": "pymoo_ray",
    "syne-tune-moasha": "moasha",
}


def main() -> None:
    """Runs it until it is ended."""
    peer = PeerSearch.open(Path(sys.argv[1]))
    # Only the peer at hand: what its process imports is part of its time.
    import_module(f"benchmarks.peers.{MODULES[peer.peer]}").search(peer)


if __name__ == "__main__":
    main()
