{{- define "sluice.name" -}}
{{- if contains "sluice" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-sluice" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "sluice.serviceAccount" -}}
{{- (.Values.serviceAccount).name | default (include "sluice.name" .) -}}
{{- end }}

{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sluice.labels" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* Not by kubeVersion of Chart.yaml: a Helm that was built without release flags takes v1.20.0 for the version where it asks no
cluster, and would render nothing. */ -}}
{{- define "sluice.checkKubernetes" -}}
{{- $version := .Capabilities.KubeVersion.Version -}}
{{- if and (ne $version "v1.20.0") (semverCompare "<1.30.0-0" $version) -}}
{{- fail (printf "Kubernetes %s is too old: Sluice needs 1.30 or later (the preStop sleep of its pods)" $version) -}}
{{- end -}}
{{- end }}
