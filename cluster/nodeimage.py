"""The node image for machines where no image registry is reachable, from Debian packages and Go modules.

kind runs any image that has systemd, containerd, the Kubernetes programs, and kind's own entry point and units, which
its Go module carries. `kind build node-image` starts from images of a registry, so this module puts the same parts
together otherwise:

1. a Debian root with kind's list of packages (mmdebstrap),
2. one small image per control-plane program, named as kubeadm expects it,
3. a container of that root, with kind's files and all programs copied in and those images imported into its containerd,
4. `docker commit`.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from cluster import cache, golang, host
from cluster.process import ClusterError, output, run_logged, side_by_side
from cluster.tools import (
    COREDNS_VERSION,
    ETCD_VERSION,
    KIND_VERSION,
    KUBERNETES_VERSION,
    LOCAL_PATH_VERSION,
    METRICS_SERVER_VERSION,
    PAUSE_VERSION,
    PROGRAMS,
    ROUTER_VERSION,
    tools,
)

RELEASE = "bookworm"
"""systemd of the next release no longer boots on cgroup v1."""

PACKAGES = (
    "systemd,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod,libseccomp2,pigz,fuse-overlayfs,"
    "nfs-common,open-iscsi,e2fsprogs,bash,ca-certificates,curl,jq,procps,ipset"
)
"""kind's list, and ipset."""

SMALL_PACKAGES = "busybox-static,iptables,nftables,ipset"
"""What an image has whose program calls iptables, or that runs a shell script."""

NODE_FILES = Path(__file__).parent / "node"

ROUTER_IMAGE = f"headrace.dev/kube-router:{ROUTER_VERSION}"
METRICS_SERVER_IMAGE = f"registry.k8s.io/metrics-server/metrics-server:{METRICS_SERVER_VERSION}"
LOCAL_PATH_IMAGE = f"docker.io/rancher/local-path-provisioner:{LOCAL_PATH_VERSION}"
HELPER_IMAGE = "headrace.dev/local-path-helper:1"

_NODE_PROGRAMS = {
    **{name: f"/usr/bin/{name}" for name in ("kubelet", "kubeadm", "kubectl")},
    **{name: f"/usr/local/bin/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr", "crictl")},
    "runc": "/usr/local/sbin/runc",
    **{name: f"/opt/cni/bin/{name}" for name in ("host-local", "loopback", "ptp", "bridge", "portmap")},
}

# Image, program, its path in the image, whether it stands on the small root.
_IMAGES: tuple[tuple[str, str, str, bool], ...] = (
    *(
        (f"registry.k8s.io/{name}:{KUBERNETES_VERSION}", name, f"/usr/local/bin/{name}", False)
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    ),
    (f"registry.k8s.io/kube-proxy:{KUBERNETES_VERSION}", "kube-proxy", "/usr/local/bin/kube-proxy", True),
    (f"registry.k8s.io/etcd:{ETCD_VERSION.removeprefix('v')}-0", "etcd", "/usr/local/bin/etcd", False),
    (f"registry.k8s.io/coredns/coredns:{COREDNS_VERSION}", "coredns", "/coredns", False),
    (f"registry.k8s.io/pause:{PAUSE_VERSION}", "pause", "/pause", False),
    (METRICS_SERVER_IMAGE, "metrics-server", "/metrics-server", False),
    (LOCAL_PATH_IMAGE, "local-path-provisioner", "/usr/local/bin/local-path-provisioner", False),
    (ROUTER_IMAGE, "kube-router", "/usr/local/bin/kube-router", True),
)

TOOL_NAMES = [*_NODE_PROGRAMS, *(program for _, program, _, _ in _IMAGES)]


def node_image() -> str:
    """Name of the node image in the cluster's Docker daemon, which is built when it is not there.

    Raises ClusterError when a package, a module or a program that the build needs is missing.
    """
    name = f"headrace.dev/node:{KUBERNETES_VERSION}-{_key()}"
    with cache.lock("node-image"):
        if not host.docker("image", "ls", "--quiet", name).strip():
            _build(name)
    return name


