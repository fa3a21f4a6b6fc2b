output "dns_servers" {
  description = "The load balancer's address: the DNS server that clients are to use."
  value       = [local.address]
}

output "public_addresses" {
  description = "The addresses that clients have outside."
  value       = azurerm_public_ip.outside[*].ip_address
}

output "next_hop" {
  description = "The load balancer's address: what routes lead to, for routes of your own."
  value       = local.address
}

output "principal_id" {
  description = "The machines' identity, for rights elsewhere."
  value       = azurerm_user_assigned_identity.gateway.principal_id
}

output "scale_set_id" {
  description = "The group of machines."
  value       = azurerm_linux_virtual_machine_scale_set.gateway.id
}
