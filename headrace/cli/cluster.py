"""`headrace cluster`: the local three-zone cluster of a checkout."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser("cluster", help="the local cluster: one control plane, workers in zones a, b, c")
    actions = parser.add_subparsers(required=True, metavar="action")
    up = actions.add_parser("up", help="make the cluster, or bring it back to health")
    up.add_argument(
        "--nodes",
        choices=("auto", "stock", "offline"),
        default="auto",
        help="node image: kind's own, or the one that is built without an image registry (default: by trying)",
    )
    up.add_argument(
        "--load",
        nargs="*",
        metavar="NAME",
        help="also build images of this checkout meanwhile, and load them: folders of images/ (default: all)",
    )
    up.set_defaults(run=_command(_up))
    actions.add_parser("status", help="what runs; exit code 1 when the cluster is not up").set_defaults(
        run=_command(_status)
    )
    load = actions.add_parser("load", help="build the images of this checkout and load them into the nodes")
    load.add_argument("images", nargs="*", metavar="NAME", help="folders of images/ (default: all)")
    load.set_defaults(run=_command(_load))
    down = actions.add_parser("down", help="delete the cluster")
    down.add_argument("--all", action="store_true", help="also stop the Docker that was started, and restore the host")
    down.set_defaults(run=_command(_down))


def _command(action: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """`action` with its errors as one readable line, and a word where there is no checkout to work in."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            error_type: type[RuntimeError] = importlib.import_module("cluster.process").ClusterError
        except ModuleNotFoundError:
            print("error: `headrace cluster` works in a checkout of Headrace, with `uv run`.", file=sys.stderr)
            return 1
        try:
            return action(arguments)
        except error_type as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted; the same command goes on where it stopped.", file=sys.stderr)
            return 130

    return run


def _up(arguments: argparse.Namespace) -> int:
    from cluster import host, images, kind

    if arguments.load is None:
        kind.up(arguments.nodes)
    else:
        images.up(arguments.nodes, arguments.load)
    for name, value in {"KUBECONFIG": str(kind.kubeconfig()), **host.docker_environment()}.items():
        print(f"export {name}={value}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from cluster import kind

    return 0 if kind.status() else 1


def _load(arguments: argparse.Namespace) -> int:
    from cluster import images

    images.load(arguments.images)
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from cluster import kind

    kind.down(everything=arguments.all)
    return 0
