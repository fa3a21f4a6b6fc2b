# Equal machines behind an internal load balancer, which is the next hop of the clients' default route. It leads all
# packets of one client to one machine, and knows by /readyz which machines there are.

locals {
  peers = [for number in range(2, pow(2, 32 - tonumber(split("/", var.subnet_cidr)[1])) - 2) : cidrhost(var.subnet_cidr, number)]
}

# ---- The way to them -----------------------------------------------------------------------------------------------

# The load balancer's own: it stays, whatever becomes of the rest.
resource "google_compute_address" "gateway" {
  project      = var.project
  name         = var.name
  region       = var.region
  description  = "Skouter: next hop and DNS server"
  address_type = "INTERNAL"
  subnetwork   = var.subnet_id
}

resource "google_compute_region_health_check" "ready" {
  project             = var.project
  name                = "${var.name}-ready"
  region              = var.region
  check_interval_sec  = 2
  timeout_sec         = 2
  healthy_threshold   = 1
  unhealthy_threshold = 2

  http_health_check {
    port         = module.boot.health_port
    request_path = "/readyz"
  }
}

resource "google_compute_region_backend_service" "gateway" {
  project                         = var.project
  name                            = var.name
  region                          = var.region
  protocol                        = "UNSPECIFIED" # what L3_DEFAULT needs
  load_balancing_scheme           = "INTERNAL"
  session_affinity                = "CLIENT_IP_NO_DESTINATION"
  connection_draining_timeout_sec = var.drain_seconds
  health_checks                   = [google_compute_region_health_check.ready.id]

  backend {
    group          = google_compute_region_instance_group_manager.gateway.instance_group
    balancing_mode = "CONNECTION"
  }
}

resource "google_compute_forwarding_rule" "gateway" {
  project               = var.project
  name                  = var.name
  region                = var.region
  load_balancing_scheme = "INTERNAL"
  backend_service       = google_compute_region_backend_service.gateway.id
  network               = var.network
  subnetwork            = var.subnet_id
  ip_address            = google_compute_address.gateway.address
  ip_protocol           = "L3_DEFAULT"
  all_ports             = true
  labels                = var.labels
}

resource "google_compute_route" "gateway" {
  for_each = var.client_tags

  project      = var.project
  name         = "${var.name}-${each.key}"
  network      = var.network
  description  = "Skouter: the way out of machines with the tag ${each.key}"
  dest_range   = "0.0.0.0/0"
  tags         = [each.key]
  priority     = var.route_priority
  next_hop_ilb = google_compute_forwarding_rule.gateway.id
}

# ---- The machines --------------------------------------------------------------------------------------------------

module "boot" {
  source = "../boot"

  clients       = var.clients
  unselected    = var.unselected
  policies      = var.policies
  secrets       = { for key, name in var.secrets : key => "${name}/versions/latest" }
  peers         = local.peers
  dns           = var.dns
  own_resolvers = ["169.254.169.254"]
  health_port   = var.health_port
  drain_seconds = var.drain_seconds
  conntrack     = var.conntrack
  agent         = var.agent
}

resource "google_compute_instance_template" "gateway" {
  #checkov:skip=CKV_GCP_36:Forwarding is what it is for.
  project        = var.project
  name_prefix    = "${var.name}-"
  region         = var.region
  description    = "Skouter: gateways"
  machine_type   = var.instance_type
  can_ip_forward = true
  labels         = var.labels

  disk {
    source_image = var.image
    auto_delete  = true
    boot         = true
    disk_size_gb = var.disk_size

    dynamic "disk_encryption_key" {
      for_each = var.disk_kms_key == null ? [] : [var.disk_kms_key]
      content {
        kms_key_self_link = disk_encryption_key.value
      }
    }
  }

  # Without an address outside: Cloud NAT has some.
  network_interface {
    subnetwork = var.subnet_id
    nic_type   = "GVNIC"
  }

  service_account {
    email  = google_service_account.gateway.email
    scopes = ["cloud-platform"] # what it may do, roles say
  }

  shielded_instance_config {
    enable_secure_boot          = true
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }

  metadata = {
    user-data              = module.boot.document
    block-project-ssh-keys = "TRUE"
    enable-oslogin         = "TRUE"
  }

  lifecycle {
    create_before_destroy = true # the group has the old one until it has the new one

    precondition {
      condition     = length(module.boot.document) <= 262144
      error_message = "The policies do not fit into a metadata value (256 KiB): use a kubeconfig, or fewer of them."
    }
  }
}

# Not /readyz: a gateway that drains, or waits for what its peers know, is not to be replaced for it.
resource "google_compute_region_health_check" "alive" {
  project             = var.project
  name                = "${var.name}-alive"
  region              = var.region
  check_interval_sec  = 10
  timeout_sec         = 5
  healthy_threshold   = 1
  unhealthy_threshold = 6

  http_health_check {
    port         = module.boot.health_port
    request_path = "/livez"
  }
}

resource "google_compute_region_instance_group_manager" "gateway" {
  project                   = var.project
  name                      = var.name
  region                    = var.region
  description               = "Skouter: gateways"
  base_instance_name        = var.name
  target_size               = var.machines
  distribution_policy_zones = sort(var.zones)

  version {
    instance_template = google_compute_instance_template.gateway.id
  }

  auto_healing_policies {
    health_check      = google_compute_region_health_check.alive.id
    initial_delay_sec = 600
  }

  # New machines first, and old ones when these are well: settings change without a gap.
  update_policy {
    type                         = "PROACTIVE"
    instance_redistribution_type = "PROACTIVE"
    minimal_action               = "REPLACE"
    replacement_method           = "SUBSTITUTE"
    max_surge_fixed              = length(var.zones)
    max_unavailable_fixed        = 0
  }

  depends_on = [google_secret_manager_secret_iam_member.gateway, google_compute_router_nat.gateway]
}

# ---- Their way out -------------------------------------------------------------------------------------------------

resource "google_compute_address" "outside" {
  count = var.nat_addresses

  project      = var.project
  name         = "${var.name}-outside-${count.index}"
  region       = var.region
  address_type = "EXTERNAL"
}

resource "google_compute_router" "gateway" {
  count = var.nat_addresses > 0 ? 1 : 0

  project = var.project
  name    = var.name
  region  = var.region
  network = var.network
}

resource "google_compute_router_nat" "gateway" {
  count = var.nat_addresses > 0 ? 1 : 0

  project                             = var.project
  name                                = var.name
  region                              = var.region
  router                              = google_compute_router.gateway[0].name
  nat_ip_allocate_option              = "MANUAL_ONLY"
  nat_ips                             = google_compute_address.outside[*].self_link
  source_subnetwork_ip_ranges_to_nat  = "LIST_OF_SUBNETWORKS"
  enable_dynamic_port_allocation      = true
  enable_endpoint_independent_mapping = false
  min_ports_per_vm                    = 1024
  max_ports_per_vm                    = 16384

  subnetwork {
    name                    = var.subnet_id
    source_ip_ranges_to_nat = ["ALL_IP_RANGES"]
  }

  log_config {
    enable = true
    filter = "ERRORS_ONLY"
  }
}
