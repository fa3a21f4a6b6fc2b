# For each zone a network interface that outlives its machine: addresses, routes and DNS servers are its, so that none
# of them changes when the machine does.

locals {
  routes = merge([
    for zone, its in var.zones : { for name, table in its.route_table_ids : "${zone}/${name}" => { zone = zone, table = table } }
  ]...)

  tags = merge({ Name = var.name }, var.tags)
}

resource "aws_network_interface" "gateway" {
  for_each = var.zones

  description        = "${var.name}: gateway of ${each.key}"
  subnet_id          = each.value.subnet_id
  private_ips        = each.value.private_ip == null ? null : [each.value.private_ip]
  ipv6_address_count = var.ipv6 ? 1 : null
  security_groups    = [aws_security_group.gateway.id]
  source_dest_check  = false # it forwards
  tags               = merge(local.tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_eip" "gateway" {
  #checkov:skip=CKV2_AWS_19:It is attached to an interface, which outlives its machine.
  for_each = var.public_addresses ? var.zones : {}

  domain            = "vpc"
  network_interface = aws_network_interface.gateway[each.key].id
  tags              = merge(local.tags, { Name = "${var.name}-${each.key}" })
}

# ---- The way to them -----------------------------------------------------------------------------------------------

resource "aws_route" "ipv4" {
  for_each = local.routes

  route_table_id         = each.value.table
  destination_cidr_block = "0.0.0.0/0"
  network_interface_id   = aws_network_interface.gateway[each.value.zone].id
}

resource "aws_route" "ipv6" {
  for_each = var.ipv6 ? local.routes : {}

  route_table_id              = each.value.table
  destination_ipv6_cidr_block = "::/0"
  network_interface_id        = aws_network_interface.gateway[each.value.zone].id
}

resource "aws_vpc_dhcp_options" "gateway" {
  count = var.dns_for_network ? 1 : 0

  domain_name         = var.domain_name
  domain_name_servers = [for zone in sort(keys(var.zones)) : aws_network_interface.gateway[zone].private_ip]
  tags                = local.tags
}

resource "aws_vpc_dhcp_options_association" "gateway" {
  count = var.dns_for_network ? 1 : 0

  vpc_id          = var.vpc_id
  dhcp_options_id = aws_vpc_dhcp_options.gateway[0].id

  depends_on = [aws_autoscaling_group.gateway] # not before there is somebody to ask
}

# ---- The machines --------------------------------------------------------------------------------------------------

module "boot" {
  source = "../boot"

  clients       = var.clients
  unselected    = var.unselected
  policies      = var.policies
  secrets       = var.secrets
  peers         = [for zone in sort(keys(var.zones)) : aws_network_interface.gateway[zone].private_ip]
  dns           = var.dns
  own_resolvers = ["169.254.169.253"]
  health_port   = var.health_port
  drain_seconds = var.drain_seconds
  conntrack     = var.conntrack
  agent         = var.agent
  routes_to_take_over = !var.take_over ? null : {
    port = var.health_port
    gateways = [
      for zone, its in var.zones : {
        interface    = aws_network_interface.gateway[zone].id
        address      = aws_network_interface.gateway[zone].private_ip
        routeTables  = values(its.route_table_ids)
        destinations = concat(["0.0.0.0/0"], var.ipv6 ? ["::/0"] : [])
      }
    ]
  }
}

resource "aws_launch_template" "gateway" {
  for_each = var.zones

  name                   = "${var.name}-${each.key}"
  image_id               = var.image
  instance_type          = var.instance_type
  user_data              = base64gzip(module.boot.document)
  update_default_version = true
  tags                   = local.tags

  iam_instance_profile {
    arn = aws_iam_instance_profile.gateway.arn
  }

  # The machine comes up with the interface as its first one; while another machine has it, a start fails and is tried
  # again. Where it is named here, AWS takes security groups and addresses from the interface.
  network_interfaces {
    device_index          = 0
    network_interface_id  = aws_network_interface.gateway[each.key].id
    delete_on_termination = false
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_type           = "gp3"
      volume_size           = var.disk_size
      encrypted             = true
      kms_key_id            = var.disk_kms_key
      delete_on_termination = true
    }
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume"]
    content {
      resource_type = tag_specifications.value
      tags          = merge(local.tags, { Name = "${var.name}-${each.key}" })
    }
  }

  lifecycle {
    precondition {
      condition     = length(base64gzip(module.boot.document)) * 3 / 4 <= 16384
      error_message = "The policies do not fit into user data (16 KiB, compressed): use a kubeconfig, or fewer of them."
    }
  }
}

resource "aws_autoscaling_group" "gateway" {
  for_each = var.zones

  name               = "${var.name}-${each.key}"
  availability_zones = [each.key] # not subnets: the interface has one
  min_size           = 1
  max_size           = 1
  desired_capacity   = 1
  health_check_type  = "EC2"

  launch_template {
    name    = aws_launch_template.gateway[each.key].name
    version = aws_launch_template.gateway[each.key].latest_version
  }

  # The old machine has to be gone before the new one can have the interface.
  dynamic "instance_refresh" {
    for_each = var.replace_at_once ? [true] : []
    content {
      strategy = "Rolling"
      preferences {
        min_healthy_percentage = 0
        max_healthy_percentage = 100
      }
    }
  }

  dynamic "tag" {
    for_each = merge(local.tags, { Name = "${var.name}-${each.key}" })
    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  depends_on = [aws_eip.gateway, aws_iam_role_policy.gateway] # it needs both from its first second on
}
