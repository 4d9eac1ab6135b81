"""The project's images: built from `images/<name>/Dockerfile` and loaded into the nodes of the local cluster.

Everything that an image is made of lies in a folder of its own while it is built; the hash of that folder decides
whether anything has to be done. The base is `debian:trixie-slim` where an image registry is reachable, and otherwise a
Debian root made here, which knows the certificates that this host trusts, so that builds reach package indexes as the
host does.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import cache, host, hub, kind, nodeimage, registry
from cluster.process import ClusterError, output, run_logged, succeeds
from cluster.tools import tool

ROOT = Path(__file__).parents[1]
STOCK_BASE = "debian:trixie-slim"
BASE_PACKAGES = "ca-certificates"
HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CONTENT_LABEL = "dev.headrace.content"

_BASE_DOCKERFILE = f"COPY ca-certificates.crt {HOST_CERTIFICATES}\nCOPY pip.conf /etc/pip.conf\n"


@dataclass(frozen=True)
class Recipe:
    """What the build context of an image holds besides its Dockerfile."""

    extra: str = ""
    """Extra of pyproject.toml whose locked packages the image has; with it comes the wheel."""
    more: str = ""
    """An extra that comes beside it: its packages are in `<more>.txt`."""
    folder: str = ""
    """Folder of images/ with its Dockerfile, of which it is the target `target`; by default its own name's."""
    target: str = ""
    folders: tuple[str, ...] = ()
    """Folders of the checkout."""
    programs: tuple[str, ...] = ()
    """Programs of `cluster.tools`."""


RECIPES = {
    "operator": Recipe(extra="operator", folders=("controllers", "operator")),
    "s3": Recipe(programs=("versitygw",)),
    "serving": Recipe(extra="serving", target="serving"),
    "trainer": Recipe(extra="classic"),
    "serving-torch": Recipe(extra="serving", folder="serving", target="torch"),
    "serving-pmml": Recipe(extra="serving", more="pmml", folder="serving", target="pmml"),
    "valkey": Recipe(),
}