def _key() -> str:
    files = [Path(__file__), *NODE_FILES.iterdir()]
    return cache.digest(
        cache.digest_files(Path(__file__).parent, files),
        KIND_VERSION,
        PAUSE_VERSION,
        str(host.lacks_sys_resource()),
        *(PROGRAMS[name].key() for name in TOOL_NAMES if name in PROGRAMS),
    )


def _build(name: str) -> None:
    cache.say("[1/3] Programs and Debian roots of the nodes…")
    node_root = functools.partial(debian_root, RELEASE, PACKAGES)
    small_root = functools.partial(debian_root, RELEASE, SMALL_PACKAGES, variant="extract")
    with side_by_side([node_root, small_root], lanes=1):
        programs = tools(TOOL_NAMES)
    cache.say("[2/3] Images of the control plane…")
    with tempfile.TemporaryDirectory(prefix="headrace-node-") as folder:
        work = Path(folder)
        images = work / "images.tar"
        _save_images(programs, small_root(), work, images)
        cache.say("[3/3] Node image…")
        _assemble(name, programs, node_root(), images, work)


def debian_root(release: str, packages: str, *, variant: str = "minbase") -> Path:
    """Tar of a Debian root file system with `packages` (a list with commas), made by mmdebstrap once.

    `extract` unpacks the packages and what they depend on, without package management.
    """
    if os.geteuid() != 0:
        raise ClusterError("making a Debian root file system needs root, since no image registry is reachable.")
    mirror = os.environ.get("HEADRACE_DEBIAN_MIRROR", "http://deb.debian.org/debian")
    key = cache.digest(release, variant, packages)

    def build(folder: Path) -> None:
        command: list[str | Path] = ["mmdebstrap", f"--variant={variant}", f"--include={packages}"]
        command += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
        command += ["--dpkgopt=path-exclude=/usr/share/locale/*", release, folder / "root.tar", mirror]
        log = cache.root() / "logs" / f"debian-{release}-{variant}.log"
        run_logged(
            command, log, hint="It needs `apt-get install mmdebstrap` and a Debian mirror (HEADRACE_DEBIAN_MIRROR)."
        )

    return cache.produce(cache.root() / "roots" / f"{release}-{variant}-{key}", build) / "root.tar"


def import_image(name: str, tar: Path | None, folder: Path | None, *changes: str) -> None:
    """Make the Docker image `name` from a tar or else from the files in `folder`; `changes` as in a Dockerfile."""
    flags = [word for change in changes for word in ("--change", change)]
    environment = {**os.environ, **host.docker_environment()}
    if tar is not None:
        output(["docker", "import", *flags, tar, name], env=host.docker_environment())
        return
    archive = subprocess.Popen(["tar", "-C", str(folder), "-c", "."], stdout=subprocess.PIPE)
    command = ["docker", "import", *flags, "-", name]
    done = subprocess.run(command, stdin=archive.stdout, env=environment, capture_output=True, text=True, check=False)
    if archive.wait() != 0 or done.returncode != 0:
        raise ClusterError(f"docker import of {name} failed: {done.stderr.strip()}")


