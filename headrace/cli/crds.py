"""`headrace crds`: the CustomResourceDefinitions, printed or written to a folder, and the page of all fields."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from headrace.api import KINDS
from headrace.api.crd import crd, openapi

_HEAD = """\
# The kinds

Group `headrace.dev`, version `v1alpha1`. `kubectl get headrace` lists resources of every kind in one line each;
`kubectl explain <kind>.spec` says the same as this page, which `headrace crds --docs` generates from `headrace/api`.

What a field may hold is checked by the API server at `kubectl apply`: types, bounds, defaults and one-ofs are in the
schema, and a refusal names the field and what would be right. An unknown field is an error too. Lists of things with a
name merge by that name under server-side apply, so that two teams can each own their own entries. Quantities are
Kubernetes quantities (`500m`, `1Gi`), durations are Go durations (`250ms`, `30s`, `1h30m`).

Fields of a running TrainingJob are fixed (but for `restartPolicy`), as those of a batch Job are: its workers are made
from them. A new run is a new TrainingJob.
"""


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, which kubectl reads and people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def manifests() -> dict[str, str]:
    """The YAML of every kind's CustomResourceDefinition, by file name."""
    return {
        f"{kind.info.plural}.yaml": yaml.dump(crd(kind), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        for kind in KINDS
    }


def reference() -> str:
    """The page of all fields, as Markdown."""
    parts = [_HEAD]
    for kind in KINDS:
        info, schema = kind.info, openapi(kind)
        names = ", ".join(f"`{name}`" for name in (info.plural, *info.short_names))
        parts.append(f"## {info.kind}\n\n{schema['description']} ({names})\n")
        for part in ("spec", "status"):
            rows = [f"### {info.kind} {part}\n", "| field | type | default | |", "|---|---|---|---|"]
            rows += _rows(schema["properties"][part], part)
            parts.append("\n".join(rows) + "\n")
        parts.append(_refusals(info.kind, schema))
    return "\n".join(parts)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser("crds", help="print the CustomResourceDefinitions, or write them to a folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write one file per kind here instead of printing")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the page of all fields here")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print or write."""
    if arguments.docs is not None:
        arguments.docs.write_text(reference())
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, text in manifests().items():
            (arguments.out / name).write_text(text)
    if arguments.docs is None and arguments.out is None:
        sys.stdout.write("---\n".join(manifests().values()))
    return 0


def _rows(node: dict[str, Any], path: str) -> Iterator[str]:
    """One table row per field below `node`, depth first."""
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}"
        needed = " (required)" if name in node.get("required", ()) else ""
        default = f"`{json.dumps(child['default'])}`" if "default" in child and child.get("type") != "object" else ""
        yield f"| `{here}` | {_type(child)}{needed} | {default} | {_escaped(child.get('description', ''))} |"
        inner = child.get("items", child)
        yield from _rows(inner, f"{here}[]" if inner is not child else here)


def _type(node: dict[str, Any]) -> str:
    """The type in a few words, with its bounds."""
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in node:
        return " or ".join(f"`{value}`" for value in node["enum"])
    if node["type"] == "array":
        inner = node["items"].get("type")
        return f"list of {inner}s" if inner else "list"
    if isinstance(node.get("additionalProperties"), dict):
        return f"map to {_type(node['additionalProperties'])}"
    if node.get("format") == "date-time":
        return "time"
    low = f"{'>' if node.get('exclusiveMinimum') else '≥'} {node['minimum']:g}" if "minimum" in node else ""
    high = f"≤ {node['maximum']:g}" if "maximum" in node and node["maximum"] < 2**31 - 1 else ""
    bounds = ", ".join(filter(None, (low, high)))
    return f"{node['type']} {bounds}".strip()


def _refusals(kind: str, schema: dict[str, Any]) -> str:
    """The rules between fields, as the API server says them."""
    said = list(dict.fromkeys(_messages(schema)))
    return "\n".join(
        [f"### What the API server says of a {kind} that cannot work\n", *(f"- {text}" for text in said), ""]
    )


def _messages(node: dict[str, Any]) -> Iterator[str]:
    if node.get("type") == "object":
        for rule in node.get("x-kubernetes-validations", ()):
            if "oldSelf" not in rule["rule"] or rule.get("optionalOldSelf"):
                yield rule["message"]
    for child in (*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")):
        if isinstance(child, dict):
            yield from _messages(child)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
