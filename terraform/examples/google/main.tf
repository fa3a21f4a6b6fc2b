# Machines with the network tag "egress" reach out through three gateways.

provider "google" {
  project = var.project
  region  = "europe-west3"
}

module "skouter" {
  source = "../../google"

  project     = var.project
  region      = "europe-west3"
  zones       = ["europe-west3-a", "europe-west3-b", "europe-west3-c"]
  network     = google_compute_network.main.id
  subnet_id   = google_compute_subnetwork.gateways.id
  subnet_cidr = "10.0.0.0/28"
  client_tags = ["egress"]
  clients     = ["10.0.64.0/18"]
  policies    = "${path.module}/../policies"
  secrets     = { peer_key = google_secret_manager_secret.peer_key.id }
  agent       = var.agent
}

# Its value never comes here: skouter gateway --make-key | gcloud secrets versions add skouter-peer-key --data-file=-
resource "google_secret_manager_secret" "peer_key" {
  secret_id = "skouter-peer-key"

  replication {
    auto {}
  }
}

variable "project" {
  description = "The project of all this."
  type        = string
}

variable "agent" {
  description = "An archive of Skouter's sources, and its SHA-256."
  type        = object({ url = string, sha256 = string })
}

# ---- The network ---------------------------------------------------------------------------------------------------

resource "google_compute_network" "main" {
  name                    = "main"
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "gateways" {
  name                     = "gateways"
  network                  = google_compute_network.main.id
  region                   = "europe-west3"
  ip_cidr_range            = "10.0.0.0/28"
  private_ip_google_access = true
}

resource "google_compute_subnetwork" "machines" {
  name          = "machines"
  network       = google_compute_network.main.id
  region        = "europe-west3"
  ip_cidr_range = "10.0.64.0/18"
}

# What the machines' own configuration names as their DNS server.
output "dns_servers" {
  value = module.skouter.dns_servers
}
