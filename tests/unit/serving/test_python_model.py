"""A predictor of somebody's own: found, loaded, asked; and what is wrong with it is said with the remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.api.inferenceservice import ModelSource
from headrace.serving.models.base import Model, ModelError
from headrace.serving.source import load_model
from headrace.serving.tensors import RequestError

GOOD = """
import numpy as np
from headrace.serving.tensors import RequestError
from beside import OFFSET

class Predictor:
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    outputs = [
        {"name": "length", "datatype": "INT64", "shape": [-1]},
        {"name": "upper", "datatype": "BYTES", "shape": [-1]},
    ]

    def load(self, folder):
        self.more = int((folder / "more.txt").read_text()) if folder else 0

    def predict(self, inputs):
        texts = [item.decode() for item in inputs["text"]]
        if "no" in texts:
            raise RequestError("no is no answer")
        return {"length": np.array([len(item) + self.more + OFFSET for item in texts]), "upper": np.char.upper(texts)}
"""


def loaded(folder: Path, code: str = GOOD, name: str = "Predictor", uri: str | None = None) -> Model:
    (folder / "beside.py").write_text("OFFSET = 100\n")
    file = folder / "predictor.py"
    file.write_text(code)
    told = {"configMap": {"name": "code", "key": "predictor.py"}, "className": name}
    source = {"modelFormat": "Python", "code": told} | ({"storageUri": uri} if uri else {})
    return load_model(ModelSource.model_validate(source), None, 1, file)


def test_it_is_asked_with_arrays_and_answers_with_arrays(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "more.txt").write_text("1000")
    texts = {"text": np.array([b"a", "wörd".encode()], dtype=object)}
    length, upper = loaded(tmp_path, uri=f"file://{files}").run(texts, ["length", "upper"])
    assert length.tolist() == [1101, 1104]
    assert upper.tolist() == ["A", "WÖRD"]
    model = loaded(tmp_path)
    assert model.run(texts, ["length"])[0].tolist() == [101, 104]
    with pytest.raises(RequestError, match="no is no answer"):
        model.run({"text": np.array([b"no"], dtype=object)}, ["length"])
    with pytest.raises(RequestError, match="'text': expected datatype BYTES, found FP32"):
        model.run({"text": np.zeros(1, np.float32)}, ["length"])


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import nothing_of_this_name", "predictor.py cannot be imported: ModuleNotFoundError: No module named"),
        (
            "class Other:\n    def predict(self, inputs): ...",
            "has no class Predictor; it has Other: name one in .*className",
        ),
        ("x = 1", "has no class Predictor; define one"),
        ("class Predictor:\n    pass", r"Predictor has no predict\(self, inputs\); add it"),
        ("class Predictor:\n    def predict(self, inputs): ...", "does not say what it gives; declare outputs"),
        (
            "class Predictor:\n    outputs = 3\n    def predict(self, i): ...",
            "Predictor.outputs is 3; make it a list of",
        ),
        ("class Predictor:\n    def load(self, folder):\n        1 / 0", "Predictor.load failed: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path: Path, code: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        loaded(tmp_path, code)


def test_an_answer_of_another_kind_is_the_predictor_s_failure(tmp_path: Path) -> None:
    code = "class Predictor:\n    outputs = [{'name': 'y', 'datatype': 'FP32', 'shape': [-1]}]\n"
    model = loaded(tmp_path, code + "    def predict(self, inputs):\n        return {'z': [1.0]}")
    with pytest.raises(TypeError, match="predict returned z, but not 'y'"):
        model.run({}, ["y"])
