# What is refused before anything is asked of Google.

mock_provider "google" {}

variables {
  project     = "example"
  region      = "europe-west3"
  zones       = ["europe-west3-a"]
  network     = "projects/example/global/networks/main"
  subnet_id   = "projects/example/regions/europe-west3/subnetworks/gateways"
  subnet_cidr = "10.0.0.0/28"
  client_tags = ["egress"]
  clients     = ["10.20.0.0/16"]
  policies    = "../../deploy/examples"
}

run "a_zone_for_a_region" {
  command = plan
  variables { region = "europe-west3-a" }
  expect_failures = [var.region]
}

run "a_zone_of_another_region" {
  command = plan
  variables { zones = ["europe-west1-b"] }
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

run "a_route_of_all_machines" {
  command = plan
  variables { client_tags = [] }
  expect_failures = [var.client_tags]
}

run "a_route_that_loses" {
  command = plan
  variables { route_priority = 1000 }
  expect_failures = [var.route_priority]
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

run "no_machines" {
  command = plan
  variables { machines = 0 }
  expect_failures = [var.machines]
}

run "half_an_address" {
  command = plan
  variables { nat_addresses = 0.5 }
  expect_failures = [var.nat_addresses]
}
