#!/bin/sh
# Runs once inside the future node image: what systemd shall start, what containerd gives each container, and the images.
set -eu

find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete
rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
  /lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/basic.target.wants/* \
  /lib/systemd/system/sockets.target.wants/*udev* /lib/systemd/system/sockets.target.wants/*initctl*
echo "ReadKMsg=no" >> /etc/systemd/journald.conf
ln -sf /usr/lib/systemd/systemd /sbin/init
systemctl enable kubelet.service containerd.service undo-mount-hacks.service headrace-routes.service
systemctl mask systemd-binfmt.service

ctr oci spec \
  | jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
  > /etc/containerd/cri-base.json

containerd --log-level warn &
containerd=$!
until ctr version > /dev/null 2>&1; do sleep 0.1; done
ctr --namespace k8s.io images import --no-unpack --all-platforms --digests \
  --label io.cri-containerd.pinned=pinned /images.tar
kill "$containerd"
wait "$containerd" || true
rm -rf /images.tar /prepare.sh /run/containerd
