"""Benchmarks: side by side in one run, one JSON line each."""
