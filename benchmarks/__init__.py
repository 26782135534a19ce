"""Benchmarks of the saver beside others: `python -m benchmarks` in a clone, `--help` for more."""
