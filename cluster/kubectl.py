"""A user's hands: kubectl against one cluster, and waits that say what they last saw.

The demo and the e2e tests do everything through this, so what they show is what a user can do.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cluster.process import ClusterError

Manifest = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kube:
    """kubectl against one cluster, in one namespace.

    Attributes:
        kubectl: Path of the binary.
        kubeconfig: Path of the kubeconfig.
        namespace: Namespace of every call that does not name another.
    """

    kubectl: Path
    kubeconfig: Path
    namespace: str

    def run(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 120) -> str:
        """Run kubectl and return its standard output.

        Raises:
            ClusterError: kubectl failed; its standard error is in the message.
        """
        done = subprocess.run(
            [str(self.kubectl), "--kubeconfig", str(self.kubeconfig), "-n", self.namespace, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def within(self, namespace: str) -> Kube:
        """The same cluster, another namespace."""
        return Kube(self.kubectl, self.kubeconfig, namespace)

    def apply(self, *manifests: Manifest) -> None:
        """Apply objects as a user does."""
        self.run("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def refused(self, manifest: Manifest) -> str:
        """The API server's words on an object that it must refuse; ClusterError when it accepts.

        It is asked by a dry run: an object that was accepted once would be there, and applying it again no change to
        refuse.
        """
        done = self._apply(manifest, "--dry-run=server")
        if done.returncode == 0:
            raise ClusterError(f"accepted: {done.stdout.strip()}")
        return done.stderr

    def warned(self, manifest: Manifest) -> str:
        """The warnings that kubectl prints with an object that is accepted; ClusterError when it is refused."""
        done = self._apply(manifest)
        if done.returncode != 0:
            raise ClusterError(f"refused: {done.stderr.strip()}")
        return done.stderr

    def _apply(self, manifest: Manifest, *options: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.kubectl), "--kubeconfig", str(self.kubeconfig), "-n", self.namespace, "apply", "-f", "-"]
        return subprocess.run(
            [*command, *options],
            input=yaml.safe_dump(manifest),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def find(self, kind: str, name: str) -> Manifest | None:
        """One object, or None."""
        text = self.run("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def get(self, kind: str, name: str) -> Manifest:
        """One object that must exist."""
        found: Manifest = json.loads(self.run("get", kind, name, "-o", "json"))
        return found

    def list(self, kind: str, selector: str = "", *, everywhere: bool = False) -> list[Manifest]:
        """Objects of a kind."""
        scope = ["-A"] if everywhere else []
        items: list[Manifest] = json.loads(self.run("get", kind, "-l", selector, "-o", "json", *scope))["items"]
        return items

    def delete(self, kind: str, *names: str, force: bool = False, wait: bool = True) -> None:
        """Delete objects; absent ones are fine."""
        extra = ["--force", "--grace-period=0"] if force else []
        self.run("delete", kind, *names, "--ignore-not-found", f"--wait={str(wait).lower()}", *extra)

    def events(self, name: str) -> set[str]:
        """Reasons of the Events about an object of this name."""
        items = self.list("events.events.k8s.io")
        return {item["reason"] for item in items if item.get("regarding", {}).get("name") == name}

    @contextmanager
    def forward(self, target: str, port: int) -> Iterator[int]:
        """A loopback port that reaches `port` of a pod or Service while the context lasts."""
        process = subprocess.Popen(
            [
                str(self.kubectl),
                "--kubeconfig",
                str(self.kubeconfig),
                "-n",
                self.namespace,
                "port-forward",
                target,
                f":{port}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "Forwarding from 127.0.0.1:" not in line:
                raise ClusterError(f"port-forward to {target} failed: {line.strip()}")
            yield int(line.split("127.0.0.1:")[1].split(" ")[0])
        finally:
            process.terminate()
            process.wait(10)


def wait_for(what: str, look: Callable[[], T | None], *, seconds: float, every: float = 0.5) -> T:
    """Look until `look` returns something true.

    Args:
        what: What is waited for, as the failure names it.
        look: Returns the thing, or None/False; a ClusterError that it raises means «not yet».
        seconds: Deadline.
        every: Pause between two looks.

    Raises:
        TimeoutError: The deadline passed; says what was last seen.
    """
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            found = look()
            if found:
                return found
            last = found
        except ClusterError as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s; last seen: {last!r}")
        time.sleep(every)


def condition(resource: Manifest | None, kind: str) -> Manifest:
    """A condition of a resource, or an empty one with status Unknown."""
    for item in (resource or {}).get("status", {}).get("conditions", []):
        if item["type"] == kind:
            found: Manifest = item
            return found
    return {"type": kind, "status": "Unknown", "reason": "", "message": ""}


def is_true(resource: Manifest | None, kind: str) -> bool:
    """Whether a condition is True for the spec as it is now."""
    if resource is None:
        return False
    item = condition(resource, kind)
    current: bool = item.get("observedGeneration") == resource["metadata"]["generation"]
    return current and item["status"] == "True"
