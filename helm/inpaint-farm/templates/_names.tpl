{{/* Names and labels. Every object's name begins with "farm.fullname". */}}

{{- define "farm.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects this release's pods; never changes in an upgrade. */}}
{{- define "farm.selector" -}}
app.kubernetes.io/name: inpaint-farm
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "farm.labels" -}}
{{ include "farm.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: inpaint-farm
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* (list root image) → registry/repository:tag or registry/repository@digest */}}
{{- define "farm.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := default $root.Values.image.registry $image.registry -}}
{{- with $registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest -}}
@{{ $image.digest }}
{{- else -}}
:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- define "farm.worker.account" -}}
{{- default (printf "%s-worker" (include "farm.fullname" .)) .Values.worker.serviceAccount.name -}}
{{- end -}}

{{- define "farm.dispatcher.account" -}}
{{- default (printf "%s-dispatcher" (include "farm.fullname" .)) .Values.dispatcher.serviceAccount.name -}}
{{- end -}}

{{- define "farm.redis.secret" -}}
{{- default (printf "%s-redis" (include "farm.fullname" .)) .Values.redis.existingSecret -}}
{{- end -}}
