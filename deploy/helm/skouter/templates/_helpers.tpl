{{- define "skouter.labels" -}}
app.kubernetes.io/name: skouter
app.kubernetes.io/part-of: skouter
{{- end }}

{{- define "skouter.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}
