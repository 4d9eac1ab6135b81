"""The ONNX model against scikit-learn's own classifier with the same weights."""

from __future__ import annotations

import warnings

import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from headrace.training.export import Layer, classifier_to_onnx


@pytest.mark.parametrize("hidden", [(32,), (24, 16)])
def test_the_graph_computes_what_scikit_learn_computes(hidden: tuple[int, ...]) -> None:
    digits = load_digits()
    scaler = StandardScaler().fit(digits.data)
    model = MLPClassifier(hidden, max_iter=20, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(digits.data), digits.target)
    layers = [
        Layer(weight.T.astype(np.float32), bias.astype(np.float32))
        for weight, bias in zip(model.coefs_, model.intercepts_, strict=True)
    ]
    data = classifier_to_onnx(scaler.mean_.astype(np.float32), scaler.scale_.astype(np.float32), layers)

    session = onnxruntime.InferenceSession(data)
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("input", "tensor(float)", ["batch", 64]),
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("label", "tensor(int64)", ["batch"]),
        ("probabilities", "tensor(float)", ["batch", 10]),
    ]
    for rows in (1, 300):
        raw = digits.data[:rows].astype(np.float32)
        label, probabilities = session.run(["label", "probabilities"], {"input": raw})
        np.testing.assert_allclose(probabilities, model.predict_proba(scaler.transform(raw)), atol=1e-5)
        np.testing.assert_array_equal(label, model.predict(scaler.transform(raw)))


def test_without_hidden_layers_it_is_a_softmax_regression() -> None:
    one = np.ones(2, np.float32)
    layer = Layer(np.array([[1, 0], [0, 1], [-1, -1]], np.float32), np.zeros(3, np.float32))
    session = onnxruntime.InferenceSession(classifier_to_onnx(one * 0, one, [layer]))
    label, probabilities = session.run(None, {"input": np.array([[0.5, 1.5]], np.float32)})
    expected = np.exp([0.5, 1.5, -2.0]) / np.exp([0.5, 1.5, -2.0]).sum()
    np.testing.assert_allclose(probabilities[0], expected, rtol=1e-5)
    assert label.tolist() == [1]
