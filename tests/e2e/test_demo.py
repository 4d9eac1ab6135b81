"""`make demo` on the cluster that is up: the examples of the README are applied and its promises are kept."""

from __future__ import annotations

import re
import subprocess
import sys

from cluster.release import Release
from tests.e2e.installation import ROOT


def test_the_demo_trains_serves_survives_and_reports(release: Release) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.demo"], capture_output=True, text=True, check=False, cwd=ROOT, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = done.stdout
    assert {f"zone {zone}" for zone in "abc"} <= set(re.findall(r"zone [abc]", report))
    accuracy = {name: float(value) for name, value in re.findall(r"(\S+): test accuracy ([0-9.]+)", report)}
    assert accuracy["digits"] > 0.94, accuracy
    assert abs(accuracy["digits"] - accuracy["digits-one-worker"]) <= 0.02, accuracy
    assert re.search(r"all well: step predictor answered", report)
    assert re.search(r"primary killed: step smaller answered \(predictor=\S+\)", report)
    assert "status then: Ready=False FallbackAnswering: step smaller answers instead of the primary" in report
    assert re.search(r"recovered after [0-9]+ s: step predictor answered", report)
