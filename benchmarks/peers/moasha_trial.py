"""The script that Syne Tune runs for each trial."""

import json
from argparse import ArgumentParser
from pathlib import Path

FOLDER, STEPS = "folder", "steps"
"""Keys of a trial's config and of its reports, beside genes and objectives."""


def main() -> None:
    """Runs the trial of the config file that is named on the command line."""
    from syne_tune import Reporter

    from benchmarks.peers.peer import PeerSearch
    from benchmarks.peers.trainers import run_trial
    from pareto_search.objective import Values

    parser = ArgumentParser()
    parser.add_argument("--st_config_json_filename", type=Path)
    varied = json.loads(parser.parse_known_args()[0].st_config_json_filename.read_text(encoding="utf-8"))
    peer, reporter = PeerSearch.open(Path(varied.pop(FOLDER))), Reporter()

    def report(steps: int, values: Values) -> None:
        reporter(**{STEPS: steps}, **peer.losses(values))

    report(peer.config.search.steps, run_trial(peer.folder, varied, report))


if __name__ == "__main__":
    main()
