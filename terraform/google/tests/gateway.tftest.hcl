# What belongs together: route -> forwarding rule -> backend service -> group -> template.

mock_provider "google" {
  mock_resource "google_compute_address" {
    defaults = { address = "10.0.0.5" }
  }
}

variables {
  project     = "example"
  region      = "europe-west3"
  zones       = ["europe-west3-a", "europe-west3-b", "europe-west3-c"]
  network     = "projects/example/global/networks/main"
  subnet_id   = "projects/example/regions/europe-west3/subnetworks/gateways"
  subnet_cidr = "10.0.0.0/28"
  client_tags = ["egress"]
  clients     = ["10.20.0.0/16"]
  policies    = "../../deploy/examples"
  secrets     = { peer_key = "projects/example/secrets/peer-key" }
}

run "as_it_comes" {
  assert {
    condition     = google_compute_route.gateway["egress"].next_hop_ilb == google_compute_forwarding_rule.gateway.id && google_compute_route.gateway["egress"].tags == toset(["egress"]) && google_compute_route.gateway["egress"].priority < 1000
    error_message = "The clients' route leads elsewhere, or the gateways' own leads to themselves."
  }
  assert {
    condition     = google_compute_forwarding_rule.gateway.backend_service == google_compute_region_backend_service.gateway.id && google_compute_forwarding_rule.gateway.ip_protocol == "L3_DEFAULT" && google_compute_forwarding_rule.gateway.all_ports
    error_message = "Not every packet reaches the gateways."
  }
  assert {
    condition     = google_compute_forwarding_rule.gateway.ip_address == google_compute_address.gateway.address && output.dns_servers == [google_compute_address.gateway.address]
    error_message = "The address is not the reserved one."
  }
  assert {
    condition     = google_compute_region_backend_service.gateway.session_affinity == "CLIENT_IP_NO_DESTINATION" && google_compute_region_backend_service.gateway.protocol == "UNSPECIFIED"
    error_message = "A client's packets go to several gateways."
  }
  assert {
    condition     = one(google_compute_region_backend_service.gateway.backend).group == google_compute_region_instance_group_manager.gateway.instance_group
    error_message = "The load balancer leads to other machines."
  }
  assert {
    condition     = google_compute_region_backend_service.gateway.health_checks == toset([google_compute_region_health_check.ready.id]) && google_compute_region_health_check.ready.http_health_check[0].request_path == "/readyz"
    error_message = "Machines that are not ready get packets."
  }
  assert {
    condition     = google_compute_region_instance_group_manager.gateway.auto_healing_policies[0].health_check == google_compute_region_health_check.alive.id
    error_message = "A machine that drains is replaced."
  }
  assert {
    condition     = google_compute_region_instance_group_manager.gateway.version[0].instance_template == google_compute_instance_template.gateway.id && google_compute_region_instance_group_manager.gateway.target_size == 3
    error_message = "The group starts other machines."
  }
  assert {
    condition     = google_compute_instance_template.gateway.can_ip_forward && google_compute_instance_template.gateway.metadata["user-data"] == module.boot.document
    error_message = "A machine does not forward, or boots with something else."
  }
  assert {
    condition     = length(google_compute_instance_template.gateway.network_interface[0].access_config) == 0
    error_message = "A machine has an address outside."
  }
  assert {
    condition     = yamldecode(yamldecode(module.boot.document).write_files[index(yamldecode(module.boot.document).write_files[*].path, "/etc/skouter/gateway.yaml")].content).peers.members == [for number in range(2, 14) : "10.0.0.${number}"]
    error_message = "The gateways do not try every address of their subnet."
  }
  assert {
    condition     = google_secret_manager_secret_iam_member.gateway["peer_key"].secret_id == var.secrets["peer_key"] && google_secret_manager_secret_iam_member.gateway["peer_key"].member == "serviceAccount:${google_service_account.gateway.email}" && length(google_secret_manager_secret_iam_member.gateway) == 1
    error_message = "The machines may read something else than this one secret."
  }
  assert {
    condition     = google_compute_firewall.clients.source_ranges == toset(["10.20.0.0/16"]) && google_compute_firewall.health.source_ranges == toset(["35.191.0.0/16", "130.211.0.0/22"])
    error_message = "Others than the clients may come in."
  }
  assert {
    condition     = alltrue([for rule in [google_compute_firewall.clients, google_compute_firewall.health, google_compute_firewall.peers[0]] : rule.target_service_accounts == toset([google_service_account.gateway.email])])
    error_message = "A rule lets somebody in elsewhere."
  }
  assert {
    condition     = google_compute_router_nat.gateway[0].nat_ips == toset(google_compute_address.outside[*].self_link) && one(google_compute_router_nat.gateway[0].subnetwork).name == var.subnet_id
    error_message = "Clients have other addresses outside than the reserved ones."
  }
}

run "without_peers_and_addresses" {
  variables {
    nat_addresses  = 0
    secrets        = {}
    zones          = ["europe-west3-a"]
    health_clients = ["10.9.0.0/24"]
    disk_kms_key   = "projects/example/locations/europe-west3/keyRings/x/cryptoKeys/y"
  }
  assert {
    condition     = length(google_compute_router_nat.gateway) + length(google_compute_router.gateway) + length(google_compute_address.outside) + length(google_compute_firewall.peers) == 0
    error_message = "There is something that nobody asked for."
  }
  assert {
    condition     = contains(google_compute_firewall.health.source_ranges, "10.9.0.0/24")
    error_message = "Who may ask for metrics can't."
  }
  assert {
    condition     = google_compute_region_instance_group_manager.gateway.update_policy[0].max_surge_fixed == 1
    error_message = "More machines start at a time than there are zones."
  }
}
