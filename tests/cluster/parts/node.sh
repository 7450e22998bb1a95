# shellcheck shell=bash
# Makes and removes the node's network, images and volumes. Sourced by ../cluster.

# Contains the state folder that the network belongs to, so that `down` leaves a cluster of another
# folder alone.
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
  delete it if it is not needed: ip netns del $name"
}

make_network() {
  local route
  route=$(ip -4 route show to match "$node_address" | grep -v '^default' || true)
  if [[ -n $route ]]; then
    fail "this machine has a route to $node_address, the node's address: $route
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
  # For the node's own processes: without a route, the kernel refuses before iptables changes the
  # address. There is no default route, so the kernel answers with ICMP errors to what a pod sends
  # out of the cluster; their rate limit would turn some refusals into timeouts.
  in_node ip route add "$service_addresses" via "$host_address"
  in_node bash -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/icmp_ratelimit'
}

# Keeps unpacked images in memory if there is enough. On a disk, deleting them takes longer than the
# rest of `down`, and importing them takes longer too.
make_image_folder() {
  local available
  mkdir -p "$state/containerd"
  available=$(awk '$1 == "MemAvailable:" { print int($2 / 1024 / 1024) }' /proc/meminfo)
  if ((available >= 8)); then
    mount -t tmpfs -o mode=711 "$name" "$state/containerd"
  fi
}

# load FILE...: imports each archive once. An archive with the same size and time is not read again.
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

# A volume stays bound to its deleted claim, so this deletes such volumes and makes them again.
make_volumes() {
  local number volume phases
  phases=$(admin get persistentvolumes \
    -o 'jsonpath={range .items[*]}{.metadata.name}={.status.phase}{"\n"}{end}')
  for number in $(seq -w 20); do
    volume=local-$number
    if grep -qxE "$volume=(Released|Failed)" <<<"$phases"; then
      admin delete persistentvolume "$volume" >/dev/null
      rm -rf "${state:?}/volumes/$volume"
    elif grep -q "^$volume=" <<<"$phases"; then
      continue
    fi
    # Any user may write, as with the usual provisioners of single nodes.
    mkdir -p "$state/volumes/$volume"
    chmod 777 "$state/volumes/$volume"
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
  # Not hostPath, because it ignores a pod's fsGroup.
  local: { path: $state/volumes/$volume }
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions: [{ key: kubernetes.io/hostname, operator: In, values: [$node] }]
VOLUME
  done >"$state/config/volumes.yaml"
  if [[ -s $state/config/volumes.yaml ]]; then
    admin apply -f "$state/config/volumes.yaml" >/dev/null
  fi
}

# ---- Removal

readonly tasks=$state/run/containerd/io.containerd.runtime.v2.task/k8s.io

container_ids() {
  if [[ -d $tasks ]]; then ls "$tasks"; fi
}

# Prints the ids of the containers' processes, found by their cgroup, and of their shims, found by
# the socket that they report to.
container_processes() {
  local ids file
  ids=$(container_ids)
  if [[ -n $ids ]]; then
    { grep -lFf <(printf '%s\n' "$ids") /proc/[0-9]*/cgroup 2>/dev/null || true; } | cut -d / -f 3
  fi
  # -z, because the arguments are separated by NUL.
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
  wait_until 20 'the exit of the containers' no_container_processes
  for id in $(container_ids); do
    # A killed shim leaves its socket, which is outside of the state folder.
    file=$(cat "$tasks/$id/address" 2>/dev/null) || file=''
    if [[ $file == unix:///run/containerd/s/* ]]; then rm -f "${file#unix://}"; fi
    find /sys/fs/cgroup -depth -type d -name "*$id*" -exec rmdir {} + 2>/dev/null || true
    rm -f /var/lib/cni/results/*-"$id"-*
  done
  rmdir /sys/fs/cgroup/k8s.io /sys/fs/cgroup/*/k8s.io 2>/dev/null || true
}

unmount_all() {
  local mount
  # The last mount first, because mounts are nested.
  while read -r mount; do
    umount "$mount" 2>/dev/null || umount -l "$mount" || fail "could not unmount $mount"
  done < <(cut -d ' ' -f 5 /proc/self/mountinfo | grep -F "$state/" | tac)
}

# Also removes the rest of a failed start, and succeeds if there is nothing.
take_down() {
  local component
  # First, because the kubelet restarts containers that end.
  stop_component kubelet TERM
  for component in kube-proxy kube-scheduler kube-controller-manager containerd; do
    stop_component "$component" KILL
  done
  remove_containers
  for component in kube-apiserver etcd; do
    stop_component "$component" KILL
  done
  unmount_all
  # Before the namespace: the kernel removes the device of a deleted namespace some time later, and
  # the next start would still find it.
  if [[ -e /sys/class/net/$name ]]; then ip link del "$name"; fi
  if has_network; then ip netns del "$name"; fi
  rm -f "$owner_file"
  # The kubelet puts links to its pods' logs into this folder, which is not configurable.
  find /var/log/containers -type l -lname "$state/*" -delete 2>/dev/null || true
  if [[ -d $state/logs ]]; then
    rm -rf "$state/last-logs"
    mv "$state/logs" "$state/last-logs"
  fi
  if [[ -e $state/$mark ]]; then
    find "$state" -mindepth 1 -maxdepth 1 ! -name last-logs ! -name "$mark" ! -name .lock \
      -exec rm -rf --one-file-system {} +
  fi
}
