"""Docker Hub and its mirrors: where the cluster's Docker daemon takes images of docker.io from, and whether it can.

A daemon that runs already knows its mirrors; one that is started here is given HEADRACE_REGISTRY_MIRROR.
"""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

from cluster import host

HUB = "https://registry-1.docker.io"
CONNECT_TIMEOUT = 5.0
"""Seconds."""


def registries() -> list[str]:
    """URLs in the order in which the daemon asks them: its mirrors, then Docker Hub."""
    mirrors = json.loads(host.docker("info", "--format", "{{json .RegistryConfig.Mirrors}}")) or []
    return [*(mirror.rstrip("/") for mirror in mirrors), HUB]


def reachable(urls: list[str]) -> str | None:
    """The first of the registries that accepts connections, or None."""
    return next((url for url in urls if _accepts(url)), None)


def named(urls: list[str]) -> str:
    """The registries as a sentence names them: `a, b and c`."""
    names = [urlsplit(url).netloc for url in urls]
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[:-1] else names)


def _accepts(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=CONNECT_TIMEOUT):
            return True
    except OSError:
        return False
