#!/bin/sh
# unpack.sh IMAGES TARGET: what containerd makes of the archives IMAGES/*.tar, as an archive of its folder.
#
# Here that takes seconds. In the guest, where each byte would be hashed by an emulated processor, it is minutes.
# Run in a mount namespace of its own; the folder is no overlay, on which containerd could not lay its own.
set -eu
mount -t tmpfs tmpfs /mnt
mkdir /mnt/root /mnt/state
cat >/mnt/containerd.toml <<-END
	version = 2
	disabled_plugins = ["io.containerd.grpc.v1.cri"]
END
containerd --config /mnt/containerd.toml --root /mnt/root --state /mnt/state --address /mnt/socket 2>/mnt/log &
trap 'kill $!; wait' EXIT
tries=0
until ctr --address /mnt/socket version >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ $tries -lt 300 ] || { cat /mnt/log; exit 1; }
	sleep 0.1
done
for image in "$1"/*.tar; do
	ctr --address /mnt/socket --namespace k8s.io images import "$image" >/dev/null
done
kill $!
wait
trap - EXIT
tar --create --file "$2" --directory /mnt/root --xattrs --xattrs-include='*' .
