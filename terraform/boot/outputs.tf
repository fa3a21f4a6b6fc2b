output "document" {
  description = "The cloud-init document (#cloud-config)."
  value       = "#cloud-config\n${yamlencode(local.document)}"
}

output "health_port" {
  description = "Where /livez, /readyz and /metrics are answered."
  value       = var.health_port
}
