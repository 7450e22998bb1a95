{{/* Labels of every object. Takes the root. */}}
{{- define "twofactor.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: fountainai-2fa
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Namespace of the objects. Takes the root. */}}
{{- define "twofactor.namespace" -}}
{{ .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{/* Labels that select the pods of admission. They are those of the one Deployment of the chart's first version, whose
name admission keeps too: selectors are immutable, and during an upgrade or a rollback the Service must find the pods of
both versions, so that no labelled pod is refused. */}}
{{- define "twofactor.admission.selector" -}}
app.kubernetes.io/name: twofactor-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels that select the pods of the controller. */}}
{{- define "twofactor.controller.selector" -}}
app.kubernetes.io/name: twofactor-controller
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "twofactor.redis.selector" -}}
app.kubernetes.io/name: twofactor-redis
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "twofactor.test.selector" -}}
app.kubernetes.io/name: twofactor-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* A map as text, or nothing if it is empty. */}}
{{- define "twofactor.yaml" -}}
{{- with . }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* Metadata of an object. Takes root, name, and optionally namespaced, labels (text) and annotations (a map). */}}
{{- define "twofactor.metadata" -}}
metadata:
  name: {{ .name }}
  {{- if .namespaced }}
  namespace: {{ include "twofactor.namespace" .root }}
  {{- end }}
  labels:
    {{- with .labels }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- include "twofactor.labels" .root | nindent 4 }}
  {{- with merge (dict) (.annotations | default dict) .root.Values.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Full name of an image. Takes root and image. */}}
{{- define "twofactor.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "twofactor.controller.serviceAccount" -}}
{{ .Values.operator.serviceAccount.name | default .Values.name }}
{{- end }}

{{- define "twofactor.admission.serviceAccount" -}}
{{ .Values.admission.serviceAccount.name | default (printf "%s-admission" .Values.name) }}
{{- end }}

{{/* Variables that controller and admission share. Takes the root. */}}
{{- define "twofactor.commonEnvironment" -}}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- with .Values.operator.namespaces }}
- name: TWOFACTOR_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
- name: TWOFACTOR_ADMIN_LISTEN
  value: "{{ .Values.operator.listenAddress }}:{{ .Values.operator.adminPort }}"
- name: TWOFACTOR_LOG_FORMAT
  value: {{ .Values.operator.log.format }}
- name: TWOFACTOR_LOG
  value: {{ .Values.operator.log.filter | quote }}
{{- end }}

{{/* Environment variables: those of the chart, of which later ones with the same name replace earlier ones. Takes own (text)
and more (a list). */}}
{{- define "twofactor.environment" -}}
{{- $names := list }}
{{- range .more }}{{ $names = append $names .name }}{{ end }}
{{- $all := list }}
{{- range .own | fromYamlArray }}
{{- if not (has .name $names) }}{{ $all = append $all . }}{{ end }}
{{- end }}
{{- toYaml (concat $all (.more | default list)) }}
{{- end }}

