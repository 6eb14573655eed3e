"""Benchmarks, each a command that is run from the root of the repository: `python -m benchmarks.train_step`."""
