"""A model that was trained with other features than it is served is found, and the feature is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.features.history import card
from headrace.features.parity import ParityError, require, trained_with
from tests.unit.features.test_transform import spec

TRAINED = spec({"f": ("Float64", "log1p(x)"), "g": ("Int64", "a + b"), "h": ("Int64", "a")})


def publish(folder: Path, features: object) -> str:
    (folder / "card.json").write_text(json.dumps({"format": "headrace.dev/model-card/v1", "features": features}))
    (folder / "model.onnx").write_bytes(b"onnx")
    return f"file://{folder}"


@pytest.mark.parametrize("suffix", ["", "/model.onnx"])
def test_the_card_beside_the_model_is_compared(tmp_path: Path, suffix: str) -> None:
    uri = publish(tmp_path, card(TRAINED, "team", "drivers", ["f", "g"])) + suffix
    found = trained_with(uri)
    require(found, TRAINED.transform().hashes, "drivers")
    # One that the model does not use may change.
    other = spec({"f": ("Float64", "log1p(x)"), "g": ("Int64", "a + b"), "h": ("Int64", "a * 2")})
    require(found, other.transform().hashes, "drivers")
    changed = spec({"f": ("Float64", "log1p(x)"), "g": ("Int64", "a - b")})
    with pytest.raises(ParityError, match=r"FeatureSet drivers serves: feature g is computed differently") as error:
        require(found, changed.transform().hashes, "drivers")
    assert "feature f" not in str(error.value)


def test_a_model_without_a_card_or_features_is_let_through(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    assert trained_with(f"file://{tmp_path}") is None
    assert trained_with(publish(tmp_path, None)) is None
    require(None, {}, "drivers")


@pytest.mark.parametrize("features", [["f"], {"hash": "1"}, 7])
def test_a_card_that_says_something_else_is_refused(tmp_path: Path, features: object) -> None:
    with pytest.raises(ParityError, match="expected the hashes of features"):
        trained_with(publish(tmp_path, features))