{{/* What a pod's spec may have in addition. Takes program (a section of the values). */}}
{{- define "twofactor.podExtras" -}}
{{- with .program.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .program.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Where the pods run: priority, nodes, and their distribution. Takes selector, program and common (two sections of the
values, of which the first wins). */}}
{{- define "twofactor.scheduling" -}}
{{- with .program.priorityClassName | default .common.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .program.nodeSelector | default .common.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .program.tolerations | default .common.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
  {{- with .program.affinity }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- .selector | nindent 14 }}
  {{- end }}
topologySpreadConstraints:
  {{- with .program.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- .selector | nindent 8 }}
  {{- end }}
{{- end }}

{{/* Security context of the pods of controller and admission. Takes the root. No user is set, so OpenShift can choose one. */}}
{{- define "twofactor.podSecurity" -}}
{{- $default := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- toYaml (merge (deepCopy .Values.operator.podSecurityContext) $default) }}
{{- end }}

{{/* Name of the Secret with the providers, or nothing. */}}
{{- define "twofactor.providers" -}}
{{- if .Values.providers.existingSecret }}{{ .Values.providers.existingSecret }}
{{- else if or .Values.smtp.server .Values.twilio.accountSid .Values.codesWebhook.url }}{{ .Values.name }}-providers
{{- end }}
{{- end }}

{{/* Security context that the Pod Security level "restricted" demands of every container. */}}
{{- define "twofactor.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Documents of a file with the operator's rules, as a list under "items", renamed for this release. Takes root and file. */}}
{{- define "twofactor.rules" -}}
{{- $root := .root }}
{{- $text := $root.Files.Get .file }}
{{- with $root.Values.tokens.existingSecret }}
{{- $text = $text | replace "twofactor-secret-key" . }}
{{- end }}
{{- /* How the policies recognize the accounts. */}}
{{- range list "controller" "admission" }}
{{- $account := include (printf "twofactor.%s.serviceAccount" .) $root | replace "." "[.]" }}
{{- $name := eq . "admission" | ternary "twofactor-operator-admission" "twofactor-operator" }}
{{- $text = $text | replace (printf "[^:]+:%s$" $name) (printf "%s:%s$" (include "twofactor.namespace" $root) $account) }}
{{- end }}
{{- $items := list }}
{{- range regexSplit "(?m)^---$" $text -1 }}
{{- $items = append $items (fromYaml .) }}
{{- end }}
{{- $admission := printf "%s-admission" $root.Values.name | toJson }}
{{- dict "items" $items | toJson | replace "\"twofactor-operator\"" ($root.Values.name | toJson) | replace "\"twofactor-operator-admission\"" $admission }}
{{- end }}

{{/* Those of the rules (a list) that are about objects of the whole cluster, as JSON. */}}
{{- define "twofactor.clusterRules" -}}
{{- $rules := list }}
{{- range . }}
{{- if or (has "namespaces" .resources) (has "limitranges" .resources) (has "mutatingwebhookconfigurations" .resources) }}{{ $rules = append $rules . }}{{ end }}
{{- end }}
{{- $rules | toJson }}
{{- end }}

{{/* A role and its binding to the account of `for`, the name of the role in the file. Takes root, kind, name, for, rules,
namespace (empty for a ClusterRole), and optionally annotations. */}}
{{- define "twofactor.role" -}}
{{- $account := eq .for .root.Values.name | ternary "controller" "admission" }}
{{- range list "" "Binding" }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $.kind }}{{ . }}
metadata:
  name: {{ $.name }}
  {{- with $.namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "twofactor.labels" $.root | nindent 4 }}
  {{- with merge (dict) ($.annotations | default dict) $.root.Values.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- if . }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $.kind }}
  name: {{ $.name }}
subjects:
  - kind: ServiceAccount
    name: {{ include (printf "twofactor.%s.serviceAccount" $account) $.root }}
    namespace: {{ include "twofactor.namespace" $.root }}
{{- else }}
rules:
  {{- toYaml $.rules | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The operator's roles in one of the namespaces to which it is limited: all rules of a namespace's objects where it has users,
and those for credentials where it has services only. Takes root, namespace, and optionally annotations. */}}
{{- define "twofactor.namespacedRoles" -}}
{{- $users := has .namespace .root.Values.operator.namespaces }}
{{- range (include "twofactor.rules" (dict "root" .root "file" "files/rbac.yaml") | fromJson).items }}
{{- if eq .kind "ClusterRole" }}
{{- $cluster := include "twofactor.clusterRules" .rules | fromJsonArray }}
{{- $rules := list }}
{{- range .rules }}
{{- if and (not (has . $cluster)) (or $users (not (has "twofactor.fountainai.io" .apiGroups))) }}{{ $rules = append $rules . }}{{ end }}
{{- end }}
{{- if $rules }}
{{- include "twofactor.role" (dict "root" $.root "kind" "Role" "name" (printf "%s-namespace" .metadata.name) "for" .metadata.name "rules" $rules "namespace" $.namespace "annotations" $.annotations) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Whether the cluster has ValidatingAdmissionPolicies. Without a cluster, its version says so. Takes the root. */}}
{{- define "twofactor.hasPolicies" -}}
{{- if .Capabilities.APIVersions.Has "v1/Secret" }}
{{- if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" }}true{{ end }}
{{- else if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version }}true
{{- end }}
{{- end }}

{{/* Name of the Secret with the certificate of the chart's own Redis that the administrator or cert-manager makes, or nothing. */}}
{{- define "twofactor.redis.givenCertificate" -}}
{{- if .Values.redis.tls.certManager.enabled }}{{ .Values.redis.name }}-tls{{ else }}{{ .Values.redis.tls.existingSecret }}{{ end }}
{{- end }}

{{/* Name of the Secret with the certificate of the chart's own Redis. */}}
{{- define "twofactor.redis.certificate" -}}
{{ include "twofactor.redis.givenCertificate" . | default "twofactor-redis-certificate" }}
{{- end }}

{{/* Name of the mounted Secret with the certificate authority of Redis, or nothing. The operator does not mount a Secret that it
makes itself. */}}
{{- define "twofactor.redis.ca" -}}
{{- if .Values.redis.enabled }}{{ include "twofactor.redis.givenCertificate" . }}{{ else }}{{ .Values.redis.existing.caSecretRef.name }}{{ end }}
{{- end }}

{{/* Name of the Secret with the client certificate for Redis, or nothing. */}}
{{- define "twofactor.redis.client" -}}
{{- if not .Values.redis.enabled }}{{ .Values.redis.existing.clientCertificateSecretRef.name }}{{ end }}
{{- end }}

{{/* A certificate by cert-manager, and an authority for it unless the values name an issuer. Takes root, name (of the
certificate and of its Secret), host, authority (name of the issuer and of its Secret), and settings (a section of the
values). */}}
{{- define "twofactor.certManager" -}}
{{- $root := .root }}
{{- if not .settings.issuerRef.name }}
---
# cert-manager makes an authority for this certificate alone.
apiVersion: cert-manager.io/v1
kind: Issuer
{{ include "twofactor.metadata" (dict "root" $root "name" (printf "%s-self-signed" (trimSuffix "-ca" .authority)) "namespaced" true) }}
spec:
  selfSigned: {}
---
apiVersion: cert-manager.io/v1
kind: Certificate
{{ include "twofactor.metadata" (dict "root" $root "name" .authority "namespaced" true) }}
spec:
  isCA: true
  commonName: {{ .authority }}
  secretName: {{ .authority }}
  # Ten years: clients that were given this authority do not trust its successor.
  duration: 87600h
  privateKey: {algorithm: ECDSA, size: 256}
  issuerRef: {kind: Issuer, name: {{ trimSuffix "-ca" .authority }}-self-signed}
---
apiVersion: cert-manager.io/v1
kind: Issuer
{{ include "twofactor.metadata" (dict "root" $root "name" .authority "namespaced" true) }}
spec:
  ca: {secretName: {{ .authority }}}
{{- end }}
---
apiVersion: cert-manager.io/v1
kind: Certificate
{{ include "twofactor.metadata" (dict "root" $root "name" .name "namespaced" true) }}
spec:
  secretName: {{ .name }}
  duration: {{ .settings.duration }}
  dnsNames:
    - {{ .host }}.{{ include "twofactor.namespace" $root }}.svc
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
  {{- if .settings.issuerRef.name }}
  issuerRef:
    {{- toYaml .settings.issuerRef | nindent 4 }}
  {{- else }}
  issuerRef: {kind: Issuer, name: {{ .authority }}}
  {{- end }}
{{- end }}

{{- /* IP families of a Service. Takes the root. */}}
{{- define "twofactor.ipFamilies" -}}
{{- with .Values.service.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.service.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Settings of a scrape. Takes a monitor's section of the values. */}}
{{- define "twofactor.scrape" -}}
path: /metrics
interval: {{ .interval }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- if .honorLabels }}
honorLabels: true
{{- end }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The seconds of a time such as 1h30m. */}}
{{- define "twofactor.seconds" -}}
{{- $hours := regexFind "[0-9]+h" . | trimSuffix "h" | int -}}
{{- $minutes := regexFind "[0-9]+m" . | trimSuffix "m" | int -}}
{{- $seconds := regexFind "[0-9]+s" . | trimSuffix "s" | int -}}
{{- add (mul 3600 $hours) (mul 60 $minutes) $seconds -}}
{{- end }}
