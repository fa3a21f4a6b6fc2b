# Who may speak to the gateways, and what the gateways may do.

resource "google_service_account" "gateway" {
  project      = var.project
  account_id   = "${var.name}-gateways"
  display_name = "Skouter: gateways"
}

resource "google_secret_manager_secret_iam_member" "gateway" {
  for_each = var.secrets

  secret_id = each.value
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${google_service_account.gateway.email}"
}

# What they forward comes here too: every protocol and port, as policies have it.
resource "google_compute_firewall" "clients" {
  project                 = var.project
  name                    = "${var.name}-clients"
  network                 = var.network
  description             = "Skouter: clients to gateways"
  source_ranges           = var.clients
  target_service_accounts = [google_service_account.gateway.email]

  allow {
    protocol = "all"
  }
}

resource "google_compute_firewall" "health" {
  project                 = var.project
  name                    = "${var.name}-health"
  network                 = var.network
  description             = "Skouter: health checks of Google, and who else may ask"
  source_ranges           = setunion(["35.191.0.0/16", "130.211.0.0/22"], var.health_clients)
  target_service_accounts = [google_service_account.gateway.email]

  allow {
    protocol = "tcp"
    ports    = [tostring(var.health_port)]
  }
}

resource "google_compute_firewall" "peers" {
  count = contains(keys(var.secrets), "peer_key") ? 1 : 0

  project                 = var.project
  name                    = "${var.name}-peers"
  network                 = var.network
  description             = "Skouter: gateways among themselves"
  source_service_accounts = [google_service_account.gateway.email]
  target_service_accounts = [google_service_account.gateway.email]

  allow {
    protocol = "udp"
    ports    = ["7946"]
  }
}