def tag(name: str) -> str:
    """Full name of the image `name` at the version of this checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return f"headrace/{name}:{project['version']}"


def load(names: list[str]) -> None:
    """Build what changed of the images `names` (all when empty) and load it into the nodes that run workloads.

    Raises ClusterError when a name is unknown, there is no cluster, or a build fails.
    """
    _check(names)
    workers = kind.workers()
    if not workers:
        raise ClusterError(f"there is no cluster {kind.name()} to load images into: `headrace cluster up` makes it.")
    with cache.lock(f"images-{kind.name()}"):
        _into_nodes(_into_registry(names or list(RECIPES)), workers)


def up(choice: kind.NodeChoice = "auto", names: Sequence[str] = ()) -> None:
    """`kind.up` and `load` of `names` (all when empty), built and put into the nodes' registry while the nodes come up.

    Raises ClusterError as both do.
    """
    _check(names)
    contents: dict[str, str] = {}

    def prepare() -> None:
        contents.update(_into_registry(list(names or RECIPES)))
        tool("helm")  # what comes next on any way

    with cache.lock(f"images-{kind.name()}"):
        kind.up(choice, [prepare])
        _into_nodes(contents, kind.workers())


def _check(names: Iterable[str]) -> None:
    if unknown := [name for name in names if name not in RECIPES]:
        raise ClusterError(f"no image is called {', '.join(unknown)}; there are: {', '.join(RECIPES)}")


def _into_registry(names: list[str]) -> dict[str, str]:
    """Build what changed of `names` and push what the nodes have not; return the hash of the content of all."""
    known = loaded()
    contents = {}
    for name in names:
        started = time.monotonic()
        contents[name], built = build(name)
        if built:
            cache.say(f"      {tag(name)} is built after {time.monotonic() - started:.0f} s")
        if known.get(name) != contents[name]:
            registry.ensure(kind.registry_name())
            registry.push(kind.registry_name(), tag(name))
    return contents


def _into_nodes(contents: dict[str, str], workers: list[str]) -> None:
    """Let the nodes take what they have not from the registry."""
    known = loaded()
    changed = {name: content for name, content in contents.items() if known.get(name) != content}
    if not changed:
        cache.say("The nodes have all images of this checkout.")
        return
    cache.say(f"Loading {', '.join(changed)} into {len(workers)} nodes…")
    started = time.monotonic()
    registry.pull(workers, [tag(name) for name in changed])
    _record({**known, **changed})
    cache.say(f"      loaded after {time.monotonic() - started:.0f} s")


def build(name: str) -> tuple[str, bool]:
    """Build the image `name` unless Docker has it; return the hash of its content and whether it was built."""
    target = RECIPES[name].target
    with _context(name) as context:
        base = _base()
        content = cache.digest(base, target, cache.digest_files(context, [context]))
        filters = ["--filter", f"reference={tag(name)}", "--filter", f"label={CONTENT_LABEL}={content}"]
        if host.docker("image", "ls", "--quiet", *filters).strip():
            return content, False
        cache.say(f"Building {tag(name)}…")
        command: list[str | Path] = ["docker", "build", "--network=host", "--tag", tag(name)]
        command += ["--target", target] if target else []
        command += ["--build-arg", f"BASE_IMAGE={base}", "--label", f"{CONTENT_LABEL}={content}", context]
        log = cache.root() / "logs" / f"image-{name}.log"
        run_logged(command, log, env=_build_environment())
        # Its predecessors have no name any more; what they share with it stays.
        host.docker("image", "prune", "--force", "--filter", f"label={CONTENT_LABEL}")
    return content, True


@contextmanager
def _context(name: str) -> Iterator[Path]:
    """A folder with what the image is made of, as its Dockerfile describes it."""
    recipe = RECIPES[name]
    with tempfile.TemporaryDirectory(prefix=f"headrace-{name}-") as folder:
        context = Path(folder)
        shutil.copy(ROOT / "images" / (recipe.folder or name) / "Dockerfile", context)
        if recipe.extra:
            (context / "requirements.txt").write_text(_locked(recipe.extra))
            shutil.copy(_wheel(), context)
        if recipe.more:
            (context / f"{recipe.more}.txt").write_text(_locked(recipe.more))
        for part in recipe.folders:
            shutil.copytree(ROOT / part, context / part, ignore=shutil.ignore_patterns("__pycache__"))
        for program in recipe.programs:
            shutil.copy(tool(program), context)
        yield context


def _locked(extra: str) -> str:
    """Packages of an extra as a requirements file with hashes."""
    export = ["export", "--frozen", "--quiet", "--no-header", "--no-annotate", "--no-emit-project"]
    return output([_uv(), *export, "--no-default-groups", "--extra", extra, "--project", ROOT])


def _wheel() -> Path:
    """The wheel of this checkout."""
    parts = [ROOT / "headrace", ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"]

    def make(folder: Path) -> None:
        output([_uv(), "build", "--quiet", "--wheel", "--out-dir", folder, ROOT])

    folder = cache.produce(cache.root() / "wheels" / cache.digest_files(ROOT, parts), make)
    return next(folder.glob("headrace-*.whl"))


def _base() -> str:
    """Name of the image that all others stand on."""
    if host.docker("image", "ls", "--quiet", STOCK_BASE).strip():
        return STOCK_BASE
    if hub.reachable(hub.registries()):
        try:
            host.docker("pull", "--quiet", STOCK_BASE)
        except ClusterError as error:
            cache.say(f"The image registry answers, but {STOCK_BASE} cannot be pulled: {error}")
        else:
            return STOCK_BASE
    certificates = HOST_CERTIFICATES.read_bytes() if HOST_CERTIFICATES.exists() else b""
    name = f"headrace.dev/base:trixie-{cache.digest(BASE_PACKAGES, certificates, _BASE_DOCKERFILE)}"
    if not host.docker("image", "ls", "--quiet", name).strip():
        cache.say("Base image from Debian packages, since no image registry serves one…")
        root = nodeimage.debian_root("trixie", BASE_PACKAGES)
        with tempfile.TemporaryDirectory(prefix="headrace-base-") as folder:
            nodeimage.import_image(f"{name}-plain", root, None)
            context = Path(folder)
            (context / "ca-certificates.crt").write_bytes(certificates)
            (context / "pip.conf").write_text(f"[global]\ncert = {HOST_CERTIFICATES}\n")
            (context / "Dockerfile").write_text(f"FROM {name}-plain\n{_BASE_DOCKERFILE}")
            log = cache.root() / "logs" / "image-base.log"
            run_logged(["docker", "build", "--tag", name, context], log, env=_build_environment())
    return name


def _build_environment() -> dict[str, str]:
    """The classic builder where Docker has no buildx; both understand the Dockerfiles."""
    buildkit = {} if succeeds(["docker", "buildx", "version"]) else {"DOCKER_BUILDKIT": "0"}
    return {**host.docker_environment(), **buildkit}


def _uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv")
    if found is None:
        raise ClusterError("uv is not on PATH: run this with `uv run`, or `make setup` first.")
    return found


def loaded() -> dict[str, str]:
    """Hash by name of the images that were loaded into the cluster as it is now."""
    path = kind.folder() / "images.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return known


def _record(loaded: dict[str, str]) -> None:
    path = kind.folder() / "images.json"
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(loaded))
    temporary.rename(path)
