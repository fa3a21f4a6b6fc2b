# Two zones: in each a public subnet with a gateway, and a private one whose machines reach out through it.

provider "aws" {
  region = "eu-central-1"
}

locals {
  zones = {
    eu-central-1a = { public = "10.0.0.0/28", private = "10.0.64.0/20" }
    eu-central-1b = { public = "10.0.0.16/28", private = "10.0.80.0/20" }
  }
}

module "skouter" {
  source = "../../aws"

  vpc_id = aws_vpc.main.id
  zones = {
    for zone in keys(local.zones) : zone => {
      subnet_id       = aws_subnet.public[zone].id
      route_table_ids = { private = aws_route_table.private[zone].id }
    }
  }
  clients         = [for zone in local.zones : zone.private]
  policies        = "${path.module}/../policies"
  secrets         = { peer_key = aws_secretsmanager_secret.peer_key.arn }
  agent           = var.agent
  dns_for_network = true # of all of this VPC
  take_over       = true
}

# Its value never comes here: skouter gateway --make-key >peer.key
# aws secretsmanager put-secret-value --secret-id skouter-peer-key --secret-string file://peer.key
resource "aws_secretsmanager_secret" "peer_key" {
  name = "skouter-peer-key"
}

variable "agent" {
  description = "An archive of Skouter's sources, and its SHA-256."
  type        = object({ url = string, sha256 = string })
}

# ---- The network ---------------------------------------------------------------------------------------------------

resource "aws_vpc" "main" {
  cidr_block           = "10.0.0.0/16"
  enable_dns_hostnames = true
}

resource "aws_internet_gateway" "main" {
  vpc_id = aws_vpc.main.id
}

resource "aws_subnet" "public" {
  for_each = local.zones

  vpc_id            = aws_vpc.main.id
  availability_zone = each.key
  cidr_block        = each.value.public
}

resource "aws_subnet" "private" {
  for_each = local.zones

  vpc_id            = aws_vpc.main.id
  availability_zone = each.key
  cidr_block        = each.value.private
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.main.id
}

resource "aws_route" "public" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.main.id
}

resource "aws_route_table_association" "public" {
  for_each = local.zones

  subnet_id      = aws_subnet.public[each.key].id
  route_table_id = aws_route_table.public.id
}

# Its default route is the module's.
resource "aws_route_table" "private" {
  for_each = local.zones

  vpc_id = aws_vpc.main.id
}

resource "aws_route_table_association" "private" {
  for_each = local.zones

  subnet_id      = aws_subnet.private[each.key].id
  route_table_id = aws_route_table.private[each.key].id
}

output "public_addresses" {
  value = module.skouter.public_addresses
}
