"""Who asks: the AWS_* names, from the environment, a mapping, or a folder with one file per name (a mounted Secret)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.storage.errors import InvalidLocation

NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_CA_BUNDLE",
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """S3 credentials and where they are valid. All empty: the AWS SDK's own chain (profile, web identity, instance).

    Attributes:
        access_key_id: AWS_ACCESS_KEY_ID.
        secret_access_key: AWS_SECRET_ACCESS_KEY.
        session_token: AWS_SESSION_TOKEN, of temporary credentials.
        endpoint_url: AWS_ENDPOINT_URL, `http(s)://host[:port]`; empty for AWS itself.
        region: AWS_REGION (or AWS_DEFAULT_REGION).
        ca_bundle: AWS_CA_BUNDLE, a PEM file with the certificate authorities to trust.
    """

    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    endpoint_url: str = ""
    region: str = ""
    ca_bundle: str = ""

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> Credentials:
        """Credentials by their AWS_* names; other names are left alone."""
        value = {name: values.get(name, "").strip() for name in NAMES}
        return cls(
            value["AWS_ACCESS_KEY_ID"],
            value["AWS_SECRET_ACCESS_KEY"],
            value["AWS_SESSION_TOKEN"],
            value["AWS_ENDPOINT_URL"],
            value["AWS_REGION"] or values.get("AWS_DEFAULT_REGION", "").strip(),
            value["AWS_CA_BUNDLE"],
        )

    @classmethod
    def from_environment(cls) -> Credentials:
        """Credentials of this process."""
        return cls.from_mapping(os.environ)

    @classmethod
    def from_directory(cls, directory: Path) -> Credentials:
        """Credentials from a mounted Secret: one file per AWS_* name.

        Raises:
            InvalidLocation: the folder is missing or has neither a key nor an endpoint.
        """
        if not directory.is_dir():
            raise InvalidLocation(str(directory), "no such folder of credentials", "mount the Secret there")
        present = {name: (directory / name) for name in (*NAMES, "AWS_DEFAULT_REGION")}
        values = {name: path.read_text() for name, path in present.items() if path.is_file()}
        if "AWS_ACCESS_KEY_ID" not in values and "AWS_ENDPOINT_URL" not in values:
            found = ", ".join(sorted(path.name for path in directory.iterdir() if not path.name.startswith(".")))
            raise InvalidLocation(
                str(directory),
                f"the Secret has the keys {found or '(none)'}",
                "it needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL where the store is not AWS",
            )
        return cls.from_mapping(values)

    @classmethod
    def of(cls, source: Credentials | Mapping[str, str] | Path | None) -> Credentials:
        """Credentials from any of the forms that `Store.open` takes; None is the environment."""
        if source is None:
            return cls.from_environment()
        if isinstance(source, Credentials):
            return source
        return cls.from_directory(source) if isinstance(source, Path) else cls.from_mapping(source)
