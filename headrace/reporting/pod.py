"""The smallest Kubernetes client there is: merge-patch one annotation of the pod that this process runs in.

The ServiceAccount's token is read for every request, because the kubelet replaces it while the pod runs.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

ANNOTATION = "headrace.dev/report"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REQUEST_TIMEOUT = 5.0
"""Seconds for connecting and for each read."""


class ReportRefused(Exception):
    """The API server answered the patch with an error.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def in_cluster(environment: Mapping[str, str] = os.environ, service_account: Path = SERVICE_ACCOUNT) -> bool:
    """Whether this process is in a pod that knows its name and has a ServiceAccount."""
    names = ("KUBERNETES_SERVICE_HOST", "POD_NAME", "POD_NAMESPACE")
    return all(environment.get(name) for name in names) and (service_account / "token").is_file()


class PodAnnotation:
    """Writes the report of one pod. Calling it with a line of JSON sends it.

    Args:
        pod: Name of the pod.
        namespace: Its namespace.
        host: Host of the API server.
        port: Its HTTPS port.
        service_account: Folder with `token` and `ca.crt`.
    """

    def __init__(
        self, pod: str, namespace: str, host: str, port: int = 443, service_account: Path = SERVICE_ACCOUNT
    ) -> None:
        self._path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}"
        self._what = f"pod {namespace}/{pod}"
        self._host = host
        self._port = port
        self._service_account = service_account

    @classmethod
    def own(cls, environment: Mapping[str, str] = os.environ) -> PodAnnotation:
        """The pod of this process; call it where `in_cluster` holds."""
        return cls(
            environment["POD_NAME"],
            environment["POD_NAMESPACE"],
            environment["KUBERNETES_SERVICE_HOST"],
            int(environment.get("KUBERNETES_SERVICE_PORT_HTTPS") or environment.get("KUBERNETES_SERVICE_PORT") or 443),
        )

    def __call__(self, report: str) -> None:
        """Send the report.

        Raises:
            ReportRefused: the API server answered with an error.
            OSError: it did not answer, or the ServiceAccount is not mounted.
        """
        token = (self._service_account / "token").read_text().strip()
        context = ssl.create_default_context(cafile=str(self._service_account / "ca.crt"))
        body = json.dumps({"metadata": {"annotations": {ANNOTATION: report}}})
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/merge-patch+json",
            "Accept": "application/json",
        }
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=REQUEST_TIMEOUT, context=context)
        try:
            connection.request("PATCH", f"{self._path}?fieldManager=headrace-report", body=body, headers=headers)
            response = connection.getresponse()
            answer = response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"the API server's answer is no HTTP: {error!r}") from error
        finally:
            connection.close()
        if response.status >= 300:
            raise ReportRefused(
                response.status,
                f"the API server refused to annotate {self._what}: HTTP {response.status}: {_message(answer)}",
            )


def _message(answer: bytes) -> str:
    """The message of a metav1.Status, or the beginning of whatever came."""
    try:
        return str(json.loads(answer)["message"])
    except (ValueError, KeyError, TypeError):
        return answer[:300].decode(errors="replace")
