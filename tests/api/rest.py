"""Requests to an API server as JSON, so that a table of a hundred objects takes seconds."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said."""

    status: int
    body: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether it did what it was asked."""
        return self.status < 400

    @property
    def message(self) -> str:
        """Its words on a refusal."""
        return str(self.body.get("message", ""))

    @property
    def fields(self) -> set[str]:
        """The fields that a refusal names."""
        causes = (self.body.get("details") or {}).get("causes") or []
        return {cause["field"] for cause in causes if "field" in cause}


class Rest:
    """Requests with the rights of a kubeconfig with a token."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._server: str = cluster["server"]
        self._token: str = config["users"][0]["user"]["token"]
        self._context = ssl.create_default_context(cadata=authority)

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = JSON,
        accept: str = JSON,
        **params: str,
    ) -> Answer:
        """One request; refusals are answers too."""
        url = f"{self._server}{path}" + (f"?{urllib.parse.urlencode(params)}" if params else "")
        headers: Mapping[str, str] = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": content_type,
            "Accept": accept,
        }
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, dict(headers), method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._context) as response:
                return Answer(response.status, json.load(response), tuple(response.headers.get_all("Warning") or ()))
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            # A path that is not served yet is answered in plain text.
            is_json = "json" in error.headers.get("Content-Type", "")
            return Answer(error.code, json.loads(text) if is_json else {"message": text.strip()})


def path_of(manifest: Mapping[str, Any], namespace: str = "default", *, collection: bool = False) -> str:
    """Path of an object of one of Headrace's kinds."""
    plural = f"{manifest['kind'].lower()}s"
    base = f"/apis/{manifest['apiVersion']}/namespaces/{namespace}/{plural}"
    return base if collection else f"{base}/{manifest['metadata']['name']}"
