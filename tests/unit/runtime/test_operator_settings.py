"""The operator's settings: the environment, flags above it, and refusals that name the variable."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SETTINGS = Path(__file__).parents[3] / "operator" / "settings.py"


@pytest.fixture(scope="module")
def settings() -> ModuleType:
    """operator/ is a program, not a package, so its modules are loaded by path."""
    spec = importlib.util.spec_from_file_location("operator_settings", SETTINGS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_pods_environment_gives_name_and_namespace(settings: ModuleType) -> None:
    loaded = settings.load_settings([], {"POD_NAME": "operator-1", "POD_NAMESPACE": "ml"})
    assert loaded.identity == loaded.manager.identity == "operator-1"
    assert loaded.installation.operator_namespace == "ml"
    assert loaded.kubeconfig is None
    assert loaded.leader_elect


def test_a_flag_is_above_the_environment_and_that_above_the_default(settings: ModuleType) -> None:
    environment = {"HEADRACE_WORKERS": "3", "HEADRACE_STORAGE_URI": "s3://models/", "KUBECONFIG": "/k"}
    loaded = settings.load_settings(["--workers", "5", "--storage-endpoint", "http://s3:7070"], environment)
    assert loaded.manager.workers == 5
    assert loaded.installation.storage.uri == "s3://models"
    assert loaded.installation.storage.endpoint == "http://s3:7070"
    assert loaded.installation.storage.region == "us-east-1"
    assert str(loaded.kubeconfig) == "/k"


def test_the_secret_key_is_no_flag(settings: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.load_settings(["--storage-secret-access-key", "x"], {})
    assert "unrecognized arguments" in capsys.readouterr().err
    loaded = settings.load_settings([], {"HEADRACE_STORAGE_SECRET_ACCESS_KEY": "x"})
    assert loaded.installation.storage.secret_access_key == "x"


def test_there_is_a_webhook_where_its_certificate_has_a_place(settings: ModuleType) -> None:
    assert settings.load_settings([], {}).webhook is None
    environment = {"HEADRACE_WEBHOOK_SECRET": "webhook", "HEADRACE_WEBHOOK_NAMES": "webhook.ml.svc, 127.0.0.1"}
    webhook = settings.load_settings([], environment).webhook
    assert (webhook.secret, webhook.names, webhook.port) == ("webhook", ("webhook.ml.svc", "127.0.0.1"), 9443)
    assert webhook.configuration == "", "somebody else's to keep, unless it is named"
    assert not webhook.check_secrets


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("WORKERS", "many", "HEADRACE_WORKERS is 'many'; it is a number of at least 1"),
        ("RESYNC", "0", "HEADRACE_RESYNC is '0'; it is a number of at least 1"),
        ("LEADER_ELECT", "perhaps", "HEADRACE_LEADER_ELECT is 'perhaps'; it is true or false"),
        ("WEBHOOK_NAMES", " , ", "HEADRACE_WEBHOOK_NAMES is empty; name what the API server reaches the webhook by"),
        ("WEBHOOK_CHECK_SECRETS", "perhaps", "HEADRACE_WEBHOOK_CHECK_SECRETS is 'perhaps'; it is true or false"),
        ("LOG_FORMAT", "xml", "HEADRACE_LOG_FORMAT is 'xml'; it is json or console"),
        ("LOG_LEVEL", "loud", "HEADRACE_LOG_LEVEL is 'loud'; it is debug, info, warning or error"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(
    settings: ModuleType, capsys: pytest.CaptureFixture[str], variable: str, value: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        settings.load_settings([], {"HEADRACE_WEBHOOK_SECRET": "webhook", f"HEADRACE_{variable}": value})
    assert message in capsys.readouterr().err


def test_shares_of_the_queue_are_pairs_and_nonsense_is_named(
    settings: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    found = settings.load_settings([], {"HEADRACE_QUEUE_WEIGHTS": "research=2,lab=0.5,"})
    assert found.installation.queue_weights == (("research", 2.0), ("lab", 0.5))
    with pytest.raises(SystemExit):
        settings.load_settings([], {"HEADRACE_QUEUE_WEIGHTS": "research"})
    assert "write namespace=weight with a weight above 0" in capsys.readouterr().err
