output "dns_servers" {
  description = "The gateways' addresses: the DNS servers that clients are to use."
  value       = [for zone in sort(keys(var.zones)) : aws_network_interface.gateway[zone].private_ip]
}

output "public_addresses" {
  description = "The addresses that clients have outside, by zone."
  value       = { for zone, address in aws_eip.gateway : zone => address.public_ip }
}

output "network_interfaces" {
  description = "The gateways' interfaces, by zone: what routes lead to."
  value       = { for zone, interface in aws_network_interface.gateway : zone => interface.id }
}

output "security_group_id" {
  description = "The gateways' security group."
  value       = aws_security_group.gateway.id
}

output "role_arn" {
  description = "The machines' role, for the policies of secrets and keys elsewhere."
  value       = aws_iam_role.gateway.arn
}

output "autoscaling_groups" {
  description = "The groups of one machine each, by zone."
  value       = { for zone, group in aws_autoscaling_group.gateway : zone => group.name }
}
