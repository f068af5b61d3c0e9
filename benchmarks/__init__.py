"""Timed cases, gated by correctness: `python -m benchmarks --json FILE`."""
