"""`headrace crds`: the CustomResourceDefinitions, printed or written to a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from headrace.api import KINDS
from headrace.api.crd import crd


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


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser("crds", help="print the CustomResourceDefinitions, or write them to a folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write one file per kind here instead of printing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print or write."""
    if arguments.out is None:
        sys.stdout.write("---\n".join(manifests().values()))
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in manifests().items():
        (arguments.out / name).write_text(text)
    return 0
