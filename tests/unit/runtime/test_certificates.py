"""The life of the webhook's certificate: made, trusted, renewed, replaced when it is broken; two replicas serve it."""

from __future__ import annotations

import importlib.util
import socket
import ssl
import sys
import threading
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from controllers.runtime.client import ApiError, NotLeader
from controllers.runtime.objects import Key

MODULE = Path(__file__).parents[3] / "operator" / "certificates.py"
NAMES = ("headrace-webhook.headrace-system.svc", "127.0.0.1")
SECRET = "/api/v1/namespaces/headrace-system/secrets/headrace-webhook"
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/headrace-webhook"
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def certificates() -> ModuleType:
    """operator/ is a program, not a package, so its modules are loaded by path."""
    spec = importlib.util.spec_from_file_location("operator_certificates", MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Api:
    """A Secret and a webhook configuration; applies are kept in order."""

    def __init__(self) -> None:
        # As the chart makes them.
        self.objects: dict[str, dict[str, Any]] = {
            SECRET: {"kind": "Secret", "type": "Opaque"},
            CONFIGURATION: {"webhooks": [{"name": "review.headrace.dev", "clientConfig": {"service": {"name": "x"}}}]},
        }
        self.writes: list[str] = []
        self.leading = True

    async def get(self, path: str) -> dict[str, Any]:
        if path not in self.objects:
            raise ApiError(404, "NotFound", f"{path} not found")
        return self.objects[path]

    async def request(self, method: str, path: str, *, body: Any, **_: Any) -> dict[str, Any]:
        if not self.leading:
            raise NotLeader("lost")
        self.writes.append(f"{method} {path}")
        found = self.objects.setdefault(path, {})
        if path == CONFIGURATION:
            for item in body["webhooks"]:
                (webhook,) = (entry for entry in found["webhooks"] if entry["name"] == item["name"])
                webhook["clientConfig"] |= item["clientConfig"]
        else:
            found["data"] = body["data"]
        return found

    @property
    def trusted(self) -> str:
        """What the API server trusts, PEM."""
        (webhook,) = self.objects[CONFIGURATION]["webhooks"]
        return b64decode(webhook["clientConfig"].get("caBundle", "")).decode()


class Replica:
    """One operator's Certificates."""

    def __init__(self, module: ModuleType, api: Api, *, leads: bool = True, now: datetime = NOW) -> None:
        self.now = now
        self.certificates = module.Certificates(
            api,
            Key("headrace-system", "headrace-webhook"),
            NAMES,
            configuration="headrace-webhook",
            leading=lambda: leads,
            now=lambda: self.now,
        )

    def answers(self, trusted: str, name: str) -> bool:
        """Whether a client that trusts these authorities, and asks for this name, gets through the handshake."""
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                with self.certificates.context.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(1)
            except (ssl.SSLError, ConnectionError):
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client = ssl.create_default_context(cadata=trusted)
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=5) as raw,
                client.wrap_socket(raw, server_hostname=name) as tls,
            ):
                tls.send(b"x")
                return True
        except ssl.SSLError:
            return False
        finally:
            listener.close()
            thread.join(5)


async def test_the_leader_makes_what_both_replicas_serve_and_the_api_server_trusts(certificates: ModuleType) -> None:
    api = Api()
    leader, standby = Replica(certificates, api), Replica(certificates, api, leads=False)
    await standby.certificates.look()
    assert (api.writes, standby.certificates.expires) == ([], None)
    await leader.certificates.look()
    # Trusted before it is served, or reviews fail in between.
    assert api.writes == [f"PATCH {CONFIGURATION}", f"PATCH {SECRET}"]
    await standby.certificates.look()
    for replica in (leader, standby):
        for name in NAMES:
            assert replica.answers(api.trusted, name)
        assert not replica.answers(api.trusted, "somebody.else.svc")
        assert replica.certificates.expires == NOW + timedelta(days=365)
    # And then there is nothing left to write, for eight months.
    leader.now = NOW + timedelta(days=240)
    await leader.certificates.look()
    assert len(api.writes) == 2
    (webhook,) = api.objects[CONFIGURATION]["webhooks"]
    assert webhook["clientConfig"]["service"] == {"name": "x"}


async def test_a_renewal_breaks_no_replica_that_has_not_seen_it_yet(certificates: ModuleType) -> None:
    api = Api()
    leader, standby = Replica(certificates, api), Replica(certificates, api, leads=False)
    await leader.certificates.look()
    await standby.certificates.look()
    leader.now = NOW + timedelta(days=245)  # a third of its life is left
    await leader.certificates.look()
    assert api.writes[2:] == [f"PATCH {CONFIGURATION}", f"PATCH {SECRET}"]
    assert leader.certificates.expires == leader.now + timedelta(days=365)
    assert standby.answers(api.trusted, NAMES[0]), "with the certificate of before"
    standby.now = leader.now
    await standby.certificates.look()
    assert standby.certificates.expires == leader.certificates.expires
    assert api.trusted.count("BEGIN CERTIFICATE") == 2
    leader.now += timedelta(days=245)
    await leader.certificates.look()
    assert api.trusted.count("BEGIN CERTIFICATE") == 2, "authorities do not pile up"


async def test_no_key_of_an_authority_is_kept(certificates: ModuleType) -> None:
    api = Api()
    await Replica(certificates, api).certificates.look()
    data = api.objects[SECRET]["data"]
    assert data.keys() == {"tls.crt", "tls.key", "ca.crt"}
    assert b64decode(data["tls.key"]).count(b"PRIVATE KEY") == 2  # the header and the footer of one
    assert b"PRIVATE" not in b64decode(data["ca.crt"])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({"tls.crt": "bm9uc2Vuc2U="}, "of no use"),
        ({"ca.crt": ""}, "there is none"),
        ({"tls.key": None}, "not the certificate's"),
    ],
)
async def test_what_somebody_damaged_is_made_again(
    certificates: ModuleType, damage: dict[str, str | None], why: str
) -> None:
    api = Api()
    leader = Replica(certificates, api)
    await leader.certificates.look()
    other = certificates.issue(NAMES, NOW).data()
    data = api.objects[SECRET]["data"]
    data |= {name: other[name] if value is None else value for name, value in damage.items()}
    assert why in certificates.renewal(certificates.Bundle.of(api.objects[SECRET]), NAMES, NOW)
    await leader.certificates.look()
    assert certificates.renewal(certificates.Bundle.of(api.objects[SECRET]), NAMES, NOW) is None
    assert leader.answers(api.trusted, NAMES[0])


async def test_another_release_with_other_names_makes_its_own(certificates: ModuleType) -> None:
    bundle = certificates.issue(NAMES, NOW)
    assert certificates.renewal(bundle, [*reversed(NAMES)], NOW) is None
    assert "other names" in certificates.renewal(bundle, ["mill-webhook.mill.svc"], NOW)


async def test_what_an_upgrade_set_back_is_set_again(certificates: ModuleType) -> None:
    api = Api()
    leader = Replica(certificates, api)
    await leader.certificates.look()
    trusted = api.trusted
    del api.objects[CONFIGURATION]["webhooks"][0]["clientConfig"]["caBundle"]
    del api.objects[SECRET]
    await leader.certificates.look()
    assert leader.answers(api.trusted, NAMES[0])
    assert api.trusted != trusted


async def test_who_no_longer_leads_writes_nothing(certificates: ModuleType) -> None:
    api = Api()
    api.leading = False
    with pytest.raises(NotLeader):
        await Replica(certificates, api).certificates.look()
    assert api.writes == []
