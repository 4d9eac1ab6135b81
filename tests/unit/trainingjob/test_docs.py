"""Every reason that a TrainingJob can show is in docs/trainingjob.md, where people who search for it land."""

from __future__ import annotations

import re
from pathlib import Path

from controllers.runtime import podstate
from controllers.trainingjob import failure, plan, readiness, scheduling

ROOT = Path(__file__).parents[3]
REASON = re.compile(r'(?:Problem|Verdict)\(\s*(?:Outcome\.\w+,\s*)?"([A-Z]\w+)"|\("([A-Z]\w+)", "was ')


def test_every_reason_is_documented() -> None:
    page = (ROOT / "docs" / "trainingjob.md").read_text()
    documented = set(re.findall(r"`([A-Z]\w+)`", page))
    sources = [Path(str(module.__file__)).read_text() for module in (podstate, failure, plan, readiness, scheduling)]
    found = {one or other for source in sources for one, other in REASON.findall(source)}
    found |= set(scheduling._REASONS.values())
    assert len(found) > 20
    assert found - documented == set()
