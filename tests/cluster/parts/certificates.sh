# shellcheck shell=bash
# Makes the cluster's certificates and kubeconfig files. Sourced by ../cluster.

# certificate FILE SUBJECT [ALTERNATIVE-NAMES]: makes a key and a certificate of the cluster's
# authority.
certificate() {
  local file=$certificates/$1 usage=clientAuth
  if (($# > 2)); then usage=serverAuth; fi
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$file.key" \
    -subj "$2" 2>/dev/null |
    openssl x509 -req -CA "$certificates/ca.pem" -CAkey "$certificates/ca.key" -days 365 \
      -out "$file.pem" -extfile <(printf 'extendedKeyUsage=%s\nkeyUsage=digitalSignature\n%s\n' \
        "$usage" "${3:+subjectAltName=$3}") 2>/dev/null
}

# write_kubeconfig FILE CERTIFICATE: writes a kubeconfig that contains keys and certificates, so
# that the file can be copied.
write_kubeconfig() {
  cat >"$1" <<KUBECONFIG
apiVersion: v1
kind: Config
clusters:
  - name: $name
    cluster:
      server: https://$node_address:6443
      certificate-authority-data: $(base64 -w0 "$certificates/ca.pem")
users:
  - name: $2
    user:
      client-certificate-data: $(base64 -w0 "$certificates/$2.pem")
      client-key-data: $(base64 -w0 "$certificates/$2.key")
contexts:
  - name: $name
    context: { cluster: $name, user: $2 }
current-context: $name
KUBECONFIG
}

make_certificates() {
  mkdir -p "$certificates" "$state/kubeconfigs"
  openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
    -keyout "$certificates/ca.key" -out "$certificates/ca.pem" -subj /CN=kubernetes -days 365 \
    -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature 2>/dev/null
  certificate apiserver /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:$api_service_address,IP:$node_address,IP:127.0.0.1"
  certificate kubelet-server "/CN=$node" "DNS:$node,IP:$node_address"
  # Kubernetes' built-in roles are bound to these names and groups.
  certificate admin /O=system:masters/CN=admin
  certificate apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  certificate kubelet "/O=system:nodes/CN=system:node:$node"
  certificate controller-manager /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 \
    -out "$certificates/service-accounts.key" 2>/dev/null
  openssl pkey -in "$certificates/service-accounts.key" -pubout \
    -out "$certificates/service-accounts.pub"
  for client in kubelet controller-manager scheduler proxy; do
    write_kubeconfig "$state/kubeconfigs/$client" "$client"
  done
  write_kubeconfig "$kubeconfig" admin
}
