"""The recommendation domain in plain NumPy: data sets, splits, metrics, neighbours and re-ranking."""
