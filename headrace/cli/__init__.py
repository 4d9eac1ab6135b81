"""The command line: `headrace <command>`. Each command is one module of this package with a `register` function."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from headrace.cli import cluster, crds, training

COMMANDS = (cluster, crds, training)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after the program's name; by default the process's.

    Returns:
        The process's exit code.
    """
    parser = argparse.ArgumentParser(prog="headrace", description="Machine learning systems as Kubernetes resources.")
    subparsers = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.register(subparsers)
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code
