"""The certificate of the admission webhook: made, renewed and spread by the operator itself.

It is kept in one Secret of the operator's namespace (`tls.crt`, `tls.key`, `ca.crt`), which every replica reads and
serves; the leader alone writes it. Each certificate has an authority of its own whose key is thrown away once it has
signed, so there is no key to steal that could sign another. A renewal, at two thirds of the certificate's life, is
therefore a new authority too: first the API server is told to trust both (the webhook configuration's caBundle), then
the Secret is written, and the replicas, which look once a minute, change over one by one. No review fails meanwhile.

Where somebody else keeps the Secret and the caBundle (cert-manager), the operator only reads and serves.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controllers.runtime.apply import FIELD_MANAGER
from controllers.runtime.client import APPLY_PATCH, ApiClient, ApiError, NotLeader, object_path
from controllers.runtime.objects import SECRET, Key, Manifest, ObjectType

logger = logging.getLogger(__name__)

CONFIGURATION: Final = ObjectType(
    "admissionregistration.k8s.io/v1",
    "ValidatingWebhookConfiguration",
    "validatingwebhookconfigurations",
    namespaced=False,
    watched=False,
)
VALIDITY: Final = timedelta(days=365)
RENEW_BEFORE: Final = VALIDITY / 3
"""Life that is left when a certificate is renewed."""
CLOCK_SKEW: Final = timedelta(hours=1)
"""How far another machine's clock may be behind."""
LOOK_EVERY: Final = 60.0
"""Seconds between two looks at the Secret and the webhook configuration."""
LOOK_SOON: Final = 3.0
"""Likewise while there is no certificate."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What the Secret holds, each as PEM.

    Attributes:
        certificate: Of the webhook's server.
        key: Its private key.
        authorities: What the API server is to trust: the certificate's own authority, then the one before.
    """

    certificate: bytes
    key: bytes
    authorities: bytes

    @classmethod
    def of(cls, secret: Manifest | None) -> Bundle | None:
        """The Secret's content, or None when something of it is missing."""
        data: Mapping[str, str] = (secret or {}).get("data") or {}
        parts = [b64decode(data.get(name) or "") for name in ("tls.crt", "tls.key", "ca.crt")]
        return cls(*parts) if all(parts) else None

    def data(self) -> dict[str, str]:
        """As a Secret's data."""
        parts = {"tls.crt": self.certificate, "tls.key": self.key, "ca.crt": self.authorities}
        return {name: b64encode(part).decode() for name, part in parts.items()}


