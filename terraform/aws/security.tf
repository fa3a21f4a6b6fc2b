# Who may speak to the gateways, and what the gateways may do.

resource "aws_security_group" "gateway" {
  name        = var.name
  description = "Skouter: gateways"
  vpc_id      = var.vpc_id
  tags        = local.tags
}

# What they forward comes here too: every protocol and port, as policies have it.
resource "aws_vpc_security_group_ingress_rule" "clients" {
  for_each = var.clients

  security_group_id = aws_security_group.gateway.id
  description       = "Clients"
  ip_protocol       = "-1"
  cidr_ipv4         = strcontains(each.value, ":") ? null : each.value
  cidr_ipv6         = strcontains(each.value, ":") ? each.value : null
  tags              = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "peers" {
  for_each = contains(keys(var.secrets), "peer_key") ? { udp = 7946 } : {}

  security_group_id            = aws_security_group.gateway.id
  description                  = "Gateways among themselves"
  ip_protocol                  = each.key
  from_port                    = each.value
  to_port                      = each.value
  referenced_security_group_id = aws_security_group.gateway.id
  tags                         = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "health_of_peers" {
  count = var.take_over ? 1 : 0

  security_group_id            = aws_security_group.gateway.id
  description                  = "Gateways ask whether others are ready"
  ip_protocol                  = "tcp"
  from_port                    = var.health_port
  to_port                      = var.health_port
  referenced_security_group_id = aws_security_group.gateway.id
  tags                         = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "health" {
  for_each = var.health_clients

  security_group_id = aws_security_group.gateway.id
  description       = "Health and metrics"
  ip_protocol       = "tcp"
  from_port         = var.health_port
  to_port           = var.health_port
  cidr_ipv4         = strcontains(each.value, ":") ? null : each.value
  cidr_ipv6         = strcontains(each.value, ":") ? each.value : null
  tags              = local.tags
}

resource "aws_vpc_security_group_egress_rule" "ipv4" {
  security_group_id = aws_security_group.gateway.id
  description       = "Policies decide what leaves"
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
  tags              = local.tags
}

resource "aws_vpc_security_group_egress_rule" "ipv6" {
  security_group_id = aws_security_group.gateway.id
  description       = "Policies decide what leaves"
  ip_protocol       = "-1"
  cidr_ipv6         = "::/0"
  tags              = local.tags
}

# ---- Rights --------------------------------------------------------------------------------------------------------

resource "aws_iam_role" "gateway" {
  name_prefix = "${var.name}-"
  description = "Skouter: gateways"
  tags        = local.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_instance_profile" "gateway" {
  name_prefix = "${var.name}-"
  role        = aws_iam_role.gateway.name
  tags        = local.tags
}

# Session Manager instead of SSH.
resource "aws_iam_role_policy_attachment" "session_manager" {
  role       = aws_iam_role.gateway.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

data "aws_partition" "current" {}

data "aws_region" "current" {}

data "aws_caller_identity" "current" {}

resource "aws_iam_role_policy" "gateway" {
  for_each = { for name, statements in local.rights : name => statements if length(statements) > 0 }

  name = each.key
  role = aws_iam_role.gateway.id

  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = each.value
  })
}

locals {
  tables = "arn:${data.aws_partition.current.partition}:ec2:${data.aws_region.current.region}:${data.aws_caller_identity.current.account_id}:route-table"

  rights = {
    secrets = concat(
      length(var.secrets) == 0 ? [] : [{
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue"]
        Resource = values(var.secrets)
      }],
      var.secrets_kms_key == null ? [] : [{
        Effect   = "Allow"
        Action   = ["kms:Decrypt"]
        Resource = [var.secrets_kms_key]
      }],
    )
    routes = !var.take_over ? [] : [{
      Effect   = "Allow"
      Action   = ["ec2:ReplaceRoute"]
      Resource = [for route in values(local.routes) : "${local.tables}/${route.table}"]
    }]
  }
}
