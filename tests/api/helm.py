"""helm against the API server of the tests. Nothing runs there, so nothing is waited for."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.tools import tool

CHART = Path(__file__).parents[2] / "charts" / "headrace"


class HelmError(Exception):
    """helm failed; carries its words."""


@dataclass(frozen=True, slots=True)
class Helm:
    """One release in one namespace."""

    kubeconfig: Path
    release: str = "headrace"
    namespace: str = "headrace-system"

    def __call__(self, *arguments: str) -> str:
        """Run helm."""
        command = [str(tool("helm")), "--kubeconfig", str(self.kubeconfig), "-n", self.namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise HelmError(done.stderr.strip())
        return done.stdout

    def install(self, *values: str) -> None:
        """Install or upgrade with `--set` values."""
        sets = [item for value in values for item in ("--set", value)]
        self("upgrade", "--install", self.release, str(CHART), "--create-namespace", *sets)

    def status(self) -> dict[str, Any]:
        """State of the release."""
        status: dict[str, Any] = json.loads(self("status", self.release, "-o", "json"))
        return status