def _save_images(programs: dict[str, Path], small_root: Path, work: Path, target: Path) -> None:
    small = work / "small"
    small.mkdir()
    output(["tar", "-C", small, "-xf", small_root])
    _finish_small_root(small)
    import_image(HELPER_IMAGE, None, small)
    for image, program, path, on_small_root in _IMAGES:
        folder = work / program
        if on_small_root:
            output(["cp", "-a", small, folder])
        inside = folder / path.removeprefix("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(programs[program], inside)
        (folder / "tmp").mkdir(exist_ok=True)
        import_image(
            image,
            None,
            folder,
            f'ENTRYPOINT ["{path}"]',
            "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
    names = [HELPER_IMAGE, *(image for image, _, _, _ in _IMAGES)]
    host.docker("save", "-o", target, *names)
    host.docker("image", "rm", *names)


def _finish_small_root(root: Path) -> None:
    """What the packages' scripts would have done: the shell's commands, and iptables as the nftables flavour."""
    for applet in output([root / "bin" / "busybox", "--list"]).split():
        link = root / "bin" / applet
        if not link.exists() and not (root / "usr" / "bin" / applet).exists():
            link.symlink_to("busybox")
    for command in (
        "iptables",
        "iptables-save",
        "iptables-restore",
        "ip6tables",
        "ip6tables-save",
        "ip6tables-restore",
    ):
        link = root / "usr" / "sbin" / command
        link.unlink(missing_ok=True)
        link.symlink_to("xtables-nft-multi")
    (root / "tmp").mkdir(exist_ok=True)


def _assemble(name: str, programs: dict[str, Path], root: Path, images: Path, work: Path) -> None:
    overlay = work / "overlay"
    kind_files = golang.module_folder("sigs.k8s.io/kind", KIND_VERSION) / "images" / "base" / "files"
    shutil.copytree(kind_files, overlay)
    install = functools.partial(_install, overlay)
    for folder in ("usr/local/bin", "kind/bin"):
        for script in (overlay / folder).iterdir():
            script.chmod(0o755)
    for program, path in _NODE_PROGRAMS.items():
        install(programs[program], path)
    install(NODE_FILES / "headrace-routes", "/usr/local/bin/headrace-routes")
    install(NODE_FILES / "headrace-routes.service", "/etc/systemd/system/headrace-routes.service", mode=0o644)
    install(NODE_FILES / "prepare.sh", "/prepare.sh")
    install(NODE_FILES / "default-storage.yaml", "/kind/manifests/default-storage.yaml", mode=0o644)
    (overlay / "kind" / "version").write_text(KUBERNETES_VERSION)
    (overlay / "etc" / "kubernetes" / "manifests").mkdir(parents=True)
    containerd = overlay / "etc" / "containerd" / "config.toml"
    containerd.chmod(0o644)
    containerd.write_text(_containerd_config(containerd.read_text()))

    base = f"{name}-base"
    import_image(base, root, None)
    flags = ["--detach", "--privileged", "--network=none", "--entrypoint=sleep"]
    container = host.docker("run", *flags, base, "infinity").strip()
    try:
        archive = work / "overlay.tar"
        output(["tar", "--owner=0", "--group=0", "-C", overlay, "-cf", archive, "."])
        _copy_into(container, archive, images)
        host.docker("exec", container, "sh", "/prepare.sh")
        host.docker(
            "commit",
            "--change",
            'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]',
            "--change",
            "ENV container=docker",
            container,
            name,
        )
    finally:
        host.docker("rm", "--force", "--volumes", container)


def _install(overlay: Path, source: Path, path: str, *, mode: int = 0o755) -> None:
    target = overlay / path.removeprefix("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _copy_into(container: str, overlay: Path, images: Path) -> None:
    environment = {**os.environ, **host.docker_environment()}
    # tar in the container follows merged-/usr links such as /lib, which `docker cp` would replace by folders.
    with overlay.open("rb") as file:
        command = ["docker", "exec", "-i", container, "tar", "-C", "/", "--keep-directory-symlink", "-xf", "-"]
        done = subprocess.run(command, stdin=file, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"copying the node's files failed: {done.stderr.strip()}")
    host.docker("cp", images, f"{container}:/images.tar")


def _containerd_config(text: str) -> str:
    """kind's configuration with our pause image and, where the host asks for it, without raising OOM scores."""
    text = re.sub(r'sandbox_image = ".*"', f'sandbox_image = "registry.k8s.io/pause:{PAUSE_VERSION}"', text)
    if host.lacks_sys_resource():
        text = text.replace("restrict_oom_score_adj = false", "restrict_oom_score_adj = true")
    return text
