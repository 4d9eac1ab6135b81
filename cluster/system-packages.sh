#!/bin/sh
# The programs that this project takes from the system. On Debian (and its relatives) as root they are installed; elsewhere
# this says which are missing, and what for. Does nothing, quickly, when all are there.
set -eu

missing=""
want() { # program, what it is for, packages on Debian
  if ! command -v "$1" > /dev/null 2>&1; then
    missing="$missing $3"
    echo "missing: $1 ($2)" >&2
  fi
}
export PATH="$PATH:/usr/sbin:/sbin"
want python3 "everything" "python3 python3-venv"
want git "tests of charts and examples" git
want openssl "keys of the test control plane" openssl
want gcc "runc and pause of the node image" "gcc libc6-dev"
want pkg-config "runc of the node image" pkg-config
want ip "the pod network" iproute2
want sysctl "kernel settings" procps
want iptables "the Docker daemon" iptables
want mmdebstrap "images where no registry is reachable" mmdebstrap
want kmod "kernel modules of the nodes" kmod
if command -v python3 > /dev/null 2>&1 && ! python3 -c "import ensurepip" 2> /dev/null; then
  missing="$missing python3-venv"
  echo "missing: Python's venv (the environment of this project)" >&2
fi
if [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then
  missing="$missing ca-certificates"
  echo "missing: ca-certificates (downloads)" >&2
fi
if [ ! -e /usr/include/seccomp.h ]; then
  missing="$missing libseccomp-dev"
  echo "missing: seccomp.h (runc of the node image)" >&2
fi
if ! docker info > /dev/null 2>&1; then
  want dockerd "the nodes of the cluster are containers" docker.io
  want docker "the nodes of the cluster are containers" docker.io
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null 2>&1; then
  echo "error: install the above with your package manager (on Debian, as root: apt-get install$missing)" >&2
  exit 1
fi
echo "Installing$missing…" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# From Debian 13 on the docker command is a package of its own.
case "$missing" in
  *docker.io*) if [ -n "$(apt-cache search --names-only '^docker-cli$')" ]; then missing="$missing docker-cli"; fi ;;
esac
# A package must not start services here: the cluster starts its own Docker daemon where none answers.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing > /dev/null
