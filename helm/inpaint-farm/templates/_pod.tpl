{{/* What every pod of the farm has: restricted pod security, a writable /tmp of a known size, the same mounts. */}}

{{- define "farm.pod.security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "farm.container.security" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* (list root tmpSize) */}}
{{- define "farm.volumes" -}}
{{- $values := (index . 0).Values -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ index . 1 }}
{{- with $values.tenants.existingSecret }}
- name: tenants
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- if and (not $values.redis.enabled) $values.externalRedis.caSecret }}
- name: redis-ca
  secret:
    secretName: {{ $values.externalRedis.caSecret }}
    defaultMode: 0440
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "farm.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .Values.tenants.existingSecret }}
- name: tenants
  mountPath: /etc/inpaint-farm/tenants
  readOnly: true
{{- end }}
{{- if and (not .Values.redis.enabled) .Values.externalRedis.caSecret }}
- name: redis-ca
  mountPath: /etc/inpaint-farm/redis-ca
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Alive: the process answers. A device that stands still is the worker's own watchdog's to notice (stall_seconds). */}}
{{- define "farm.probe.live" -}}
httpGet:
  path: /healthz
  port: metrics
periodSeconds: 10
timeoutSeconds: 5
failureThreshold: 6
{{- end -}}

{{- define "farm.probe.ready" -}}
httpGet:
  path: /readyz
  port: metrics
periodSeconds: 5
timeoutSeconds: 5
failureThreshold: 2
{{- end -}}

{{/* `kubectl rollout restart` by itself when the shared settings change. */}}
{{- define "farm.checksum" -}}
checksum/settings: {{ toJson .Values.settings | sha256sum }}
{{- end -}}
