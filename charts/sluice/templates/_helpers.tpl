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

{{- /* What the operator does in the namespaces that it looks after; no verb on Secrets, none on volumes. */ -}}
{{- define "sluice.rules" -}}
- apiGroups: [sluice.dev]
  resources: [inferenceservices]
  verbs: [list, watch]
- apiGroups: [sluice.dev]
  resources: [inferenceservices/status]
  verbs: [patch]
# Where OwnerReferencesPermissionEnforcement is on, children with blockOwnerDeletion need it.
- apiGroups: [sluice.dev]
  resources: [inferenceservices/finalizers]
  verbs: [update]
# update: the replacement that removes fields which others added.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, update]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- /* Not by kubeVersion of Chart.yaml: a Helm that was built without release flags takes v1.20.0 for the version where it asks no
cluster, and would render nothing. */ -}}
{{- define "sluice.checkKubernetes" -}}
{{- $version := .Capabilities.KubeVersion.Version -}}
{{- if and (ne $version "v1.20.0") (semverCompare "<1.30.0-0" $version) -}}
{{- fail (printf "Kubernetes %s is too old: Sluice needs 1.30 or later (the preStop sleep of its pods)" $version) -}}
{{- end -}}
{{- end }}
