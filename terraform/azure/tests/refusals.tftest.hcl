# What is refused before anything is asked of Azure.

mock_provider "azurerm" {}

variables {
  resource_group_name = "network"
  location            = "germanywestcentral"
  subnet_id           = "/subscriptions/0/resourceGroups/network/providers/Microsoft.Network/virtualNetworks/main/subnets/gateways"
  subnet_cidr         = "10.0.0.0/28"
  clients             = ["10.20.0.0/16"]
  policies            = "../../deploy/examples"
  admin_ssh_key       = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample"
}

run "a_fourth_zone" {
  command = plan
  variables { zones = ["1", "4"] }
  expect_failures = [var.zones]
}

run "a_subnet_by_its_name" {
  command = plan
  variables { subnet_id = "gateways" }
  expect_failures = [var.subnet_id]
}

run "a_subnet_with_too_many_addresses" {
  command = plan
  variables { subnet_cidr = "10.0.0.0/16" }
  expect_failures = [var.subnet_cidr]
}

run "an_address_of_another_subnet" {
  command = plan
  variables { private_ip = "10.0.1.4" }
  expect_failures = [azurerm_lb.gateway]
}

run "a_route_table_by_its_name" {
  command = plan
  variables { route_table_ids = { clients = "clients" } }
  expect_failures = [var.route_table_ids]
}

run "clients_with_ipv6" {
  command = plan
  variables { clients = ["fd00::/64"] }
  expect_failures = [var.clients]
}

run "a_key_instead_of_its_secret" {
  command = plan
  variables { secrets = { peer_key = "c2VjcmV0" } }
  expect_failures = [var.secrets]
}

run "an_image_by_its_name" {
  command = plan
  variables { image = "debian-12" }
  expect_failures = [var.image]
}

run "a_password_for_a_key" {
  command = plan
  variables { admin_ssh_key = "hunter2" }
  expect_failures = [var.admin_ssh_key]
}
