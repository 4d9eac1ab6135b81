"""The operator program with the toy kinds instead of the platform's: `python operator_process.py`, settings as ever."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import uvloop

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "operator"), str(ROOT)]

from app import Operator  # noqa: E402
from settings import environment_settings  # noqa: E402

from controllers.runtime.logs import configure_logging  # noqa: E402
from tests.api.runtime.toy import GadgetController, WidgetController  # noqa: E402


def main() -> int:
    """Run as operator/__main__.py does."""
    settings = environment_settings(sys.argv[1:])
    configure_logging(settings.log_level, settings.log_format)

    async def run() -> int:
        gadgets = [GadgetController()] if os.environ.get("TOY_GADGETS") else []
        return await Operator(settings, [WidgetController(), *gadgets]).run()

    return uvloop.run(run())


if __name__ == "__main__":
    sys.exit(main())
