{{/* FARM_* settings. Their names are those of farm/config.py in lower case. */}}

{{/* One value as the environment wants it. Helm reads every number as a float: 4294967296 must not become 4.29e+09. */}}
{{- define "farm.value" -}}
{{- if kindIs "slice" . -}}
{{- toJson . -}}
{{- else if kindIs "float64" . -}}
{{- ternary (int64 . | toString) (toString .) (eq . (floor .)) -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}

{{/* A map of settings as entries of a container's env, by name. */}}
{{- define "farm.settings.env" -}}
{{- range $name := keys . | sortAlpha }}
- name: FARM_{{ upper $name }}
  value: {{ include "farm.value" (index $ $name) | quote }}
{{- end }}
{{- end -}}

{{/* (dict root role storeSecret) → env entries of every process of the farm. `role`: sdk, worker or dispatcher. */}}
{{- define "farm.env" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
{{- if $values.redis.enabled }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "farm.redis.secret" $root }}
      key: {{ .role }}-password
- name: FARM_REDIS_URL
  value: redis://{{ .role }}:$(REDIS_PASSWORD)@{{ include "farm.fullname" $root }}-redis:6379/0
- name: FARM_ALLOW_PLAIN_REDIS # inside the cluster, and only this release's pods reach it
  value: "true"
{{- else }}
- name: FARM_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ $values.externalRedis.existingSecret }}
      key: {{ index $values.externalRedis.keys .role }}
{{- if $values.externalRedis.allowPlain }}
- name: FARM_ALLOW_PLAIN_REDIS
  value: "true"
{{- end }}
{{- end }}
- name: FARM_STORE
  value: {{ $values.store.url | quote }}
{{- with $values.store.endpoint }}
- name: FARM_S3_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with $values.store.region }}
- name: FARM_S3_REGION
  value: {{ . | quote }}
{{- end }}
{{- if $values.store.pathStyle }}
- name: FARM_S3_PATH_STYLE
  value: "true"
{{- end }}
{{- with .storeSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $values.store.keys.accessKeyId }}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $values.store.keys.secretAccessKey }}
{{- end }}
{{- if $values.tenants.existingSecret }}
- name: FARM_TENANTS
  value: /etc/inpaint-farm/tenants/{{ $values.tenants.key }}
{{- end }}
{{- with $values.tracing }}
{{- if .endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_TRACES_SAMPLER
  value: traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .share | quote }}
{{- end }}
{{- end }}
- name: FARM_METRICS_HOST
  value: 0.0.0.0
- name: FARM_METRICS_PORT
  value: "9090"
- name: FARM_WORKER_NAME # in logs and results
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end -}}
