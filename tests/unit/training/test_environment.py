"""What a worker is told, and what it says when that cannot be meant."""

from __future__ import annotations

import pytest

from headrace.training.environment import Environment
from headrace.training.errors import ConfigurationError


def test_a_notebook_is_a_run_of_one() -> None:
    environment = Environment.read({})
    assert (environment.rank, environment.world_size, environment.master) == (0, 1, None)
    assert (environment.checkpoint_interval, environment.checkpoint_keep) == (30.0, 2)


def test_a_pod_of_a_job() -> None:
    environment = Environment.read(
        {
            "RANK": "2",
            "WORLD_SIZE": "3",
            "MASTER_ADDR": "digits-worker-0.digits",
            "MASTER_PORT": "29500",
            "HEADRACE_JOB": "digits",
            "HEADRACE_ATTEMPT": "4",
            "HEADRACE_STORAGE_URI": "s3://headrace/team/digits/",
            "HEADRACE_CHECKPOINT_INTERVAL": "1m30s",
            "HEADRACE_CHECKPOINT_KEEP": "5",
        }
    )
    assert environment.rank == 2
    assert environment.master == ("digits-worker-0.digits", 29500)
    assert environment.attempt == 4
    assert environment.storage_uri == "s3://headrace/team/digits"
    assert (environment.checkpoint_interval, environment.checkpoint_keep) == (90.0, 5)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "one"}, "RANK: 'one' is no integer"),
        ({"RANK": "3", "WORLD_SIZE": "3", "MASTER_ADDR": "a"}, "ranks go from 0 to WORLD_SIZE-1"),
        ({"WORLD_SIZE": "2"}, "MASTER_ADDR: not set"),
        ({"HEADRACE_CHECKPOINT_INTERVAL": "soon"}, "HEADRACE_CHECKPOINT_INTERVAL: 'soon' is no duration"),
        ({"HEADRACE_CHECKPOINT_KEEP": "0"}, "HEADRACE_CHECKPOINT_KEEP: 0; the least value is 1"),
    ],
)
def test_a_wrong_variable_is_named(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Environment.read(variables)
    assert message in str(caught.value)
