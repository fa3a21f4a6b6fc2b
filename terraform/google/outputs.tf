output "dns_servers" {
  description = "The load balancer's address: the DNS server that clients are to use."
  value       = [google_compute_address.gateway.address]
}

output "public_addresses" {
  description = "The addresses that clients have outside."
  value       = google_compute_address.outside[*].address
}

output "next_hop" {
  description = "The forwarding rule that routes lead to, for routes of your own."
  value       = google_compute_forwarding_rule.gateway.id
}

output "service_account" {
  description = "The machines' account, for rights elsewhere."
  value       = google_service_account.gateway.email
}

output "instance_group" {
  description = "The group of machines."
  value       = google_compute_region_instance_group_manager.gateway.instance_group
}
