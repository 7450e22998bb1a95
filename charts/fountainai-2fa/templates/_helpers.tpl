{{/* Labels of every object. Enters: the root. */}}
{{- define "twofactor.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: fountainai-2fa
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What selects the operator's pods. The value never changes within a release: selectors cannot. */}}
{{- define "twofactor.operator.selector" -}}
app.kubernetes.io/name: twofactor-operator
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

{{/* A map as text, and nothing when it is empty. */}}
{{- define "twofactor.yaml" -}}
{{- with . }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* Metadata of an object. Enters: root, name, and, where it needs them, namespaced, labels (text), annotations (a map). */}}
{{- define "twofactor.metadata" -}}
metadata:
  name: {{ .name }}
  {{- if .namespaced }}
  namespace: {{ .root.Release.Namespace }}
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

{{/* An image's full name. Enters: root, image. */}}
{{- define "twofactor.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "twofactor.serviceAccount" -}}
{{ .Values.operator.serviceAccount.name | default .Values.name }}
{{- end }}

{{/* The Secret with the providers, or nothing. */}}
{{- define "twofactor.providers" -}}
{{- if .Values.providers.existingSecret }}{{ .Values.providers.existingSecret }}
{{- else if or .Values.smtp.server .Values.twilio.accountSid .Values.codesWebhook.url }}{{ .Values.name }}-providers
{{- end }}
{{- end }}

{{/* What Pod Security "restricted" asks of every container. */}}
{{- define "twofactor.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The documents of the operator's RBAC file, as a list under "items", under this release's name. Enters: the root. */}}
{{- define "twofactor.rbac" -}}
{{- $items := list }}
{{- range regexSplit "(?m)^---$" (.Files.Get "files/rbac.yaml") -1 }}
{{- $items = append $items (fromYaml .) }}
{{- end }}
{{- dict "items" $items | toJson | replace "\"twofactor-operator\"" (.Values.name | toJson) }}
{{- end }}

{{- /* The Secret with the authority of a Redis of one's own, if there is one. */}}
{{- define "twofactor.redis.ca" -}}
{{- if not .Values.redis.enabled }}{{ .Values.redis.existing.caSecretRef.name }}{{ end }}
{{- end }}
