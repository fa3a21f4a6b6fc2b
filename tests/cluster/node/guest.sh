#!/bin/sh
# guest.sh FOLDER: in the guest, as its only session: a node of Kubernetes, until the machine is ended.
#
# FOLDER is the host's, read-only: kubeconfig, kubelet.yaml, containerd.toml and .tar (unpack.sh), cni.conflist,
# network (lines for `ip -batch`) and bin/. Programs that are not in bin/ are Debian's, from the shared root.
set -eu
folder=$1
export PATH=$folder/bin:$PATH
say() { echo "$*" >&3; }
exec 3>&1 >/dev/ttyS0 2>&1

# An overlay's upper folder can't lie on an overlay, and what modprobe and iptables lock is not to be shared.
for place in /var/lib/containerd /var/lib/kubelet /var/lib/cni /var/log/pods; do
	mkdir -p "$place"
	mount -t tmpfs -o mode=755 tmpfs "$place"
done
mount --make-rshared /
for module in virtio_net bridge br_netfilter veth nf_tables nft_chain_nat nft_compat nf_nat xt_MASQUERADE xt_comment \
	xt_conntrack xt_addrtype xt_mark xt_nat xt_statistic sch_ingress cls_bpf; do
	modprobe -q "$module" || true
done
ip -batch "$folder/network"
hostname node
echo "nameserver 10.0.2.2" >/etc/resolv.conf
sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
mkdir -p /etc/cni/net.d
cp "$folder/cni.conflist" /etc/cni/net.d/1.conflist

tar --extract --file "$folder/containerd.tar" --directory /var/lib/containerd --xattrs --xattrs-include='*'
containerd -c "$folder/containerd.toml" >/run/containerd.log 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.3; done
say containerd
kubelet --config "$folder/kubelet.yaml" --kubeconfig "$folder/kubeconfig" --hostname-override node \
	--node-ip 10.0.2.15 >/run/kubelet.log 2>&1 &
kube-proxy --kubeconfig "$folder/kubeconfig" --hostname-override node --cluster-cidr 10.244.0.0/16 \
	>/run/kube-proxy.log 2>&1 &
say started
# What is asked for on the console: the logs, if the host wants to tell why.
while :; do
	sleep 5
	for log in kubelet containerd kube-proxy; do
		tail -n 5 "/run/$log.log" | sed "s/^/$log: /" || true
	done >/dev/ttyS0
done
