# What no gateway could start with.

variables {
  clients  = ["10.20.0.0/16"]
  policies = "../../deploy/examples"
}

run "no_clients" {
  command = plan
  variables { clients = [] }
  expect_failures = [var.clients]
}

run "an_address_that_is_no_network" {
  command = plan
  variables { clients = ["10.20.0.1"] }
  expect_failures = [var.clients]
}

run "everybody" {
  command = plan
  variables { clients = ["0.0.0.0/0"] }
  expect_failures = [var.clients]
}

run "neither_denied_nor_allowed" {
  command = plan
  variables { unselected = "refuse" }
  expect_failures = [var.unselected]
}

run "policies_of_two_sources" {
  command = plan
  variables { secrets = { kubeconfig = "arn:x" } }
  expect_failures = [var.policies]
}

run "no_policies" {
  command = plan
  variables { policies = null }
  expect_failures = [var.policies]
}

run "a_folder_without_policies" {
  command = plan
  variables { policies = "tests" }
  expect_failures = [var.policies]
}

run "an_old_key_alone" {
  command = plan
  variables { secrets = { old_peer_key = "arn:x" } }
  expect_failures = [var.secrets]
}

run "too_many_peers" {
  command = plan
  variables { peers = [for number in range(65) : "10.0.0.${number}"] }
  expect_failures = [var.peers]
}

run "a_translation_that_is_none" {
  command = plan
  variables { snat = "full" }
  expect_failures = [var.snat]
}

run "health_at_the_port_of_dns" {
  command = plan
  variables { health_port = 53 }
  expect_failures = [var.health_port]
}

run "a_drain_that_systemd_cuts_off" {
  command = plan
  variables { drain_seconds = 600 }
  expect_failures = [var.drain_seconds]
}

run "hardly_any_connections" {
  command = plan
  variables { conntrack = 10 }
  expect_failures = [var.conntrack]
}

run "an_archive_without_encryption" {
  command = plan
  variables { agent = { url = "http://example.com/skouter.tar.gz", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" } }
  expect_failures = [var.agent]
}

run "a_checksum_that_is_none" {
  command = plan
  variables { agent = { url = "https://example.com/skouter.tar.gz", sha256 = "latest" } }
  expect_failures = [var.agent]
}
