"""These tests need PyTorch: `tests/image/run` runs them inside the trainer image, against the package in that image."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]
