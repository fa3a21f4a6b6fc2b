{{- define "skouter.labels" -}}
app.kubernetes.io/name: skouter
app.kubernetes.io/part-of: skouter
{{- end }}

{{- define "skouter.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* The servers of the cluster's DNS are read where they are, and nowhere else. */ -}}
{{- define "skouter.dns" }}
{{- $top := index . 0 }}
{{- $namespace := index . 1 }}
---
# The cluster's DNS: whose answers are believed.
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: skouter-dns
  namespace: {{ $namespace }}
  labels: {{- include "skouter.labels" $top | nindent 4 }}
rules:
  - apiGroups: [""]
    resources: [services]
    verbs: [list, watch]
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: skouter-dns
  namespace: {{ $namespace }}
  labels: {{- include "skouter.labels" $top | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: skouter-dns}
subjects:
  - {kind: ServiceAccount, name: skouter, namespace: {{ $top.Release.Namespace }}}
{{- end }}
