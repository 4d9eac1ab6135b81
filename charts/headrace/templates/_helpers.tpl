{{- define "headrace.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Prefix of every object's name. */ -}}
{{- define "headrace.fullname" -}}
{{- $name := include "headrace.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "headrace.selectorLabels" -}}
app.kubernetes.io/name: {{ include "headrace.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "headrace.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "headrace.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: headrace
{{- end -}}

{{- /* An image: (dict "root" $ "name" "operator"). */ -}}
{{- define "headrace.image" -}}
{{- $image := .root.Values.image -}}
{{- $parts := compact (list $image.registry $image.repository .name) -}}
{{- printf "%s:%s" (join "/" $parts) (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}

{{- define "headrace.webhookName" -}}
{{ include "headrace.fullname" . }}-webhook
{{- end -}}

{{- /* What the API server and people reach the webhook by. */ -}}
{{- define "headrace.webhookNames" -}}
{{- $host := printf "%s.%s" (include "headrace.webhookName" .) .Release.Namespace -}}
{{- printf "%s.svc,%s.svc.%s" $host $host .Values.clusterDomain -}}
{{- end -}}

{{- define "headrace.embeddedStorage" -}}
{{- if not .Values.storage.uri -}}true{{- end -}}
{{- end -}}

{{- define "headrace.storageUri" -}}
{{- default (printf "s3://%s" .Values.s3.bucket) .Values.storage.uri -}}
{{- end -}}

{{- define "headrace.storageEndpoint" -}}
{{- if include "headrace.embeddedStorage" . -}}
http://{{ include "headrace.fullname" . }}-s3.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:7070
{{- else -}}
{{ .Values.storage.endpoint }}
{{- end -}}
{{- end -}}

{{- /* Secret with the default storage's credentials; empty where there is none. */ -}}
{{- define "headrace.storageSecret" -}}
{{- if .Values.storage.existingSecret -}}
{{ .Values.storage.existingSecret }}
{{- else if include "headrace.embeddedStorage" . -}}
{{ include "headrace.fullname" . }}-s3
{{- end -}}
{{- end -}}

{{- /* The restricted Pod Security Standard; the user is the one of the platform's images. */ -}}
{{- define "headrace.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "headrace.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* What a combination of values cannot mean is refused here with what would be right. */ -}}
{{- define "headrace.validate" -}}
{{- if and .Values.storage.endpoint (not .Values.storage.uri) -}}
{{- fail "storage.endpoint is set and storage.uri is not: name the folder in that service too, such as storage.uri=s3://bucket/headrace, or leave both empty for the embedded store" -}}
{{- end -}}
{{- if and .Values.storage.endpoint (not (hasPrefix "s3://" .Values.storage.uri)) -}}
{{- fail (printf "storage.endpoint is the address of an S3 service and storage.uri is %s: use an s3:// address, or leave storage.endpoint empty" .Values.storage.uri) -}}
{{- end -}}
{{- end -}}

{{- /*
The affinity of the operator: people's own, with a preference for another zone and, in one zone, another node. The
preference stands beside the soft spread constraint, which image locality and free resources could outvote alone.
*/ -}}
{{- define "headrace.operatorAffinity" -}}
{{- $labels := merge (dict "app.kubernetes.io/component" "operator") (include "headrace.selectorLabels" . | fromYaml) -}}
{{- $terms := list -}}
{{- range $key, $weight := dict "topology.kubernetes.io/zone" 100 "kubernetes.io/hostname" 50 -}}
{{- $term := dict "topologyKey" $key "labelSelector" (dict "matchLabels" $labels) "matchLabelKeys" (list "pod-template-hash") -}}
{{- $terms = append $terms (dict "weight" $weight "podAffinityTerm" $term) -}}
{{- end -}}
{{- $affinity := deepCopy .Values.operator.affinity -}}
{{- $anti := default dict $affinity.podAntiAffinity -}}
{{- $preferred := concat (default list $anti.preferredDuringSchedulingIgnoredDuringExecution) $terms -}}
{{- $_ := set $anti "preferredDuringSchedulingIgnoredDuringExecution" $preferred -}}
{{- $_ := set $affinity "podAntiAffinity" $anti -}}
{{- toYaml $affinity -}}
{{- end -}}

{{- define "headrace.embeddedOnlineStore" -}}
{{- if and .Values.redis.enabled (not .Values.onlineStore.uri) (not .Values.onlineStore.existingSecret) -}}true{{- end -}}
{{- end -}}

{{- /* Secret with the default online store's address; empty where there is none. */ -}}
{{- define "headrace.onlineStoreSecret" -}}
{{- if .Values.onlineStore.existingSecret -}}
{{ .Values.onlineStore.existingSecret }}
{{- else if include "headrace.embeddedOnlineStore" . -}}
{{ include "headrace.fullname" . }}-redis
{{- end -}}
{{- end -}}

{{- /* What is written survives a restart, save for the last second; what does not fit is refused, not evicted. */ -}}
{{- define "headrace.valkeyConf" -}}
bind * -::*
port 6379
dir /data
appendonly yes
appendfsync everysec
save ""
maxmemory {{ .root.Values.redis.maxMemory }}
maxmemory-policy noeviction
requirepass {{ .password }}
{{- end -}}
