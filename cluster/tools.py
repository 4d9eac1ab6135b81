"""The programs that the project builds for itself: `tool("kubectl")` is the path of a kubectl of the pinned version.

`python -m cluster.tools NAME...` builds what is missing and prints one path per line; without names, all names.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections import defaultdict
from pathlib import Path

from cluster import cache, golang
from cluster.golang import GoProgram
from cluster.process import ClusterError, run_logged, side_by_side

KUBERNETES_VERSION = "v1.36.3"
ETCD_VERSION = "v3.6.8"
COREDNS_VERSION = "v1.14.2"
"""What kubeadm of KUBERNETES_VERSION installs."""
CONTAINERD_VERSION = "v2.2.1"
CNI_VERSION = "v1.9.1"
PAUSE_VERSION = "3.10.2"
KIND_VERSION = "v0.33.0"
METRICS_SERVER_VERSION = "v0.9.0"
ROUTER_VERSION = "v2.1.0"
LOCAL_PATH_VERSION = "v0.0.30"

_MAJOR, _MINOR, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
_STAMP = "k8s.io/component-base/version"
_KUBERNETES_LDFLAGS = (
    f"-X {_STAMP}.gitVersion={KUBERNETES_VERSION} -X {_STAMP}.gitMajor={_MAJOR} -X {_STAMP}.gitMinor={_MINOR} "
    f"-X {_STAMP}.gitTreeState=clean"
)
_CONTAINERD = "github.com/containerd/containerd/v2"
_CONTAINERD_LDFLAGS = f"-X {_CONTAINERD}/version.Version={CONTAINERD_VERSION}"
_CONTAINERD_TAGS = "no_btrfs,no_zfs,no_devmapper"
_CNI = "github.com/containernetworking/plugins"

LANES = 2
"""Programs that are built at the same time."""

KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kubectl",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubeadm",
    "kubelet",
)


def _kubernetes(name: str) -> GoProgram:
    minutes = "about 4 min" if name == "kube-apiserver" else "about a minute"
    return GoProgram(
        name, "k8s.io/kubernetes", KUBERNETES_VERSION, f"cmd/{name}", ldflags=_KUBERNETES_LDFLAGS, minutes=minutes
    )


def _containerd(name: str) -> GoProgram:
    return GoProgram(
        name, _CONTAINERD, CONTAINERD_VERSION, f"cmd/{name}", tags=_CONTAINERD_TAGS, ldflags=_CONTAINERD_LDFLAGS
    )


def _cni(name: str, package: str) -> GoProgram:
    return GoProgram(name, _CNI, CNI_VERSION, f"plugins/{package}/{name}")


PROGRAMS: dict[str, GoProgram] = {
    program.name: program
    for program in (
        GoProgram("etcd", "go.etcd.io/etcd/server/v3", ETCD_VERSION, minutes="about a minute"),
        *(_kubernetes(name) for name in KUBERNETES_PROGRAMS),
        GoProgram(
            "helm",
            "helm.sh/helm/v3",
            "v3.22.0",
            "cmd/helm",
            ldflags="-X helm.sh/helm/v3/internal/version.version=v3.22.0",
            minutes="about a minute",
        ),
        GoProgram("kind", "sigs.k8s.io/kind", KIND_VERSION),
        GoProgram("kwok", "sigs.k8s.io/kwok", "v0.8.0", "cmd/kwok"),
        GoProgram("kueue", "sigs.k8s.io/kueue", "v0.17.0", "cmd/kueue", minutes="about 5 min"),
        GoProgram("crane", "github.com/google/go-containerregistry", "v0.22.1", "cmd/crane"),
        GoProgram("kubeconform", "github.com/yannh/kubeconform", "v0.8.0", "cmd/kubeconform"),
        GoProgram("versitygw", "github.com/versity/versitygw", "v1.8.0", "cmd/versitygw"),
        GoProgram(
            "metrics-server",
            "sigs.k8s.io/metrics-server",
            METRICS_SERVER_VERSION,
            "cmd/metrics-server",
            ldflags=f"-X sigs.k8s.io/metrics-server/pkg/version.gitVersion={METRICS_SERVER_VERSION}",
        ),
        GoProgram("local-path-provisioner", "github.com/rancher/local-path-provisioner", LOCAL_PATH_VERSION),
        GoProgram("kube-router", "github.com/cloudnativelabs/kube-router/v2", ROUTER_VERSION, "cmd/kube-router"),
        _containerd("containerd"),
        _containerd("containerd-shim-runc-v2"),
        _containerd("ctr"),
        # Linked statically, so that it runs on a node image of another Debian release than the machine that builds it.
        GoProgram(
            "runc",
            "github.com/opencontainers/runc",
            "v1.3.4",
            tags="seccomp,netgo,osusergo",
            ldflags="-X main.version=1.3.4",
            static_c=True,
        ),
        GoProgram("crictl", "sigs.k8s.io/cri-tools", "v1.36.0", "cmd/crictl"),
        GoProgram("coredns", "github.com/coredns/coredns", COREDNS_VERSION, minutes="about 2 min"),
        _cni("host-local", "ipam"),
        _cni("loopback", "main"),
        _cni("ptp", "main"),
        _cni("bridge", "main"),
        _cni("portmap", "meta"),
    )
}

NAMES = (*PROGRAMS, "pause")


def tool(name: str) -> Path:
    """Path of the program `name` (one of NAMES), which is built first when it is missing.

    Raises ClusterError when the name is unknown or the build fails.
    """
    return tools([name])[name]


def tools(names: list[str]) -> dict[str, Path]:
    """`tool` of each of `names`, with numbered progress lines for those that have to be built."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ClusterError(f"no tool is called {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    missing = [name for name in dict.fromkeys(names) if not _path(name).exists()]
    if missing:
        golang.go()  # once, before two want it
        _build_all(missing)
    return {name: _path(name) for name in names}


def _build_all(names: list[str]) -> None:
    """Build two programs at a time: one downloads or links on one core while the other compiles.

    Programs of one module share most of what they are compiled from, so they follow each other.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_module(name)].append(name)
    number = itertools.count(1)

    def build(group: list[str]) -> None:
        for name in group:
            cache.say(f"[{next(number)}/{len(names)}] {_describe(name)}…")
            started = time.monotonic()
            cache.produce(_path(name).parent, functools.partial(_build, name))
            cache.say(f"      {name} is ready after {time.monotonic() - started:.0f} s")

    # The biggest group begins, or it would be alone at the end.
    biggest_first = sorted(groups.values(), key=len, reverse=True)
    with side_by_side([functools.partial(build, group) for group in biggest_first], LANES):
        pass


def _module(name: str) -> str:
    if name == "pause" or PROGRAMS[name].in_kubernetes_module:
        return "k8s.io/kubernetes"
    return PROGRAMS[name].module


def _path(name: str) -> Path:
    key = PROGRAMS[name].key() if name in PROGRAMS else cache.digest(PAUSE_VERSION, KUBERNETES_VERSION)
    return cache.root() / "tools" / f"{name}-{key}" / name


def _describe(name: str) -> str:
    if name == "pause":
        return f"pause {PAUSE_VERSION} from Kubernetes' source"
    program = PROGRAMS[name]
    return f"{name} {program.version} from Go modules ({program.minutes} the first time)"


def _build(name: str, folder: Path) -> None:
    if name in PROGRAMS:
        golang.build(PROGRAMS[name], folder)
        return
    source = golang.module_folder("k8s.io/kubernetes", KUBERNETES_VERSION) / "build" / "pause" / "linux" / "pause.c"
    compile_pause: list[str | Path] = [
        "gcc",
        "-Os",
        "-Wall",
        "-static",
        f"-DVERSION=v{PAUSE_VERSION}",
        "-o",
        folder / "pause",
        source,
    ]
    run_logged(compile_pause, cache.root() / "logs" / "pause.log", hint="Install gcc and libc6-dev.")


def main(arguments: list[str]) -> int:
    """`python -m cluster.tools [NAME...]`."""
    try:
        for path in tools(arguments).values() if arguments else NAMES:
            print(path, flush=True)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
