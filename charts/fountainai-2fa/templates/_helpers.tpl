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

{{/* Labels that select the operator's pods. They must not change within a release, because selectors are immutable. */}}
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

{{/* A map as text, or nothing if it is empty. */}}
{{- define "twofactor.yaml" -}}
{{- with . }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* Metadata of an object. Takes root, name, and optionally namespaced, labels (text) and annotations (a map). */}}
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

{{/* Full name of an image. Takes root and image. */}}
{{- define "twofactor.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "twofactor.serviceAccount" -}}
{{ .Values.operator.serviceAccount.name | default .Values.name }}
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

{{/* Documents of the operator's RBAC file, as a list under "items", renamed for this release. Takes the root. */}}
{{- define "twofactor.rbac" -}}
{{- $items := list }}
{{- range regexSplit "(?m)^---$" (.Files.Get "files/rbac.yaml") -1 }}
{{- $items = append $items (fromYaml .) }}
{{- end }}
{{- dict "items" $items | toJson | replace "\"twofactor-operator\"" (.Values.name | toJson) }}
{{- end }}

{{- /* Name of the Secret with the certificate authority of an existing Redis, or nothing. */}}
{{- define "twofactor.redis.ca" -}}
{{- if not .Values.redis.enabled }}{{ .Values.redis.existing.caSecretRef.name }}{{ end }}
{{- end }}
