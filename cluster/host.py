"""The Docker daemon that the cluster's nodes run in, and what it changes on the host.

A daemon that answers is used as it is. Where none does, this module starts one of its own (as root): own socket, own
data below the cache, own containerd, so that neither a stale `/var/run/docker.pid` nor a Docker that somebody starts
later is in its way. Kernel settings and the iptables FORWARD policy are written down before the first change and
restored by `restore`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cluster import bridges, cache
from cluster.process import ClusterError, output

SETTINGS = (
    "net.ipv4.ip_forward",
    "net.ipv4.conf.all.forwarding",
    "net.ipv4.conf.default.forwarding",
    "net.ipv6.conf.all.forwarding",
    "net.bridge.bridge-nf-call-iptables",
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
)
"""Kernel settings that dockerd and the kubelets of the nodes write, and the two that four nodes need raised."""

INOTIFY_MINIMUM = {"fs.inotify.max_user_instances": 1024, "fs.inotify.max_user_watches": 524288}

START_DEADLINE = 60.0
STOP_DEADLINE = 30.0

_CAP_SYS_RESOURCE = 24


@dataclass
class HostState:
    """What `restore` needs to know; kept as JSON until then."""

    settings: dict[str, str] = field(default_factory=dict)
    forward_policy: dict[str, str] = field(default_factory=dict)
    """Policy of the FORWARD chain by iptables command."""
    links: list[str] = field(default_factory=list)
    """Network interfaces that existed before."""
    daemons: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Process id and start time (clock ticks since boot) of what was started, by program."""


def docker_environment() -> dict[str, str]:
    """What `docker` and `kind` need in their environment to reach the daemon that the cluster uses."""
    if (socket := _socket()).exists():
        return {"DOCKER_HOST": f"unix://{socket}"}
    return {}


def docker(*arguments: str | Path) -> str:
    """Standard output of `docker ARGUMENTS...` on the cluster's daemon."""
    return output(["docker", *arguments], env=docker_environment())


def ensure_docker() -> str:
    """Make sure that a daemon answers, starting one when none does; return a sentence about which it is."""
    if (pid := _alive("dockerd")) is not None:
        _wait_until_docker_answers()
        return f"Docker daemon of this project (pid {pid})"
    if not _socket().exists() and answers():
        _remember_settings()
        return "the Docker daemon that was already running"
    with cache.lock("dockerd"):
        if (pid := _alive("dockerd")) is None:
            pid = _start_docker()
    return f"Docker daemon of this project (pid {pid}), since no other answers"


def answers() -> bool:
    """Whether a daemon answers, ours or another."""
    if shutil.which("docker") is None:
        return False
    return (
        subprocess.run(
            ["docker", "info"], env={**os.environ, **docker_environment()}, capture_output=True, check=False
        ).returncode
        == 0
    )


def raise_inotify_limits() -> None:
    """Kubelets and systemd of four nodes need more inotify instances than many hosts allow; needs root."""
    if os.geteuid() != 0:
        return
    for name, minimum in INOTIFY_MINIMUM.items():
        current = _read_setting(name)
        if current is not None and int(current) < minimum:
            _setting_path(name).write_text(str(minimum))


def restore() -> list[str]:
    """Stop the daemon that was started here and put the host's settings back; return what was done, one line each.

    Does nothing when nothing was started or changed.
    """
    state = _load()
    if state is None:
        return []
    done = []
    started = "dockerd" in state.daemons
    own = _alive("dockerd")
    asked = own is not None and answers()
    networks = docker("network", "ls", "--quiet", "--filter", "driver=bridge").split() if asked else []
    others = bridges.other_daemons(own)
    gone = bridges.bridges(state.links, networks, shared=bool(others))
    for program in ("dockerd", "containerd"):
        if (pid := _alive(program)) is not None:
            _stop(pid)
            done.append(f"stopped {program} (pid {pid})")
    if started:
        done += bridges.remove(gone, state.forward_policy, shared=bool(others))
        done += _unmount()
        shutil.rmtree(_run_folder(), ignore_errors=True)
    if started and others:
        done.append(f"kernel settings and Docker's iptables chains stay: another dockerd (pid {others[0]}) uses them")
    elif os.geteuid() == 0:
        for name, value in state.settings.items():
            if _read_setting(name) not in (None, value):
                _setting_path(name).write_text(value)
                done.append(f"{name} is {value} again")
    _state_path().unlink()
    return done


def _start_docker() -> int:
    if os.geteuid() != 0:
        raise ClusterError(
            "No Docker daemon answers (`docker info`). Start Docker, or run this as root to have one started here."
        )
    for program in ("dockerd", "containerd", "runc", "docker", "iptables"):
        if shutil.which(program) is None:
            raise ClusterError(
                f"{program} is not installed: `apt-get install docker.io iptables`, or `make setup` as root."
            )
    state = _remember_settings()
    run, data, logs = _run_folder(), cache.root() / "docker", cache.root() / "logs"
    shutil.rmtree(run, ignore_errors=True)
    for folder in (run, data, logs):
        folder.mkdir(parents=True, exist_ok=True)
    # An own containerd: dockerd would take a stale socket of another one for a running one.
    containerd_config = run / "containerd.toml"
    containerd_socket = run / "containerd.sock"
    containerd_config.write_text(
        f'version = 2\nroot = "{data / "containerd"}"\nstate = "{run / "containerd"}"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{containerd_socket}"\n'
    )
    state.daemons["containerd"] = _spawn(
        ["containerd", "--config", containerd_config],
        logs / "containerd.log",
    )
    _save(state)
    _wait(containerd_socket.exists, "containerd", logs / "containerd.log")
    state.daemons["dockerd"] = _spawn(
        [
            "dockerd",
            "--host",
            f"unix://{_socket()}",
            "--config-file",
            _daemon_config(run, data / "data", containerd_socket),
        ],
        logs / "dockerd.log",
    )
    _save(state)
    _wait_until_docker_answers()
    return state.daemons["dockerd"][0]


