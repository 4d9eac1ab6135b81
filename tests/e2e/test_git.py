"""A script from git: what a branch and a commit run, and what a ref that is not there gets."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cluster.kubectl import Kube, Manifest, condition, wait_for
from tests.e2e.resources import SMALL, pod, ready_pod
from tests.e2e.test_training import failed_job, finished

HTTP, GIT = 8080, 9418

SERVER = textwrap.dedent(
    f"""\
    # One repository in two ways: git's own protocol, which serves any commit by its id, and plain files over HTTP,
    # where a client must fetch the whole history.
    set -eu
    export HOME=/tmp
    git config --global user.name tester
    git config --global user.email tester@example.com
    git config --global init.defaultBranch main
    git init -q /tmp/work
    cd /tmp/work
    commit() {{ echo "print('this is $1')" > train.py; git add train.py; git commit -q -m "$1"; }}
    commit first
    echo "FIRST $(git rev-parse HEAD)"
    commit main
    git checkout -q -b feature
    commit feature
    git clone -q --bare /tmp/work /tmp/served/models.git
    git -C /tmp/served/models.git update-server-info
    python3 -m http.server {HTTP} --directory /tmp/served 2> /dev/null &
    until git ls-remote -q http://127.0.0.1:{HTTP}/models.git > /dev/null 2>&1; do sleep 0.1; done
    exec git daemon --export-all --base-path=/tmp/served --port={GIT}
    """
)


@dataclass(frozen=True, slots=True)
class Repository:
    """A served repository with the branches main and feature.

    Attributes:
        git: Its URL by git's protocol.
        http: Its URL as plain files.
        first: Id of the commit before the last one of main.
    """

    git: str
    http: str
    first: str


@pytest.fixture(scope="module")
def repository(kube: Kube) -> Repository:
    probe = {"readinessProbe": {"tcpSocket": {"port": GIT}, "periodSeconds": 1}}
    kube.apply(pod("git", ["sh", "-c", SERVER], image="trainer", container=probe))
    address = wait_for("the repository is served", lambda: ready_pod(kube, "git"), seconds=60)["status"]["podIP"]
    (first,) = (line.split()[1] for line in kube.run("logs", "git").splitlines() if line.startswith("FIRST "))
    return Repository(f"git://{address}/models.git", f"http://{address}:{HTTP}/models.git", first)


def job(name: str, repo: str, ref: str, path: str = "train.py") -> Manifest:
    source = {"repo": repo, "ref": ref, "path": path}
    return {
        "apiVersion": "headrace.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {"numWorkers": 1, "script": {"git": source}, "resources": SMALL},
    }


@pytest.fixture(scope="module")
def jobs(kube: Kube, repository: Repository) -> Iterator[Repository]:
    """All jobs of this module at once."""
    kube.apply(
        job("branch", repository.git, "feature"),
        job("commit", repository.git, repository.first),
        job("commit-by-files", repository.http, repository.first),
        job("no-ref", repository.http, "no-such-branch"),
        job("no-file", repository.git, "main", "no/such/file.py"),
    )
    yield repository
    kube.delete("trainingjob", "branch", "commit", "commit-by-files", "no-ref", "no-file", wait=False)


@pytest.mark.parametrize(("name", "runs"), [("branch", "feature"), ("commit", "first"), ("commit-by-files", "first")])
def test_a_branch_and_a_commit_run_what_they_name(kube: Kube, jobs: Repository, name: str, runs: str) -> None:
    status = wait_for("the job succeeds", lambda: finished(kube, name), seconds=120)["status"]
    assert status["restarts"] == 0
    assert f"this is {runs}" in kube.run("logs", f"{name}-worker-0", "-c", "worker")
    if runs == "first":
        assert f"commit {jobs.first}" in kube.run("logs", f"{name}-worker-0", "-c", "clone"), "the log says what ran"


@pytest.mark.parametrize(
    ("name", "found", "remedy"),
    [
        ("no-ref", "has no branch, tag or commit no-such-branch", "change script.git.ref"),
        ("no-file", "has no file no/such/file.py at main", "change script.git.path"),
    ],
)
def test_what_the_repository_does_not_have_ends_the_job_by_name(
    kube: Kube, jobs: Repository, name: str, found: str, remedy: str
) -> None:
    ended = wait_for("the job fails", lambda: failed_job(kube, name), seconds=120)
    failed = condition(ended, "Failed")
    assert failed["reason"] == "InvalidConfiguration"
    assert f"models.git {found}" in failed["message"]
    assert remedy in failed["message"]
    assert ended["status"]["attempt"] == 1, "another attempt would find the same"
