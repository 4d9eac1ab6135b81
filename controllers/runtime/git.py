"""A git repository in a pod: an init container that checks out what the main one runs."""

from __future__ import annotations

from controllers.runtime import pods
from controllers.runtime.objects import Manifest
from controllers.runtime.settings import Settings
from headrace.api.trainingjob import GitSource

WORKSPACE = "/workspace"
REPOSITORY = f"{WORKSPACE}/repository"

_CLONE = """\
set -eu
rm -rf "$REPOSITORY"
git init -q "$REPOSITORY"
cd "$REPOSITORY"
git remote add origin "$GIT_REPO"
if git fetch -q --depth 1 origin "$GIT_REF"; then
  git checkout -q FETCH_HEAD
else
  git fetch -q --tags origin '+refs/heads/*:refs/remotes/origin/*'
  git checkout -q "$GIT_REF" -- || { echo "$GIT_REPO has no branch, tag or commit $GIT_REF: change $GIT_FIELD.ref" >&2; exit 78; }
fi
git log -1 --format='commit %H'
test -f "$GIT_PATH" || { echo "$GIT_REPO has no file $GIT_PATH at $GIT_REF: change $GIT_FIELD.path" >&2; exit 78; }
"""  # noqa: E501 - a shell script
"""Not every host serves a commit by its id, so the whole history is the second way. 78 (EX_CONFIG): trying again is of
no use."""


def clone(git: GitSource, settings: Settings, workspace: Manifest, field: str = "script.git") -> Manifest:
    """Init container that checks the repository out; runs in the trainer image, which has git.

    Args:
        git: The repository and what of it.
        settings: Of this installation.
        workspace: Mount of the volume that both containers share.
        field: Where the spec names the repository, for messages.
    """
    env = [
        pods.variable("HOME", "/tmp"),
        pods.variable("REPOSITORY", REPOSITORY),
        pods.variable("GIT_REPO", git.repo),
        pods.variable("GIT_REF", git.ref),
        pods.variable("GIT_PATH", git.path),
        pods.variable("GIT_FIELD", field),
        pods.variable("GIT_TERMINAL_PROMPT", 0),
        pods.variable("GIT_CONFIG_COUNT", 2 if git.secret_ref else 1),
        pods.variable("GIT_CONFIG_KEY_0", "init.defaultBranch"),
        pods.variable("GIT_CONFIG_VALUE_0", "main"),
    ]
    if git.secret_ref:
        helper = '!f() { echo "username=$GIT_USERNAME"; echo "password=$GIT_PASSWORD"; }; f'
        env += [pods.variable("GIT_CONFIG_KEY_1", "credential.helper"), pods.variable("GIT_CONFIG_VALUE_1", helper)]
        for key in ("username", "password"):
            reference = {"name": git.secret_ref.name, "key": key}
            env.append({"name": f"GIT_{key.upper()}", "valueFrom": {"secretKeyRef": reference}})
    return {
        "name": "clone",
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["sh", "-c", _CLONE],
        "env": env,
        "volumeMounts": [workspace],
    }
