"""The service described for people and programs: an OpenAPI 3.1 document and a page made from it.

Both come from the model's own metadata, so they say which inputs it takes and show a request that works. The page is
one answer: no script, style or font is fetched from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping
from typing import Any

from headrace.serving.protocol import TensorSpec
from headrace.serving.rows import describe
from headrace.serving.tensors import DTYPES

_EXAMPLE_SIZE = 4
"""Size shown for a dimension of any size."""
_SHOWN = 64
"""Values of an example beyond which the page cuts it off."""


def document(name: str, version: str, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The OpenAPI document of a service.

    Args:
        name: Name of the service and its model.
        version: Of the server.
        metadata: The model's metadata; None while it is unknown, and then schemas take any input.
    """
    inputs = _specs(metadata, "inputs")
    outputs = _specs(metadata, "outputs")
    base = f"/v2/models/{name}"
    error = {"$ref": "#/components/schemas/Error"}
    refusals = {
        "400": _answer("The request is wrong; the message names the part.", error),
        "503": _answer("No step of the chain could answer; the message names each and why.", error),
    }
    said = {
        "headrace-step": {"description": "The step that answered.", "schema": {"type": "string"}},
        "headrace-fallback-reason": {
            "description": "`step=reason` of each step before it.",
            "schema": {"type": "string"},
        },
    }
    timeout = {
        "name": "headrace-timeout-ms",
        "in": "header",
        "description": "Milliseconds that the caller waits.",
        "schema": {"type": "integer", "minimum": 0},
    }
    rows_answer = _answer("A row of named outputs for each row.", _rows_answer_schema(outputs))
    infer_answer = _answer("Output tensors.", {"$ref": "#/components/schemas/InferenceResponse"})
    for answer in (rows_answer, infer_answer):
        answer["headers"] = said

    def get(summary: str, *statuses: str) -> dict[str, Any]:
        described = {"200": _answer("Yes.", {"type": "object"})}
        described |= {status: _answer("No; the message says why.", error) for status in statuses}
        return {"get": {"summary": summary, "responses": described}}

    def post(summary: str, schema: dict[str, Any], example: Any, answer: dict[str, Any]) -> dict[str, Any]:
        content: dict[str, Any] = {"schema": schema}
        if example is not None:
            content["example"] = example
        return {
            "post": {
                "summary": summary,
                "parameters": [timeout],
                "requestBody": {"required": True, "content": {"application/json": content}},
                "responses": {"200": answer, **refusals},
            }
        }

    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": version,
            "description": "Open Inference Protocol v2, served by Headrace.",
        },
        "paths": {
            f"{base}/rows": post("Inference on rows", _rows_schema(inputs), rows_example(inputs), rows_answer),
            f"{base}/infer": post(
                "Inference on tensors",
                {"$ref": "#/components/schemas/InferenceRequest"},
                infer_example(inputs),
                infer_answer,
            ),
            base: get("Inputs and outputs of the model", "503"),
            f"{base}/ready": get("Whether the model can be asked", "503"),
            "/v2": get("Name, version and extensions of the server"),
            "/v2/health/live": get("Whether the process answers"),
            "/v2/health/ready": get("Whether it can answer inference requests", "503"),
        },
        "components": {"schemas": _SCHEMAS},
    }


def _specs(metadata: Mapping[str, Any] | None, which: str) -> list[TensorSpec]:
    found = metadata[which] if metadata else []
    return [TensorSpec(tensor["name"], tensor["datatype"], tuple(tensor["shape"])) for tensor in found]


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _value_schema(datatype: str) -> dict[str, Any]:
    kind = DTYPES[datatype].kind
    return {"type": {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}.get(kind, "string")}


def _row_value_schema(spec: TensorSpec) -> dict[str, Any]:
    schema = _value_schema(spec.datatype)
    sizes = spec.shape[1:]
    if sizes != (1,):
        for size in reversed(sizes):
            schema = {"type": "array", "items": schema}
            if size >= 0:
                schema |= {"minItems": size, "maxItems": size}
    return {**schema, "description": describe(spec)}


def _row_schema(specs: list[TensorSpec]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {spec.name: _row_value_schema(spec) for spec in specs},
        "required": [spec.name for spec in specs],
        "additionalProperties": False,
    }


def _rows_schema(inputs: list[TensorSpec]) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "object"}
    if inputs:
        positional = (
            _row_value_schema(inputs[0])
            if len(inputs) == 1
            else {
                "type": "array",
                "prefixItems": [_row_value_schema(spec) for spec in inputs],
                "minItems": len(inputs),
                "maxItems": len(inputs),
            }
        )
        row = {"oneOf": [_row_schema(inputs), positional]}
    return {
        "type": "object",
        "properties": {
            "rows": {"type": "array", "minItems": 1, "items": row},
            "outputs": {"type": "array", "items": {"type": "string"}, "description": "Outputs by name; all otherwise."},
            "id": {"type": "string"},
        },
        "required": ["rows"],
        "additionalProperties": False,
    }


def _rows_answer_schema(outputs: list[TensorSpec]) -> dict[str, Any]:
    row = _row_schema(outputs) if outputs else {"type": "object"}
    # Only the outputs that were asked for are in a row.
    row.pop("required", None)
    rows = {"type": "array", "items": row}
    return {
        "type": "object",
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "rows": rows,
        },
        "required": ["rows"],
    }


