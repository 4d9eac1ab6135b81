"""Where the code of a run comes from."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from headrace.api.meta import KeyReference, LocalReference
from headrace.api.schema import Model, Rule, remedy, rules


def _inside_repository(path: str) -> str:
    if ".." in path:
        raise ValueError(f"{path} leaves the repository: write the file's path from the repository's root")
    return path


@rules(
    Rule(
        "!has(self.secretRef) || self.repo.startsWith('https://')",
        "secretRef holds a user name and password, which only https:// takes: change repo or leave secretRef out",
        ".secretRef",
        lambda git: git.secret_ref is None or git.repo.startswith("https://"),
    )
)
class GitSource(Model):
    """A file in a git repository."""

    repo: Annotated[
        str,
        Field(
            pattern=r"^(https?|ssh|git|file)://[^\s]+$",
            max_length=1024,
            json_schema_extra=remedy(
                r"self.matches(r'^(https?|ssh|git|file)://[^\s]+$')",
                "write a repository's URL such as https://git.example/team/models.git",
            ),
        ),
    ]
    """URL of the repository."""
    ref: Annotated[
        str,
        Field(
            pattern=r"^[^-\s][^\s]*$",
            min_length=1,
            max_length=253,
            json_schema_extra=remedy(r"self.matches(r'^[^-\s][^\s]*$')", "write a branch, a tag or a commit"),
        ),
    ] = "HEAD"
    """Branch, tag or commit; a commit makes the run repeatable."""
    path: Annotated[
        str,
        Field(
            pattern=r"^[^/.\s][^\s]*$",
            min_length=1,
            max_length=1024,
            json_schema_extra=remedy(
                r"self.matches(r'^[^/.\s][^\s]*$') && !self.contains('..')",
                "write the file's path from the repository's root, such as training/train.py",
            ),
        ),
        AfterValidator(_inside_repository),
    ]
    """File to run, from the repository's root."""
    secret_ref: LocalReference | None = None
    """Secret with `username` and `password` for https."""


@rules(
    Rule(
        "[has(self.configMap), has(self.git), has(self.path)].filter(x, x).size() == 1",
        "script: set exactly one of configMap, git and path (a file inside the image)",
        check=lambda script: [script.config_map, script.git, script.path].count(None) == 2,
    )
)
class Script(Model):
    """A Python file to run on every worker under torchrun's environment."""

    config_map: KeyReference | None = None
    """The file is a key of a ConfigMap."""
    git: GitSource | None = None
    """The file is in a git repository, cloned before the worker starts."""
    path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """The file is inside the image."""
