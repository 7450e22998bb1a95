# The node's network, images and volumes, and taking it all away. Sourced by ../cluster.

# Which folder the network belongs to: another folder's cluster is not to be taken away.
readonly owner_file=/run/$name.cluster

has_network() { [[ -e /run/netns/$name ]]; }

refuse_other_cluster() {
  local owner
  if ! has_network; then return 0; fi
  owner=$(cat "$owner_file" 2>/dev/null) || owner=''
  if [[ $owner == "$state" ]]; then return 0; fi
  if [[ -n $owner ]]; then
    fail "a cluster runs in $owner, and a machine can have one only
  end it with: TWOFACTOR_CLUSTER=$owner tests/cluster/cluster down"
  fi
  fail "there is a network namespace $name that this script did not make
  if nobody needs it, delete it: ip netns del $name"
}

make_network() {
  local route
  route=$(ip -4 route show to match "$node_address" | grep -v '^default' || true)
  if [[ -n $route ]]; then
    fail "this machine has a route to $node_address, the address that the node is to have: $route
  choose other addresses in tests/cluster/cluster"
  fi
  printf '%s\n' "$state" >"$owner_file"
  ip netns add "$name"
  ip link add "$name" type veth peer name eth0 netns "$name"
  ip addr add "$host_address/30" dev "$name"
  ip link set "$name" up
  in_node ip link set lo up
  in_node ip addr add "$node_address/30" dev eth0
  in_node ip link set eth0 up
  # For processes of the node itself: without a route the kernel refuses before iptables could change the address. There is
  # no default route: what a pod sends elsewhere is refused by ICMP, whose rate limit would turn some refusals into timeouts.
  in_node ip route add "$service_addresses" via "$host_address"
  in_node bash -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/icmp_ratelimit'
}

# Images lie unpacked in memory where there is enough of it. On a disk, deleting them takes longer than all the rest of
# `down`, and importing them takes longer too.
make_image_folder() {
  local available
  mkdir -p "$state/containerd"
  available=$(awk '$1 == "MemAvailable:" { print int($2 / 1024 / 1024) }' /proc/meminfo)
  if ((available >= 8)); then
    mount -t tmpfs -o mode=711 "$name" "$state/containerd"
  fi
}

# load FILE...: imports each archive once. One that did not change since is not even read.
load() {
  local file digest known
  for file in "$@"; do
    [[ -f $file ]] || fail "there is no file $file"
    known=$(stat -L -c '%d-%i-%s-%Y-%Z' -- "$file")
    if [[ -e $state/loaded/$known ]]; then continue; fi
    digest=$(sha256sum <"$file" | cut -d ' ' -f 1)
    if [[ ! -e $state/loaded/$digest ]]; then
      images images import "$file" >>"$state/logs/load.log" 2>&1 || {
        tail -n 5 "$state/logs/load.log" >&2
        fail "could not import $file (a docker-archive is expected): see the messages above"
      }
    fi
    touch "$state/loaded/$digest" "$state/loaded/$known"
  done
}

# A volume that a claim had stays bound to it for ever, so `volumes` is there to make them new.
make_volumes() {
  local number volume phases
  phases=$(admin get persistentvolumes -o 'jsonpath={range .items[*]}{.metadata.name}={.status.phase}{"\n"}{end}')
  for number in $(seq -w 20); do
    volume=local-$number
    if grep -qxE "$volume=(Released|Failed)" <<<"$phases"; then
      admin delete persistentvolume "$volume" >/dev/null
      rm -rf "${state:?}/volumes/$volume"
    elif grep -q "^$volume=" <<<"$phases"; then
      continue
    fi
    # Any user may write, as with the usual provisioners of single nodes.
    mkdir -p -m 777 "$state/volumes/$volume"
    cat <<VOLUME
---
apiVersion: v1
kind: PersistentVolume
metadata: { name: $volume }
spec:
  storageClassName: standard
  capacity: { storage: 10Gi }
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  # Not hostPath: that one ignores a pod's fsGroup.
  local: { path: $state/volumes/$volume }
  nodeAffinity:
    required:
      nodeSelectorTerms: [{ matchExpressions: [{ key: kubernetes.io/hostname, operator: In, values: [$node] }] }]
VOLUME
  done >"$state/config/volumes.yaml"
  if [[ -s $state/config/volumes.yaml ]]; then
    admin apply -f "$state/config/volumes.yaml" >/dev/null
  fi
}

# ---- Taking away

readonly tasks=$state/run/containerd/io.containerd.runtime.v2.task/k8s.io

container_ids() {
  if [[ -d $tasks ]]; then ls "$tasks"; fi
}

# The processes of our containers, told by their cgroup, and the shims above them, told by the socket they report to.
container_processes() {
  local ids file
  ids=$(container_ids)
  if [[ -n $ids ]]; then
    { grep -lFf <(printf '%s\n' "$ids") /proc/[0-9]*/cgroup 2>/dev/null || true; } | cut -d / -f 3
  fi
  # -z: each argument is a line.
  while read -r file; do
    if grep -qz '/containerd-shim-runc-v2$' "$file" 2>/dev/null; then cut -d / -f 3 <<<"$file"; fi
  done < <(grep -lzxF "$state/run/containerd.sock" /proc/[0-9]*/cmdline 2>/dev/null)
}

no_container_processes() {
  local -a pids
  mapfile -t pids < <(container_processes)
  if ((${#pids[@]} == 0)); then return 0; fi
  kill -s KILL "${pids[@]}" 2>/dev/null || true
  return 1
}

remove_containers() {
  local id file
  wait_until 20 'the end of the containers' no_container_processes
  for id in $(container_ids); do
    # A shim that is killed leaves its socket, which lies outside of the folder.
    file=$(cat "$tasks/$id/address" 2>/dev/null) || file=''
    if [[ $file == unix:///run/containerd/s/* ]]; then rm -f "${file#unix://}"; fi
    find /sys/fs/cgroup -depth -type d -name "*$id*" -exec rmdir {} + 2>/dev/null || true
    rm -f /var/lib/cni/results/*-"$id"-*
  done
  rmdir /sys/fs/cgroup/k8s.io /sys/fs/cgroup/*/k8s.io 2>/dev/null || true
}

unmount_all() {
  local mount
  # The last first: mounts lie in one another.
  while read -r mount; do
    umount "$mount" 2>/dev/null || umount -l "$mount" || fail "could not unmount $mount"
  done < <(cut -d ' ' -f 5 /proc/self/mountinfo | grep -F "$state/" | tac)
}

# Also after half a start, and when there is nothing.
take_down() {
  local component
  # Before what it would start anew.
  stop_component kubelet TERM
  for component in kube-proxy kube-scheduler kube-controller-manager containerd; do
    stop_component "$component" KILL
  done
  remove_containers
  for component in kube-apiserver etcd; do
    stop_component "$component" KILL
  done
  unmount_all
  # Before the namespace, whose end takes the device away too, but some time later: a new start would still find it.
  if [[ -e /sys/class/net/$name ]]; then ip link del "$name"; fi
  if has_network; then ip netns del "$name"; fi
  rm -f "$owner_file"
  # The kubelet links its pods' logs in a folder that cannot be chosen.
  find /var/log/containers -type l -lname "$state/*" -delete 2>/dev/null || true
  if [[ -d $state/logs ]]; then
    rm -rf "$state/last-logs"
    mv "$state/logs" "$state/last-logs"
  fi
  if [[ -e $state/$mark ]]; then
    find "$state" -mindepth 1 -maxdepth 1 ! -name last-logs ! -name "$mark" ! -name .lock -exec rm -rf --one-file-system {} +
  fi
}
