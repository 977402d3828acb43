"""Our own search, in the process of its own that every peer has."""

from benchmarks.peers.peer import PeerSearch
from pareto_search import run_search


def search(peer: PeerSearch) -> None:
    """Goes on until its minutes are spent."""
    run_search(peer.config, peer.folder)
