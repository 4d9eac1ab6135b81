"""How a run ends: exit codes, and the error that no further attempt can mend."""

from __future__ import annotations

EXIT_FAILED = 1
"""Failed, and another attempt may do better."""
EXIT_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: the configuration or the data cannot work, however often it is tried."""
EXIT_LINK = 80
"""A link between workers is dead or too slow (topology.preflight)."""
EXIT_GATE_NOT_MET = 79
"""The model is trained and not good enough for spec.evaluation; another attempt would give the same one."""
EXIT_INTERRUPTED = 143
"""128 + SIGTERM: told to stop before the work was done."""


class ConfigurationError(Exception):
    """The configuration or the data cannot work.

    Attributes:
        field: The field or variable that is wrong.
        found: What was found.
        remedy: What would be right.
    """

    def __init__(self, field: str, found: str, remedy: str) -> None:
        self.field = field
        self.found = found
        self.remedy = remedy
        super().__init__(f"{field}: {found}; {remedy}")


class GateNotMet(Exception):
    """The model is not good enough for spec.evaluation; the text has the figure and what was asked for."""


class Interrupted(SystemExit):
    """SIGTERM came: the process ends with EXIT_INTERRUPTED unless somebody catches this on purpose."""

    def __init__(self) -> None:
        super().__init__(EXIT_INTERRUPTED)
