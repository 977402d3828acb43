"""The searches that people use today, over the same data, space, evaluator and budget as ours."""
