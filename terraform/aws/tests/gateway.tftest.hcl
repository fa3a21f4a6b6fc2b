# What belongs together: route -> interface -> launch template -> group, over all zones.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { region = "eu-central-1" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/skouter" }
  }
}

variables {
  vpc_id = "vpc-0123456789abcdef0"
  zones = {
    eu-central-1a = { subnet_id = "subnet-0a", route_table_ids = { one = "rtb-0a", other = "rtb-1a" } }
    eu-central-1b = { subnet_id = "subnet-0b", route_table_ids = { one = "rtb-0b" }, private_ip = "10.0.1.5" }
  }
  clients  = ["10.20.0.0/16", "fd00:20::/64"]
  policies = "../../deploy/examples"
  secrets  = { peer_key = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:peer-AbCdEf" }
}

run "as_it_comes" {
  assert {
    condition     = alltrue([for interface in aws_network_interface.gateway : interface.source_dest_check == false])
    error_message = "An interface drops what it is to forward."
  }
  assert {
    condition     = alltrue([for route, table in { "eu-central-1a/one" = "rtb-0a", "eu-central-1a/other" = "rtb-1a", "eu-central-1b/one" = "rtb-0b" } : aws_route.ipv4[route].route_table_id == table && aws_route.ipv4[route].network_interface_id == aws_network_interface.gateway[split("/", route)[0]].id])
    error_message = "A route leads to another zone's interface."
  }
  assert {
    condition     = length(aws_route.ipv4) == 3 && length(aws_route.ipv6) == 0
    error_message = "There is a route too many, or too few."
  }
  assert {
    condition     = alltrue([for zone, template in aws_launch_template.gateway : template.network_interfaces[0].network_interface_id == aws_network_interface.gateway[zone].id && template.network_interfaces[0].delete_on_termination == "false"])
    error_message = "A machine comes up with another interface, or takes its own away with it."
  }
  assert {
    condition     = alltrue([for zone, group in aws_autoscaling_group.gateway : group.launch_template[0].name == aws_launch_template.gateway[zone].name && aws_launch_template.gateway[zone].name == "skouter-${zone}" && group.availability_zones == toset([zone])])
    error_message = "A group starts another zone's machine."
  }
  assert {
    condition     = alltrue([for group in aws_autoscaling_group.gateway : group.min_size == 1 && group.max_size == 1 && length(group.instance_refresh) == 0])
    error_message = "A zone has not one machine, or settings replace it unasked."
  }
  assert {
    condition     = alltrue([for template in aws_launch_template.gateway : template.metadata_options[0].http_tokens == "required"])
    error_message = "The metadata are to be had without a session."
  }
  assert {
    condition     = alltrue([for zone, address in aws_eip.gateway : address.network_interface == aws_network_interface.gateway[zone].id]) && length(aws_eip.gateway) == 2
    error_message = "An address belongs to something that goes with its machine."
  }
  assert {
    condition     = alltrue([for template in aws_launch_template.gateway : template.user_data == base64gzip(module.boot.document)])
    error_message = "A machine boots with something else."
  }
  assert {
    condition     = yamldecode(yamldecode(module.boot.document).write_files[index(yamldecode(module.boot.document).write_files[*].path, "/etc/skouter/gateway.yaml")].content).peers.members == [for zone in ["eu-central-1a", "eu-central-1b"] : aws_network_interface.gateway[zone].private_ip]
    error_message = "The gateways know other peers than each other."
  }
  assert {
    condition     = length(aws_vpc_dhcp_options.gateway) == 0
    error_message = "A whole VPC's DNS is changed unasked."
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.clients["10.20.0.0/16"].cidr_ipv4 == "10.20.0.0/16" && aws_vpc_security_group_ingress_rule.clients["fd00:20::/64"].cidr_ipv6 == "fd00:20::/64" && length(aws_vpc_security_group_ingress_rule.clients) == 2
    error_message = "Others than the clients may come in."
  }
  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.health) == 0 && length(aws_vpc_security_group_ingress_rule.health_of_peers) == 0
    error_message = "Health is told to strangers."
  }
  assert {
    condition     = keys(aws_iam_role_policy.gateway) == ["secrets"] && jsondecode(aws_iam_role_policy.gateway["secrets"].policy).Statement == [{ Effect = "Allow", Action = ["secretsmanager:GetSecretValue"], Resource = [for secret in values(var.secrets) : secret] }]
    error_message = "The machines may do more than read this one secret."
  }
}

run "everything" {
  variables {
    ipv6            = true
    dns_for_network = true
    take_over       = true
    health_clients  = ["10.9.0.0/24"]
    secrets         = { peer_key = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:peer-AbCdEf", old_peer_key = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:old-AbCdEf" }
    secrets_kms_key = "arn:aws:kms:eu-central-1:123456789012:key/1"
    replace_at_once = true
  }
  assert {
    condition     = alltrue([for table, route in aws_route.ipv6 : route.destination_ipv6_cidr_block == "::/0" && route.network_interface_id == aws_route.ipv4[table].network_interface_id]) && length(aws_route.ipv6) == 3
    error_message = "IPv6 goes another way than IPv4."
  }
  assert {
    condition     = aws_vpc_dhcp_options.gateway[0].domain_name_servers == tolist([for zone in ["eu-central-1a", "eu-central-1b"] : aws_network_interface.gateway[zone].private_ip]) && aws_vpc_dhcp_options_association.gateway[0].dhcp_options_id == aws_vpc_dhcp_options.gateway[0].id
    error_message = "DHCP names other DNS servers than the gateways."
  }
  assert {
    condition     = jsondecode(aws_iam_role_policy.gateway["routes"].policy).Statement[0].Resource == [for table in ["rtb-0a", "rtb-1a", "rtb-0b"] : "arn:aws:ec2:eu-central-1:123456789012:route-table/${table}"]
    error_message = "The machines may change other route tables."
  }
  assert {
    condition     = toset(jsondecode(aws_iam_role_policy.gateway["secrets"].policy).Statement[0].Resource) == toset([var.secrets["peer_key"], var.secrets["old_peer_key"]])
    error_message = "The machines can't read both keys."
  }
  assert {
    condition     = alltrue([for group in aws_autoscaling_group.gateway : group.instance_refresh[0].preferences[0].min_healthy_percentage == 0])
    error_message = "A new machine would wait for ever for the interface that the old one has."
  }
}

run "one_zone_without_addresses" {
  variables {
    zones            = { eu-central-1a = { subnet_id = "subnet-0a", route_table_ids = { one = "rtb-0a" } } }
    public_addresses = false
    secrets          = {}
  }
  assert {
    condition     = length(aws_eip.gateway) == 0 && length(aws_autoscaling_group.gateway) == 1 && length(aws_iam_role_policy.gateway) == 0 && length(aws_vpc_security_group_ingress_rule.peers) == 0
    error_message = "One gateway without peers has what only several need."
  }
}
