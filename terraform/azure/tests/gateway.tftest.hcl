# What belongs together: route -> load balancer -> pool -> scale set, and the way out of their subnet.

mock_provider "azurerm" {}

variables {
  resource_group_name = "network"
  location            = "germanywestcentral"
  subnet_id           = "/subscriptions/0/resourceGroups/network/providers/Microsoft.Network/virtualNetworks/main/subnets/gateways"
  subnet_cidr         = "10.0.0.0/28"
  route_table_ids     = { clients = "/subscriptions/0/resourceGroups/other/providers/Microsoft.Network/routeTables/clients" }
  clients             = ["10.20.0.0/16"]
  policies            = "../../deploy/examples"
  secrets             = { peer_key = "/subscriptions/0/resourceGroups/network/providers/Microsoft.KeyVault/vaults/example/secrets/peer-key" }
  admin_ssh_key       = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample"
}

run "as_it_comes" {
  assert {
    condition     = azurerm_route.gateway["clients"].next_hop_in_ip_address == azurerm_lb.gateway.frontend_ip_configuration[0].private_ip_address && azurerm_route.gateway["clients"].next_hop_type == "VirtualAppliance"
    error_message = "The clients' route leads elsewhere."
  }
  assert {
    condition     = azurerm_route.gateway["clients"].route_table_name == "clients" && azurerm_route.gateway["clients"].resource_group_name == "other"
    error_message = "The route stands in another table."
  }
  assert {
    condition     = azurerm_lb.gateway.frontend_ip_configuration[0].private_ip_address == "10.0.0.14"
    error_message = "The load balancer's address is not the subnet's last one."
  }
  assert {
    condition     = azurerm_lb_rule.gateway.protocol == "All" && azurerm_lb_rule.gateway.frontend_port == 0 && azurerm_lb_rule.gateway.backend_port == 0 && azurerm_lb_rule.gateway.load_distribution == "SourceIP"
    error_message = "Not every packet reaches the gateways, or a client's go to several."
  }
  assert {
    condition     = azurerm_lb_rule.gateway.backend_address_pool_ids == tolist([azurerm_lb_backend_address_pool.gateway.id]) && one(one(azurerm_linux_virtual_machine_scale_set.gateway.network_interface).ip_configuration).load_balancer_backend_address_pool_ids == toset([azurerm_lb_backend_address_pool.gateway.id])
    error_message = "The load balancer leads to other machines."
  }
  assert {
    condition     = azurerm_lb_rule.gateway.probe_id == azurerm_lb_probe.ready.id && azurerm_lb_probe.ready.request_path == "/readyz" && azurerm_linux_virtual_machine_scale_set.gateway.health_probe_id == azurerm_lb_probe.ready.id
    error_message = "Machines that are not ready get packets."
  }
  assert {
    condition     = one(azurerm_linux_virtual_machine_scale_set.gateway.network_interface).enable_ip_forwarding && azurerm_linux_virtual_machine_scale_set.gateway.custom_data == base64gzip(module.boot.document)
    error_message = "A machine does not forward, or boots with something else."
  }
  assert {
    condition     = one(azurerm_linux_virtual_machine_scale_set.gateway.source_image_reference).offer == "debian-12" && azurerm_linux_virtual_machine_scale_set.gateway.source_image_id == null
    error_message = "The machines have another image."
  }
  assert {
    condition     = azurerm_subnet_nat_gateway_association.gateway[0].nat_gateway_id == azurerm_nat_gateway.gateway[0].id && azurerm_nat_gateway_public_ip_association.gateway[0].public_ip_address_id == azurerm_public_ip.outside[0].id && azurerm_subnet_nat_gateway_association.gateway[0].subnet_id == var.subnet_id
    error_message = "The gateways' subnet has no way out."
  }
  assert {
    condition     = azurerm_role_assignment.gateway["peer_key"].scope == var.secrets["peer_key"] && azurerm_role_assignment.gateway["peer_key"].principal_id == azurerm_user_assigned_identity.gateway.principal_id && length(azurerm_role_assignment.gateway) == 1
    error_message = "The machines may read something else than this one secret."
  }
  assert {
    condition     = strcontains(module.boot.document, "https://example.vault.azure.net/secrets/peer-key")
    error_message = "The machines ask for another secret."
  }
  assert {
    condition     = keys(azurerm_network_security_rule.gateway) == ["all_others", "clients", "peers", "probes"] && azurerm_network_security_rule.gateway["all_others"].access == "Deny" && azurerm_network_security_rule.gateway["clients"].source_address_prefixes == toset(["10.20.0.0/16"])
    error_message = "Others than the clients may come in."
  }
  assert {
    condition     = alltrue([for name, rule in azurerm_network_security_rule.gateway : name == "all_others" || rule.priority < azurerm_network_security_rule.gateway["all_others"].priority])
    error_message = "A rule stands behind the one that denies everything."
  }
  assert {
    condition     = length(azurerm_virtual_network_dns_servers.gateway) == 0
    error_message = "A whole network's DNS is changed unasked."
  }
}

run "everything" {
  variables {
    dns_for_network = true
    private_ip      = "10.0.0.9"
    nat_addresses   = 2
    health_clients  = ["10.9.0.0/24"]
    zones           = []
    image           = "/subscriptions/0/resourceGroups/network/providers/Microsoft.Compute/images/skouter"
  }
  assert {
    condition     = azurerm_virtual_network_dns_servers.gateway[0].dns_servers == tolist(["10.0.0.9"]) && azurerm_virtual_network_dns_servers.gateway[0].virtual_network_id == "/subscriptions/0/resourceGroups/network/providers/Microsoft.Network/virtualNetworks/main"
    error_message = "Another network has other DNS servers."
  }
  assert {
    condition     = !strcontains(module.boot.document, "\"10.0.0.9\"")
    error_message = "The load balancer is taken for a gateway."
  }
  assert {
    condition     = azurerm_linux_virtual_machine_scale_set.gateway.source_image_id == var.image && length(azurerm_linux_virtual_machine_scale_set.gateway.source_image_reference) == 0
    error_message = "The machines have another image."
  }
  assert {
    condition     = length(azurerm_nat_gateway_public_ip_association.gateway) == 2 && contains(keys(azurerm_network_security_rule.gateway), "health")
    error_message = "An address is not used, or who may ask for metrics can't."
  }
}

run "without_peers_and_addresses" {
  variables {
    nat_addresses   = 0
    secrets         = {}
    route_table_ids = {}
  }
  assert {
    condition     = length(azurerm_nat_gateway.gateway) + length(azurerm_subnet_nat_gateway_association.gateway) + length(azurerm_role_assignment.gateway) + length(azurerm_route.gateway) == 0 && !contains(keys(azurerm_network_security_rule.gateway), "peers")
    error_message = "There is something that nobody asked for."
  }
}
