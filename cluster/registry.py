"""A registry beside the cluster, through which images reach the nodes: a change of one layer moves that layer alone.

It is a container in the network of the nodes, with its data in the cache, so that a new cluster needs no new upload.
The nodes ask it first for the images of docker.io; what it has not, they take from there.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster import cache, host
from cluster.process import ClusterError, output
from cluster.tools import PROGRAMS, tool

NETWORK = "kind"
"""Docker network of the nodes."""
PORT = 5000
START_DEADLINE = 60.0
"""Seconds in which it must answer."""

_HOSTS = """\
[host."http://{registry}:{port}"]
capabilities = ["pull", "resolve"]
"""


def ensure_network() -> None:
    """Make the network that kind puts the nodes into, as kind would; it takes one that is there. Before anything else
    does: two that make it at the same time would make two.
    """
    if NETWORK not in host.docker("network", "ls", "--format", "{{.Name}}").split():
        masquerade = "com.docker.network.bridge.enable_ip_masquerade=true"
        host.docker("network", "create", "--driver", "bridge", "--opt", masquerade, NETWORK)


def ensure(name: str) -> None:
    """Make sure that the registry container `name` runs and answers on a loopback port; images can be pushed then."""
    with cache.lock(name):
        if not host.docker("ps", "--quiet", "--filter", f"name=^{name}$").strip():
            remove(name)
            data = cache.root() / "registry"
            data.mkdir(parents=True, exist_ok=True)
            host.docker(
                *("run", "--detach", "--name", name, "--network", NETWORK, "--restart", "unless-stopped"),
                *("--publish", f"127.0.0.1::{PORT}", "--volume", f"{data}:/data", _image()),
            )
        deadline = time.monotonic() + START_DEADLINE
        while not _answers(_address(name)):
            if time.monotonic() > deadline:
                raise ClusterError(f"the registry of the nodes does not answer: `docker logs {name}` says more.")
            time.sleep(0.2)


def remove(name: str) -> None:
    """Remove the registry's container; its data stays."""
    host.docker("rm", "--force", "--volumes", name)


def configure(name: str, nodes: Sequence[str]) -> None:
    """Let the nodes ask the registry `name` first."""
    hosts = _HOSTS.format(registry=name, port=PORT)
    folder = "/etc/containerd/certs.d/docker.io"
    script = f"mkdir -p {folder} && cat > {folder}/hosts.toml <<'END'\n{hosts}END\n"
    with ThreadPoolExecutor() as executor:
        list(executor.map(lambda node: host.docker("exec", node, "sh", "-c", script), nodes))


def push(name: str, image: str) -> None:
    """Copy an image of the Docker daemon into the registry `name`."""
    remote = f"{_address(name)}/{image}"
    host.docker("tag", image, remote)
    try:
        host.docker("push", "--quiet", remote)
    finally:
        host.docker("image", "rm", remote)


def pull(nodes: Sequence[str], images: Sequence[str]) -> None:
    """Let every node fetch `images`, as its kubelet would, and forget those that lost their name to them."""
    forget = "crictl images --quiet --filter dangling=true | xargs --no-run-if-empty crictl rmi"

    def fetch(node: str) -> None:
        for image in images:
            host.docker("exec", node, "crictl", "pull", f"docker.io/{image}")
        try:
            host.docker("exec", node, "sh", "-c", forget)
        except ClusterError as error:
            # It costs room only: a busy node answers late, and the next load or the kubelet removes them.
            cache.say(f"      {node} keeps images that are no longer used for now: {str(error)[-200:]}")

    with ThreadPoolExecutor() as executor:
        list(executor.map(fetch, nodes))


def _address(name: str) -> str:
    return host.docker("port", name, str(PORT)).split()[0]


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _image() -> str:
    """Image of the registry program, which is made when Docker has it not."""
    image = f"headrace.dev/registry:{PROGRAMS['crane'].key()}"
    if not host.docker("image", "ls", "--quiet", image).strip():
        with tempfile.TemporaryDirectory(prefix="headrace-registry-") as folder:
            work = Path(folder)
            shutil.copy(tool("crane"), work / "crane")
            (work / "tmp").mkdir()
            archive = work / "image.tar"
            output(["tar", "-C", work, "-cf", archive, "crane", "tmp"])
            command = f'["/crane", "registry", "serve", "--address", ":{PORT}", "--disk", "/data"]'
            host.docker("import", "--change", f"ENTRYPOINT {command}", archive, image)
    return image