_TENSOR = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "enum": list(DTYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "parameters": {"type": "object"},
        "data": {"type": "array", "description": "Values in row-major order, flat or nested."},
    },
    "required": ["name", "datatype", "shape"],
}
_SCHEMAS: dict[str, Any] = {
    "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
    "Tensor": _TENSOR,
    "InferenceRequest": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Tensor"}},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                    "required": ["name"],
                },
            },
        },
        "required": ["inputs"],
    },
    "InferenceResponse": {
        "type": "object",
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
        "required": ["model_name", "outputs"],
    },
}


def _example_value(spec: TensorSpec) -> Any:
    value: Any = {"b": True, "i": 0, "u": 0, "f": 0.0}.get(DTYPES[spec.datatype].kind, "text")
    sizes = spec.shape[1:]
    if sizes != (1,):
        for size in reversed(sizes):
            value = [value] * (size if size >= 0 else _EXAMPLE_SIZE)
    return value


def rows_example(inputs: list[TensorSpec]) -> Any:
    """A request of one row that the model takes; None where its inputs are unknown, have no rows, or are too large."""
    if not inputs or any(not spec.shape or _size(spec) > 4096 for spec in inputs):
        return None
    return {"rows": [{spec.name: _example_value(spec) for spec in inputs}]}


def infer_example(inputs: list[TensorSpec]) -> Any:
    """The same as tensors."""
    if rows_example(inputs) is None:
        return None
    tensors = []
    for spec in inputs:
        sizes = [1, *(size if size >= 0 else _EXAMPLE_SIZE for size in spec.shape[1:])]
        tensors.append({"name": spec.name, "shape": sizes, "datatype": spec.datatype, "data": [_example_value(spec)]})
    return {"inputs": tensors}


def _size(spec: TensorSpec) -> int:
    return math.prod(size if size >= 0 else _EXAMPLE_SIZE for size in spec.shape[1:])


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}
th,td{text-align:left;padding:.25rem 1rem .25rem 0;border-bottom:1px solid #d8dee5}
code,pre,textarea{font:13px/1.45 ui-monospace,monospace}pre,textarea{background:#f3f6f8;padding:.7rem;border-radius:4px}
pre{overflow:auto;white-space:pre-wrap}textarea{width:100%;box-sizing:border-box;border:1px solid #c4ccd4}
@media(prefers-color-scheme:dark){body{color:#dde4ea;background:#12181f}pre,textarea{background:#1c252e;color:inherit}}
"""
_SCRIPT = """
const form = document.querySelector("form"), answer = document.querySelector("#answer");
form.addEventListener("submit", async event => {
  event.preventDefault();
  answer.textContent = "…";
  try {
    const response = await fetch(form.action, {method: "POST", body: form.body.value});
    const step = response.headers.get("headrace-step"), why = response.headers.get("headrace-fallback-reason");
    answer.textContent = `${response.status}${step ? ` from ${step}` : ""}${why ? ` (${why})` : ""}\\n` +
      await response.text();
  } catch (error) { answer.textContent = String(error); }
});
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Header of the page: nothing runs and nothing is fetched but what it came with."""


def page(name: str, version: str, metadata: Mapping[str, Any] | None) -> bytes:
    """The page of a service as HTML."""
    described = document(name, version, metadata)
    inputs = _specs(metadata, "inputs")
    example = rows_example(inputs)
    rows_path = f"/v2/models/{name}/rows"
    parts = [
        f"<h1>{html.escape(name)}</h1>",
        "<p>Open Inference Protocol v2 over REST and gRPC; the description for programs is "
        '<a href="/openapi.json">openapi.json</a>.</p>',
    ]
    if metadata is None:
        parts.append("<p>The model's inputs and outputs are not known yet.</p>")
    for title, specs in (("Inputs", inputs), ("Outputs", _specs(metadata, "outputs"))):
        if specs:
            parts.append(f"<h2>{title}</h2><table><tr><th>name<th>datatype<th>shape<th>in a row</tr>")
            for spec in specs:
                cells = (spec.name, spec.datatype, str(list(spec.shape)), describe(spec) if spec.shape else "none")
                parts.append("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + "</tr>")
            parts.append("</table>")
    parts.append("<h2>Paths</h2><table><tr><th>path<th>answer</tr>")
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(
                f"<tr><td><code>{method.upper()} {html.escape(path)}</code><td>{html.escape(operation['summary'])}</tr>"
            )
    parts.append("</table>")
    text = "" if example is None else json.dumps(example, ensure_ascii=False)
    lines = min(12, 3 + len(text) // 100)
    parts.append(
        f'<h2>Try it</h2><form action="{html.escape(rows_path)}" method="post">'
        f'<textarea name="body" rows="{lines}" spellcheck="false">{html.escape(text)}</textarea>'
        '<p><button>Send rows</button></p></form><pre id="answer"></pre>'
    )
    if example is not None and len(text) <= _SHOWN * 16:
        shown = f"curl http://HOST{rows_path} -d '{text}'"
        parts.append(f"<h2>From a shell</h2><pre>{html.escape(shown)}</pre>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(name)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}"
        f"<script>{_SCRIPT}</script></body></html>"
    ).encode()
