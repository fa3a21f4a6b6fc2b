# What is refused before anything is asked of AWS.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  vpc_id   = "vpc-0123456789abcdef0"
  zones    = { eu-central-1a = { subnet_id = "subnet-0a", route_table_ids = { one = "rtb-0a" } } }
  clients  = ["10.20.0.0/16"]
  policies = "../../deploy/examples"
}

run "a_name_that_does_not_fit" {
  command = plan
  variables { name = "Skouter_1" }
  expect_failures = [var.name]
}

run "a_vpc_by_its_name" {
  command = plan
  variables { vpc_id = "main" }
  expect_failures = [var.vpc_id]
}

run "no_zone" {
  command = plan
  variables { zones = {} }
  expect_failures = [var.zones]
}

run "a_region_for_a_zone" {
  command = plan
  variables { zones = { eu-central-1 = { subnet_id = "subnet-0a", route_table_ids = {} } } }
  expect_failures = [var.zones]
}

run "a_subnet_by_its_name" {
  command = plan
  variables { zones = { eu-central-1a = { subnet_id = "public", route_table_ids = {} } } }
  expect_failures = [var.zones]
}

run "a_route_table_by_its_name" {
  command = plan
  variables {
    zones = { eu-central-1a = { subnet_id = "subnet-0a", route_table_ids = { private = "private" } } }
  }
  expect_failures = [var.zones]
}

run "five_dns_servers" {
  command = plan
  variables {
    dns_for_network = true
    zones           = { for letter in ["a", "b", "c", "d", "e"] : "us-east-1${letter}" => { subnet_id = "subnet-0${letter}", route_table_ids = {} } }
  }
  expect_failures = [var.dns_for_network]
}

run "a_key_instead_of_its_arn" {
  command = plan
  variables { secrets = { peer_key = "c2VjcmV0" } }
  expect_failures = [var.secrets]
}

run "an_image_by_its_name" {
  command = plan
  variables { image = "debian-12" }
  expect_failures = [var.image]
}
