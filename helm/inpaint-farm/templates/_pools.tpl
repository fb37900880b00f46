{{/* A pool of workers: what is left out of it comes from `worker`. */}}

{{/* (list root pool) → the pool with its defaults, as YAML. */}}
{{- define "farm.pool" -}}
{{- $worker := (index . 0).Values.worker -}}
{{- $defaults := omit $worker "serviceAccount" "existingStoreSecret" "podDisruptionBudget" -}}
{{- mergeOverwrite (deepCopy $defaults) (deepCopy (index . 1)) | toYaml -}}
{{- end -}}

{{/* What the schema cannot see: pools against each other, and a pool against the rest. */}}
{{- define "farm.check" -}}
{{- $values := .Values -}}
{{- if and (not $values.redis.enabled) (not $values.externalRedis.existingSecret) -}}
{{- fail "externalRedis.existingSecret: name the Secret that holds each role's Redis URL, or set redis.enabled=true for a trial." -}}
{{- end -}}
{{- if and $values.redis.enabled $values.externalRedis.existingSecret -}}
{{- fail "redis.enabled and externalRedis.existingSecret: choose one; two Redis servers would be two queues." -}}
{{- end -}}
{{- if and (or $values.webhooks.existingSecret $values.settings.webhook_hosts) $values.networkPolicy.enabled (not $values.networkPolicy.webhooks.to) -}}
{{- fail "networkPolicy.webhooks.to: webhooks are set up, and no network lets them out; name where they may go." -}}
{{- end -}}
{{- if and $values.tracing.endpoint $values.networkPolicy.enabled (not $values.tracing.to) -}}
{{- fail "tracing.to: traces are set up, and no network lets them out; name where the collector is." -}}
{{- end -}}
{{- $kind := $values.autoscaling.kind -}}
{{- if and (eq $kind "keda") (eq $values.autoscaling.source "dispatcher") (ne (int $values.dispatcher.replicas) 1) -}}
{{- fail "autoscaling.source=dispatcher: only the dispatcher that leads knows the backlog, and a Service cannot tell which one that is; set dispatcher.replicas=1, or use autoscaling.source=prometheus." -}}
{{- end -}}
{{- $shares := dict -}}
{{- $names := dict -}}
{{- range $given := $values.pools -}}
  {{- $pool := include "farm.pool" (list $ $given) | fromYaml -}}
  {{- if hasKey $names $pool.name -}}
  {{- fail (printf "pools: the name %q is there twice." $pool.name) -}}
  {{- end -}}
  {{- $_ := set $names $pool.name true -}}
  {{- if gt (int $pool.minReplicas) (int $pool.maxReplicas) -}}
  {{- fail (printf "pools: %s has minReplicas %d above maxReplicas %d." $pool.name (int $pool.minReplicas) (int $pool.maxReplicas)) -}}
  {{- end -}}
  {{- if and (eq $kind "hpa") (lt (int $pool.minReplicas) 1) -}}
  {{- fail (printf "pools: %s has minReplicas 0, which a plain HorizontalPodAutoscaler cannot do; use autoscaling.kind=keda, or minReplicas 1." $pool.name) -}}
  {{- end -}}
  {{- if and (not $pool.checkpoint.demo) (not $pool.checkpoint.volume) -}}
  {{- fail (printf "pools: %s has no checkpoint; give checkpoint.volume and checkpoint.path, or checkpoint.demo=true for a trial." $pool.name) -}}
  {{- end -}}
  {{- if and $pool.checkpoint.demo $pool.checkpoint.volume -}}
  {{- fail (printf "pools: %s has both checkpoint.demo and checkpoint.volume; take one away." $pool.name) -}}
  {{- end -}}
  {{- if and $pool.settings.lora_disk_bytes (not $pool.loraCache.enabled) -}}
  {{- fail (printf "pools: %s limits a LoRA cache on disk (lora_disk_bytes) that it does not have; set loraCache.enabled=true." $pool.name) -}}
  {{- end -}}
  {{- $_ := set $shares $pool.model (addf (default 0.0 (index $shares $pool.model)) $pool.backlogShare) -}}
{{- end -}}
{{- if ne $kind "none" -}}
{{- range $model, $share := $shares -}}
  {{- if gt $share 1.001 -}}
  {{- fail (printf "pools: the backlogShare of the pools of model %s add up to %v; each would answer the same backlog. Give each its part of 1." $model $share) -}}
  {{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
