"""What servers and workers of a parameter server are told by their environment."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.api.trainingjob import ParameterServer
from headrace.training.environment import Environment
from headrace.training.errors import ConfigurationError
from headrace.training.parameter_server.server import ServerSettings

SERVERS = "HEADRACE_SERVERS"
INDEX = "HEADRACE_SERVER_INDEX"
WORKERS = "HEADRACE_WORKERS"


def addresses(variables: Mapping[str, str]) -> list[str]:
    """`host:port` of each server.

    Raises:
        ConfigurationError: it is not set, or not a list of such.
    """
    text = variables.get(SERVERS, "")
    found = [item.strip() for item in text.split(",") if item.strip()]
    for item in found:
        host, _, port = item.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigurationError(SERVERS, f"{item!r} is no host:port", "write host:port,host:port,…")
    if not found:
        raise ConfigurationError(
            SERVERS,
            "not set",
            "set it to host:port of each server (in a TrainingJob, topology.type ParameterServer does)",
        )
    return found


def spec(told: Environment) -> ParameterServer:
    """How the servers of the run work.

    Raises:
        ConfigurationError: the run is of another topology.
    """
    found = told.topology.parameter_server
    if found is None:
        raise ConfigurationError(
            "topology.type", f"it is {told.topology.type}", "set ParameterServer, with topology.parameterServer"
        )
    return found


def server_settings(variables: Mapping[str, str]) -> ServerSettings:
    """The settings of one server.

    Raises:
        ConfigurationError: a variable is missing or has a value that cannot be meant.
    """
    told = Environment.read(variables)
    places = addresses(variables)
    index = _number(variables, INDEX, 0, len(places) - 1)
    return ServerSettings(
        index=index,
        servers=len(places),
        workers=_number(variables, WORKERS, 1, 1 << 20),
        parameter_server=spec(told),
        port=int(places[index].rpartition(":")[2]),
        run_id=told.run_id,
        storage_uri=told.storage_uri,
        checkpoint_interval=told.checkpoint_interval,
        checkpoint_keep=told.checkpoint_keep,
    )


def _number(variables: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = variables.get(name, "")
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
        raise ConfigurationError(name, repr(text), f"set a whole number from {least} to {most}")
    return int(text)