def _daemon_config(run: Path, data_root: Path, containerd_socket: Path) -> Path:
    """dockerd's configuration; with a wrapped runc where this host has no CAP_SYS_RESOURCE to give."""
    config: dict[str, object] = {
        "containerd": str(containerd_socket),
        "data-root": str(data_root),
        "exec-root": str(run / "exec"),
        "pidfile": str(run / "docker.pid"),
        "log-opts": {"max-size": "10m", "max-file": "2"},
    }
    if mirrors := _mirrors():
        config["registry-mirrors"] = mirrors
    if lacks_sys_resource():
        wrapper = run / "runc-without-sys-resource"
        wrapper.write_text(RUNC_WRAPPER.format(runc=shutil.which("runc")))
        wrapper.chmod(0o755)
        config["runtimes"] = {"headrace-runc": {"path": str(wrapper)}}
        config["default-runtime"] = "headrace-runc"
    path = run / "daemon.json"
    path.write_text(json.dumps(config))
    return path


def _mirrors() -> list[str]:
    """Mirrors for a daemon that is started here: HEADRACE_REGISTRY_MIRROR, URLs with commas between them.

    Raises ClusterError for what is no URL.
    """
    mirrors = [part.strip() for part in os.environ.get("HEADRACE_REGISTRY_MIRROR", "").split(",") if part.strip()]
    for mirror in mirrors:
        parts = urlsplit(mirror)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClusterError(
                f"HEADRACE_REGISTRY_MIRROR is {mirror!r}: write the URL of a mirror of Docker Hub, such as "
                "https://mirror.example"
            )
    return mirrors


# `docker run --privileged` asks for every capability; a host that lacks one refuses to start the container at all.
RUNC_WRAPPER = """\
#!/bin/sh
# runc with CAP_SYS_RESOURCE taken out of the container's (--bundle) and of the exec's (--process) description.
previous=
for argument in "$@"; do
  file=
  case "$previous" in
    --bundle|-b) file="$argument/config.json" ;;
    --process|-p) file="$argument" ;;
  esac
  if [ -n "$file" ] && [ -f "$file" ]; then
    sed -i -e 's/"CAP_SYS_RESOURCE",//g' -e 's/,"CAP_SYS_RESOURCE"//g' -e 's/"CAP_SYS_RESOURCE"//g' "$file"
  fi
  previous="$argument"
done
exec {runc} "$@"
"""


def lacks_sys_resource() -> bool:
    """Whether this host has no CAP_SYS_RESOURCE to give; the containerd of a node must then be told so."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return not int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1
    return False


def _wait_until_docker_answers() -> None:
    _wait(answers, "dockerd", cache.root() / "logs" / "dockerd.log")


def _wait(condition: Callable[[], bool], program: str, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE
    while not condition():
        if _alive(program) is None or time.monotonic() > deadline:
            tail = "\n".join("    " + line for line in log.read_text(errors="replace").splitlines()[-10:])
            raise ClusterError(f"{program} does not come up:\n{tail}\n  whole log: {log}")
        time.sleep(0.1)


def _spawn(command: list[str | Path], log: Path) -> tuple[int, str]:
    """Start a program that outlives this one."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd="/",
        )
    started = _start_time(process.pid)
    if started is None:
        raise ClusterError(f"{command[0]} ended at once; its log: {log}")
    return process.pid, started


def _stop(pid: int) -> None:
    started = _start_time(pid)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_DEADLINE
    while _start_time(pid) == started:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _alive(program: str) -> int | None:
    """Pid of the program that was started here, while it runs; its pid given to another process is not it."""
    state = _load()
    if state is None or program not in state.daemons:
        return None
    pid, started = state.daemons[program]
    return pid if _start_time(pid) == started else None


def _start_time(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _remember_settings() -> HostState:
    """Write down the settings as they are now, once: a state that exists is from before the first change."""
    state = _load()
    if state is not None:
        return state
    state = HostState(
        settings={name: value for name in SETTINGS if (value := _read_setting(name)) is not None},
        forward_policy=bridges.forward_policies() if os.geteuid() == 0 else {},
        links=bridges.links(),
    )
    _save(state)
    return state


def _unmount() -> list[str]:
    """Mounts in the daemon's folders: one that was killed leaves some, one that was stopped none."""
    folders = (_run_folder(), cache.root() / "docker")
    fields = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mounts = [Path(field[1].encode().decode("unicode_escape")) for field in fields]
    left = [mount for mount in mounts if any(mount.is_relative_to(folder) for folder in folders)]
    # The last mounted first: it may lie on an earlier one.
    for mount in reversed(left):
        output(["umount", mount])
    return [f"unmounted {mount}" for mount in reversed(left)]


def _read_setting(name: str) -> str | None:
    path = _setting_path(name)
    return path.read_text().strip() if path.exists() else None


def _setting_path(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def _run_folder() -> Path:
    """Sockets and mounts; a short path, since a socket's may have no more than 107 characters."""
    return Path("/run") / f"headrace-{cache.digest(str(cache.root()))}"


def _socket() -> Path:
    return _run_folder() / "docker.sock"


def _state_path() -> Path:
    return cache.root() / "host.json"


def _load() -> HostState | None:
    path = _state_path()
    if not path.exists():
        return None
    raw = json.loads(path.read_text())
    return HostState(**{**raw, "daemons": {name: tuple(value) for name, value in raw["daemons"].items()}})


def _save(state: HostState) -> None:
    path = _state_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(asdict(state)))
    temporary.rename(path)
