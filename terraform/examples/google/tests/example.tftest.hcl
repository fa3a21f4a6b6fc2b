mock_provider "google" {
  mock_resource "google_compute_subnetwork" {
    defaults = { id = "projects/example/regions/europe-west3/subnetworks/gateways" }
  }
  mock_resource "google_secret_manager_secret" {
    defaults = { id = "projects/example/secrets/skouter-peer-key" }
  }
}

variables {
  project = "example"
  agent   = { url = "https://example.com/skouter.tar.gz", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
}

run "it_applies" {
  assert {
    condition     = length(output.dns_servers) == 1
    error_message = "There is no DNS server."
  }
}
