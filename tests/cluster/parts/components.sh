# shellcheck shell=bash
# Defines the command line of each component, and when it is ready. Sourced by ../cluster.

# In start order.
readonly components=(etcd kube-apiserver containerd kube-controller-manager kube-scheduler kube-proxy kubelet)

command_of_etcd() {
  command=("$bin/etcd" --data-dir "$state/etcd" --log-level warn
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380
    --initial-cluster default=http://127.0.0.1:2380
    # The data is deleted with the cluster.
    --unsafe-no-fsync)
}

command_of_kube-apiserver() {
  command=("$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --allow-privileged=true
    # Pods reach the API server at this address. A loopback address is not allowed.
    "--advertise-address=$node_address"
    # Otherwise `kubectl logs` and `exec` would resolve the node's name in DNS.
    --kubelet-preferred-address-types=InternalIP
    "--service-cluster-ip-range=$service_addresses"
    '--authorization-mode=Node,RBAC' --enable-admission-plugins=NodeRestriction
    "--tls-cert-file=$certificates/apiserver.pem" "--tls-private-key-file=$certificates/apiserver.key"
    "--client-ca-file=$certificates/ca.pem"
    "--kubelet-certificate-authority=$certificates/ca.pem"
    "--kubelet-client-certificate=$certificates/apiserver-kubelet-client.pem"
    "--kubelet-client-key=$certificates/apiserver-kubelet-client.key"
    --service-account-issuer=https://kubernetes.default.svc.cluster.local
    "--service-account-key-file=$certificates/service-accounts.pub"
    "--service-account-signing-key-file=$certificates/service-accounts.key")
}

command_of_containerd() {
  command=(containerd --config "$state/config/containerd.toml")
}

command_of_kube-controller-manager() {
  command=("$bin/kube-controller-manager" "--kubeconfig=$state/kubeconfigs/controller-manager"
    --leader-elect=false --bind-address=127.0.0.1 --use-service-account-credentials=true
    # Pods verify the API server with this certificate.
    "--root-ca-file=$certificates/ca.pem"
    "--service-account-private-key-file=$certificates/service-accounts.key"
    "--flex-volume-plugin-dir=$state/kubelet/volume-plugins"
    "--cluster-signing-cert-file=$certificates/ca.pem" "--cluster-signing-key-file=$certificates/ca.key")
}

command_of_kube-scheduler() {
  command=("$bin/kube-scheduler" "--kubeconfig=$state/kubeconfigs/scheduler"
    --leader-elect=false --bind-address=127.0.0.1)
}

command_of_kube-proxy() {
  command=("$bin/kube-proxy" "--kubeconfig=$state/kubeconfigs/proxy" "--hostname-override=$node"
    --proxy-mode=iptables "--cluster-cidr=$pod_addresses"
    # The limit applies to the whole machine and cannot be set in a network namespace.
    --conntrack-max-per-core=0)
}

command_of_kubelet() {
  command=("$bin/kubelet" "--config=$state/config/kubelet.yaml"
    "--kubeconfig=$state/kubeconfigs/kubelet" "--hostname-override=$node"
    "--node-ip=$node_address" "--root-dir=$state/kubelet" "--cert-dir=$state/kubelet/pki")
}

ready_etcd() { wait_for etcd 30 port_is_open 2379; }
ready_kube-apiserver() { wait_for kube-apiserver 90 admin get --raw /readyz; }
ready_containerd() { wait_for containerd 30 images version; }
ready_kube-controller-manager() { wait_for kube-controller-manager 60 port_is_open 10257; }
ready_kube-scheduler() { wait_for kube-scheduler 60 port_is_open 10259; }
ready_kube-proxy() { wait_for kube-proxy 60 port_is_open 10256; }
ready_kubelet() { wait_for kubelet 60 port_is_open 10250; }

admin() { "$bin/kubectl" --kubeconfig "$kubeconfig" "$@"; }
images() { ctr --address "$state/run/containerd.sock" --namespace k8s.io "$@"; }

write_configuration() {
  mkdir -p "$state"/{config/cni,kubelet,run,cni}
  cat >"$state/config/containerd.toml" <<CONTAINERD
version = 2
root = "$state/containerd"
state = "$state/run/containerd"

[grpc]
  address = "$state/run/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "$state/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/twofactor-test/pause:dev"
  # Lowering a process's score needs CAP_SYS_RESOURCE, which root in a container may lack. runc then
  # fails with "can't get final child's PID from pipe".
  restrict_oom_score_adj = true
  # All mounts are below one folder, so that \`down\` finds them.
  netns_mounts_under_state_dir = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$state/config/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    Root = "$state/run/runc"
CONTAINERD
  # ptp and not bridge, because routed packets to a Service's address pass iptables. Bridged ones do
  # so only with the kernel module br_netfilter.
  cat >"$state/config/cni/10-$name.conflist" <<CNI
{
  "cniVersion": "0.4.0",
  "name": "$name",
  "plugins": [
    {
      "type": "ptp",
      "ipam": {
        "type": "host-local",
        "ranges": [[{ "subnet": "$pod_addresses" }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dataDir": "$state/cni"
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
CNI
  cat >"$state/config/kubelet.yaml" <<KUBELET
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$state/run/containerd.sock
authentication:
  anonymous: { enabled: false }
  webhook: { enabled: true }
  x509: { clientCAFile: $certificates/ca.pem }
authorization: { mode: Webhook }
tlsCertFile: $certificates/kubelet-server.pem
tlsPrivateKeyFile: $certificates/kubelet-server.key
clusterDNS: [$dns_address]
clusterDomain: cluster.local
# Pods get no name server of this machine, because none of them needs the internet.
resolvConf: ""
podLogsDir: $state/logs/pods
volumePluginDir: $state/kubelet/volume-plugins
# These settings let the kubelet start without systemd, with cgroups of version 1, and in a
# container. Containers have their limits; there is no tree of cgroups above them.
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
localStorageCapacityIsolation: false
oomScoreAdj: 0
# There is no registry to pull a deleted image from, so images are never collected, and pods are
# evicted only when almost nothing is left.
imageGCHighThresholdPercent: 100
evictionHard:
  { memory.available: 1%, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1% }
# A changed Secret reaches the pods that mount it in seconds, not after a minute.
syncFrequency: 10s
KUBELET
}