def issue(names: Sequence[str], now: datetime, before: Bundle | None = None) -> Bundle:
    """A new certificate with a new authority.

    Args:
        names: DNS names and IP addresses that the webhook is reached by, the first of them its common name.
        now: The time.
        before: What is served now; its authority stays trusted until the next renewal.
    """
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    # A name of its own, since two authorities of one name are hard to tell apart for those who verify.
    serial = x509.random_serial_number()
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"headrace-webhook-ca-{serial % 10**8:08}")])
    authority = (
        _builder(issuer, issuer, authority_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _builder(subject, issuer, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return Bundle(
        certificate=certificate.public_bytes(pem),
        key=key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        authorities=authority.public_bytes(pem) + _first_authority(before),
    )


def renewal(bundle: Bundle | None, names: Sequence[str], now: datetime) -> str | None:
    """Why a new certificate is due, or None."""
    if bundle is None:
        return "there is none"
    try:
        certificate = x509.load_pem_x509_certificate(bundle.certificate)
        authority = x509.load_pem_x509_certificates(bundle.authorities)[0]
        key = serialization.load_pem_private_key(bundle.key, password=None)
        certificate.verify_directly_issued_by(authority)
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, a new one is the remedy
        return f"the Secret's content is of no use ({error or type(error).__name__})"
    if key.public_key() != certificate.public_key():
        return "the Secret's key is not the certificate's"
    if set(held) != {_name(name) for name in names}:
        return "the webhook has other names now"
    if certificate.not_valid_after_utc - now < RENEW_BEFORE:
        return f"it expires at {certificate.not_valid_after_utc:%Y-%m-%d}"
    return None


def expiry(bundle: Bundle) -> datetime:
    """When the certificate expires."""
    return x509.load_pem_x509_certificate(bundle.certificate).not_valid_after_utc


def _first_authority(bundle: Bundle | None) -> bytes:
    try:
        return (
            x509.load_pem_x509_certificates(bundle.authorities)[0].public_bytes(serialization.Encoding.PEM)
            if bundle is not None
            else b""
        )
    except ValueError:
        return b""


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Certificates:
    """Keeps the certificate that this process serves the current one."""

    def __init__(
        self,
        client: ApiClient,
        secret: Key,
        names: Sequence[str],
        *,
        configuration: str,
        leading: Callable[[], bool],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        Args:
            client: The API server; writes are guarded by the Lease.
            secret: Where the certificate is kept.
            names: Names of the webhook's server.
            configuration: The ValidatingWebhookConfiguration to keep the authorities in; empty: somebody else keeps
                both it and the Secret.
            leading: Whether this process may write.
            now: The time.
        """
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        """For the server; follows the certificate."""
        self.expires: datetime | None = None
        """When the served certificate expires; None while there is none."""
        self._client = client
        self._secret = secret
        self._names = names
        self._configuration = configuration
        self._leading = leading
        self._now = now
        self._served: Bundle | None = None

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            try:
                await self.look()
            except NotLeader:
                logger.debug("no longer leading")
            except (ApiError, ssl.SSLError, ValueError) as error:
                logger.warning("the webhook's certificate cannot be looked after now, it is tried again: %s", error)
            await asyncio.sleep(LOOK_EVERY if self._served is not None else LOOK_SOON)

    async def look(self) -> None:
        """Renew the certificate where that is due and ours to do, and serve what there is."""
        bundle = Bundle.of(await self._get(SECRET, self._secret))
        if self._configuration and self._leading():
            if (why := renewal(bundle, self._names, self._now())) is not None:
                logger.info("making a certificate for the admission webhook: %s", why)
                bundle = issue(self._names, self._now(), bundle)
                await self._trust(bundle)
                await self._keep(bundle)
            else:
                assert bundle is not None
                await self._trust(bundle)
        if bundle is not None and bundle != self._served:
            self._serve(bundle)

    async def _trust(self, bundle: Bundle) -> None:
        """Have the API server trust the bundle's authorities, if it does not yet."""
        key = Key("", self._configuration)
        found = await self._get(CONFIGURATION, key)
        if found is None:
            logger.warning("there is no %s %s; install the chart again", CONFIGURATION.kind, key)
            return
        wanted = b64encode(bundle.authorities).decode()
        webhooks = found.get("webhooks") or []
        if all(item["clientConfig"].get("caBundle") == wanted for item in webhooks):
            return
        # Only this field is ours; all others stay the chart's.
        trusted = [{"name": item["name"], "clientConfig": {"caBundle": wanted}} for item in webhooks]
        await self._apply(CONFIGURATION, key, {"webhooks": trusted})

    async def _keep(self, bundle: Bundle) -> None:
        await self._apply(SECRET, self._secret, {"data": bundle.data()})

    def _serve(self, bundle: Bundle) -> None:
        # The ssl module takes certificates from files only.
        with tempfile.NamedTemporaryFile() as file:
            file.write(bundle.certificate + bundle.key)
            file.flush()
            self.context.load_cert_chain(file.name)
        self._served = bundle
        self.expires = expiry(bundle)
        logger.info("serving a certificate for the admission webhook that expires at %s", self.expires)

    async def _get(self, type_: ObjectType, key: Key) -> Manifest | None:
        try:
            return await self._client.get(object_path(type_, key))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _apply(self, type_: ObjectType, key: Key, fields: Mapping[str, Any]) -> None:
        metadata = {"name": key.name} | ({"namespace": key.namespace} if key.namespace else {})
        body = {"apiVersion": type_.api_version, "kind": type_.kind, "metadata": metadata, **fields}
        params = {"fieldManager": FIELD_MANAGER, "force": "true"}
        await self._client.request("PATCH", object_path(type_, key), params=params, body=body, content_type=APPLY_PATCH)
