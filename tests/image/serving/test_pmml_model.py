"""PMML inside the serving-pmml image: files of other tools, and what their Output element maps results to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headrace.api.inferenceservice import ModelSource
from headrace.serving.models.base import Model, ModelError
from headrace.serving.source import load_model
from headrace.serving.tensors import Array, RequestError

DATA = Path(__file__).parent / "data"
LOAN = """<PMML version="4.4" xmlns="http://www.dmg.org/PMML-4_4">
  <Header/>
  <DataDictionary>
    <DataField name="income" optype="continuous" dataType="double"/>
    <DataField name="region" optype="categorical" dataType="string">
      <Value value="north"/><Value value="south"/>
    </DataField>
    <DataField name="score" optype="continuous" dataType="double"/>
  </DataDictionary>
  <RegressionModel functionName="regression">
    <MiningSchema>
      <MiningField name="income" missingValueReplacement="20"/>
      <MiningField name="region"/>
      <MiningField name="score" usageType="target"/>
    </MiningSchema>
    <Output>
      <OutputField name="points" feature="predictedValue" dataType="double" optype="continuous"/>
      <OutputField name="percent" feature="transformedValue" dataType="double" optype="continuous">
        <Apply function="*"><FieldRef field="points"/><Constant dataType="double">100</Constant></Apply>
      </OutputField>
      <OutputField name="decision" feature="transformedValue" dataType="string" optype="categorical">
        <Apply function="if">
          <Apply function="greaterThan"><FieldRef field="points"/><Constant dataType="double">0.5</Constant></Apply>
          <Constant dataType="string">grant</Constant>
          <Constant dataType="string">refuse</Constant>
        </Apply>
      </OutputField>
    </Output>
    <RegressionTable intercept="0.1">
      <NumericPredictor name="income" coefficient="0.01"/>
      <CategoricalPredictor name="region" value="south" coefficient="0.2"/>
    </RegressionTable>
  </RegressionModel>
</PMML>
"""
"""A regression as the Data Mining Group describes it: points = 0.1 + 0.01 income + 0.2 where the region is south."""


def loaded(path: Path) -> Model:
    return load_model(ModelSource(model_format="PMML", storage_uri=f"file://{path}"), None, 1)


def texts(*values: str) -> Array:
    return np.array([value.encode() for value in values], dtype=object)


def test_a_file_of_nyoka_answers_as_the_scikit_learn_pipeline_it_was_made_of() -> None:
    """The numbers are scikit-learn's, written beside the file when nyoka 5.5.0 made it (StandardScaler, tree)."""
    expected = json.loads((DATA / "iris-nyoka.json").read_text())
    model = loaded(DATA / "iris-nyoka.pmml")
    rows = np.array(expected["rows"], np.float32)
    names = [spec.name for spec in model.inputs]
    assert names == ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    outputs = ["predicted_species", *(f"probability_{i}" for i in range(3))]
    labels, *probabilities = model.run({name: rows[:, i] for i, name in enumerate(names)}, outputs)
    assert labels.astype(int).tolist() == expected["labels"]
    np.testing.assert_allclose(np.column_stack(probabilities), expected["probabilities"], atol=1e-6)


def test_the_result_mapping_of_the_file_is_what_is_served(tmp_path: Path) -> None:
    (tmp_path / "model.pmml").write_text(LOAN)
    model = loaded(tmp_path)
    assert [spec.manifest() for spec in model.outputs] == [
        {"name": "points", "datatype": "FP64", "shape": [-1]},
        {"name": "percent", "datatype": "FP64", "shape": [-1]},
        {"name": "decision", "datatype": "BYTES", "shape": [-1]},
    ]
    # The last income is missing, and the file says what stands for it.
    inputs = {"income": np.array([10.0, 30.0, np.nan]), "region": texts("north", "south", "south")}
    points, percent, decision = model.run(inputs, model.output_names)
    np.testing.assert_allclose(points, [0.2, 0.6, 0.5])
    np.testing.assert_allclose(percent, [20, 60, 50])
    assert decision.tolist() == ["refuse", "grant", "refuse"]
    assert model.run({"income": np.empty(0), "region": texts()}, ["decision"])[0].tolist() == []


def test_wrong_inputs_and_wrong_files(tmp_path: Path) -> None:
    (tmp_path / "model.pmml").write_text(LOAN)
    model = loaded(tmp_path)
    with pytest.raises(RequestError, match="'income': expected datatype FP64, found BYTES"):
        model.run({"income": texts("many"), "region": texts("north")}, ["points"])
    with pytest.raises(RequestError, match=r"the inputs have \[1, 2\] rows"):
        model.run({"income": np.ones(1), "region": texts("north", "south")}, ["points"])
    for content, says in (
        (LOAN[:600], "is no PMML that pmml4s can load"),
        ("<html></html>", "is a web page, and modelFormat is PMML"),
        ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + LOAN, "has a DOCTYPE"),
    ):
        (tmp_path / "model.pmml").write_text(content)
        with pytest.raises(ModelError, match=says):
            loaded(tmp_path)
