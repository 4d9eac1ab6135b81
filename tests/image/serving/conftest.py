"""These tests run inside the serving images, each in the one that has its library; see `tests/image/run`."""

from __future__ import annotations

import importlib.util

collect_ignore = [
    f"test_{name}.py"
    for name, library in (("torch_model", "torch"), ("pmml_model", "jpype"))
    if importlib.util.find_spec(library) is None or importlib.util.find_spec("orjson") is None
]
