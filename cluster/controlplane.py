"""etcd and kube-apiserver alone, on loopback: a real Kubernetes API without nodes, serving in about three seconds.

    with control_plane(tmp_path) as kubeconfig:
        ...

RBAC is on and the kubeconfig is that of a member of system:masters; `service_account_kubeconfig` makes one for a
ServiceAccount. There is no controller manager: nothing fills namespaces with a `default` ServiceAccount (the
admission plugin that would ask for it is off), deletes an owner's children or finishes a namespace's deletion.
`cluster.kwok` adds controllers, a scheduler and simulated nodes.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.features import feature_gates_flag, runtime_config_flag
from cluster.process import ClusterError, output
from cluster.tools import tool, tools

START_DEADLINE = 60.0
"""Seconds in which each program must serve."""
STOP_DEADLINE = 5.0
"""Seconds from SIGTERM to SIGKILL."""

_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:apiserver"]
- level: Metadata
"""


class Server:
    """One program that serves until it is stopped; its output goes to a log file."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.name = Path(command[0]).name
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_for(self, request: urllib.request.Request, context: ssl.SSLContext | None = None) -> None:
        """Return when `request` is answered with 200; raise ClusterError when the program ends or takes too long."""
        deadline = time.monotonic() + START_DEADLINE
        while True:
            if (code := self._process.poll()) is not None:
                raise ClusterError(f"{self.name} ended with exit code {code}:\n{self._tail()}")
            try:
                with urllib.request.urlopen(request, timeout=5, context=context):
                    return
            except (urllib.error.URLError, OSError) as error:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"{self.name} has not answered {request.full_url} in time: {error}\n{self._tail()}"
                    ) from error
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough."""
        self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-10:]
        return "\n".join("    " + line for line in lines) + f"\n  whole log: {self.log}"


class ControlPlane:
    """etcd and kube-apiserver with everything they keep in `folder`.

    The API server can be stopped and started again on the same port and data, to test what a client does meanwhile.
    """

    def __init__(self, folder: Path, *, audit: bool = False, gogc: int = 100) -> None:
        """
        Args:
            folder: Where everything goes.
            audit: Write every request to `audit.log`, one JSON event (audit.k8s.io/v1, level Metadata) a line.
            gogc: Percent by which kube-apiserver's heap grows before Go collects it again; Go's default is 100.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.audit_log = folder / "audit.log" if audit else None
        self._gogc = gogc
        etcd_port, peer_port, self._port = free_ports(3)
        self._etcd_url = f"http://127.0.0.1:{etcd_port}"
        self._peer_url = f"http://127.0.0.1:{peer_port}"
        self.url = f"https://127.0.0.1:{self._port}"
        self._token = secrets.token_hex(16)
        self._etcd: Server | None = None
        self._api_server: Server | None = None

    @property
    def certificate_authority(self) -> Path:
        """Certificates that a client trusts (PEM)."""
        return self.folder / "pki" / "apiserver.crt"

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of what runs, by program."""
        return {server.name: server.pid for server in (self._etcd, self._api_server) if server is not None}

    @property
    def service_account_key(self) -> Path:
        """Private key that signs ServiceAccount tokens (PEM)."""
        return self.folder / "service-account.key"

    def start(self) -> None:
        """Start both, and write the kubeconfig when the API is ready."""
        tools(["etcd", "kube-apiserver"])
        output(["openssl", "genrsa", "-out", self.service_account_key, "2048"])
        tokens = self.folder / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{self._token},admin,admin,"system:masters"\n')
        (self.folder / "audit-policy.yaml").write_text(_AUDIT_POLICY)
        self._etcd = Server(
            [
                tool("etcd"),
                f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-urls={self._etcd_url}",
                f"--advertise-client-urls={self._etcd_url}",
                f"--listen-peer-urls={self._peer_url}",
                f"--initial-advertise-peer-urls={self._peer_url}",
                f"--initial-cluster=default={self._peer_url}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
            self.folder / "etcd.log",
        )
        self._etcd.wait_for(urllib.request.Request(f"{self._etcd_url}/health"))
        self.start_api_server()

    def start_api_server(self) -> None:
        """Start kube-apiserver on the data that etcd has, and return when it is ready."""
        audit_flags = (
            [f"--audit-policy-file={self.folder / 'audit-policy.yaml'}", f"--audit-log-path={self.audit_log}"]
            if self.audit_log
            else []
        )
        self._api_server = Server(
            [
                tool("kube-apiserver"),
                f"--etcd-servers={self._etcd_url}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
                f"--secure-port={self._port}",
                f"--cert-dir={self.folder / 'pki'}",
                f"--token-auth-file={self.folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                f"--service-account-key-file={self.service_account_key}",
                f"--service-account-signing-key-file={self.service_account_key}",
                "--service-cluster-ip-range=10.0.0.0/16",
                "--disable-admission-plugins=ServiceAccount",
                "--allow-privileged=true",
                feature_gates_flag(),
                runtime_config_flag(),
                *audit_flags,
            ],
            self.folder / "kube-apiserver.log",
            {"GOGC": str(self._gogc)},
        )
        # The certificate exists only once the server has made it; its name and CA are checked by every later client.
        unverified = ssl._create_unverified_context()
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {self._token}"})
        self._api_server.wait_for(request, unverified)
        write_kubeconfig(self.kubeconfig, self.url, self.certificate_authority.read_text(), self._token)

    def stop_api_server(self) -> None:
        """Stop kube-apiserver and keep etcd with its data."""
        if self._api_server is not None:
            self._api_server.stop()
            self._api_server = None

    def stop(self) -> None:
        """Stop both; does nothing for what is not running."""
        self.stop_api_server()
        if self._etcd is not None:
            self._etcd.stop()
            self._etcd = None


@contextmanager
def control_plane(folder: Path, *, audit: bool = False) -> Iterator[Path]:
    """Run a ControlPlane in `folder` and yield the path of its administrator's kubeconfig.

    Raises ClusterError when a program cannot be built or does not serve in START_DEADLINE.
    """
    plane = ControlPlane(folder, audit=audit)
    try:
        plane.start()
        yield plane.kubeconfig
    finally:
        plane.stop()


def service_account_kubeconfig(
    kubeconfig: Path, namespace: str, name: str, target: Path, *, pod: str = "", seconds: int = 3600
) -> Path:
    """Write to `target` a kubeconfig of the existing ServiceAccount `namespace/name`, by the rights of `kubeconfig`.

    `pod` binds the token to that pod, as the token of a mounted ServiceAccount is. Works with any cluster.
    """
    kubectl: list[str | Path] = [tool("kubectl"), "--kubeconfig", kubeconfig]
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}"] if pod else []
    token = output([*kubectl, "create", "token", name, "-n", namespace, f"--duration={seconds}s", *bound]).strip()
    view = json.loads(output([*kubectl, "config", "view", "--raw", "--minify", "--flatten", "-o", "json"]))
    view["users"] = [{"name": name, "user": {"token": token}}]
    view["contexts"][0]["context"].update(user=name, namespace=namespace)
    return _write_private(target, json.dumps(view))


def write_kubeconfig(path: Path, url: str, certificate_authority: str, token: str) -> None:
    """Write a kubeconfig (JSON, which is YAML) that only its owner may read."""
    authority = base64.b64encode(certificate_authority.encode()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": {"server": url, "certificate-authority-data": authority}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "admin"}}],
        "current-context": "local",
    }
    _write_private(path, json.dumps(config))


def free_ports(count: int) -> list[int]:
    """`count` different ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _write_private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
    return path
