"""Benchmarks: each is `python -m benchmarks.NAME [--json FILE]`; RESULTS.md says how each figure was made."""
