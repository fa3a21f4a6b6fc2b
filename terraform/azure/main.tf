# Equal machines behind an internal load balancer, whose address is the next hop of the clients' default route. It
# leads all packets of one client to one server to one machine, and knows by /readyz which machines there are.

locals {
  address = coalesce(var.private_ip, cidrhost(var.subnet_cidr, -2))
  peers   = [for number in range(4, pow(2, 32 - tonumber(split("/", var.subnet_cidr)[1])) - 1) : cidrhost(var.subnet_cidr, number)]
  network = join("/", slice(split("/", var.subnet_id), 0, 9))
  image   = startswith(var.image, "/") ? null : split(":", var.image)

  # /subscriptions/../resourceGroups/../providers/Microsoft.KeyVault/vaults/../secrets/..
  secrets = {
    for name, id in var.secrets : name => "https://${split("/", id)[8]}.vault.azure.net/secrets/${split("/", id)[10]}"
  }
}

# ---- The way to them -----------------------------------------------------------------------------------------------

resource "azurerm_lb" "gateway" {
  name                = var.name
  resource_group_name = var.resource_group_name
  location            = var.location
  sku                 = "Standard"
  tags                = var.tags

  frontend_ip_configuration {
    name                          = "gateway"
    subnet_id                     = var.subnet_id
    private_ip_address_allocation = "Static"
    private_ip_address            = local.address
    zones                         = length(var.zones) == 0 ? null : var.zones
  }

  lifecycle {
    precondition {
      condition     = can(regex("^[0-9.]+$", local.address)) && cidrhost("${local.address}/${split("/", var.subnet_cidr)[1]}", 0) == cidrhost(var.subnet_cidr, 0)
      error_message = "private_ip: write an address of subnet_cidr."
    }
  }
}

resource "azurerm_lb_backend_address_pool" "gateway" {
  name            = "gateways"
  loadbalancer_id = azurerm_lb.gateway.id
}

resource "azurerm_lb_probe" "ready" {
  name                = "ready"
  loadbalancer_id     = azurerm_lb.gateway.id
  protocol            = "Http"
  port                = module.boot.health_port
  request_path        = "/readyz"
  interval_in_seconds = 5
  probe_threshold     = 1
}

resource "azurerm_lb_rule" "gateway" {
  name                           = "every-port"
  loadbalancer_id                = azurerm_lb.gateway.id
  frontend_ip_configuration_name = azurerm_lb.gateway.frontend_ip_configuration[0].name
  backend_address_pool_ids       = [azurerm_lb_backend_address_pool.gateway.id]
  probe_id                       = azurerm_lb_probe.ready.id
  protocol                       = "All"
  frontend_port                  = 0
  backend_port                   = 0
  load_distribution              = "SourceIP"
  idle_timeout_in_minutes        = 30
  tcp_reset_enabled              = true
  disable_outbound_snat          = true
}

resource "azurerm_route" "gateway" {
  for_each = var.route_table_ids

  name                   = var.name
  resource_group_name    = split("/", each.value)[4]
  route_table_name       = split("/", each.value)[8]
  address_prefix         = "0.0.0.0/0"
  next_hop_type          = "VirtualAppliance"
  next_hop_in_ip_address = local.address

  depends_on = [azurerm_lb_rule.gateway]
}

resource "azurerm_virtual_network_dns_servers" "gateway" {
  #checkov:skip=CKV_AZURE_182:One is enough, since several machines answer at it.
  count = var.dns_for_network ? 1 : 0

  virtual_network_id = local.network
  dns_servers        = [local.address]

  depends_on = [azurerm_linux_virtual_machine_scale_set.gateway] # not before there is somebody to ask
}

# ---- The machines --------------------------------------------------------------------------------------------------

module "boot" {
  source = "../boot"

  clients       = var.clients
  unselected    = var.unselected
  policies      = var.policies
  secrets       = local.secrets
  peers         = [for address in local.peers : address if address != local.address]
  dns           = var.dns
  own_resolvers = ["168.63.129.16"]
  health_port   = var.health_port
  drain_seconds = var.drain_seconds
  conntrack     = var.conntrack
  agent         = var.agent
}

resource "azurerm_linux_virtual_machine_scale_set" "gateway" {
  name                            = var.name
  resource_group_name             = var.resource_group_name
  location                        = var.location
  sku                             = var.instance_type
  instances                       = var.machines
  zones                           = length(var.zones) == 0 ? null : var.zones
  zone_balance                    = length(var.zones) > 1
  overprovision                   = false
  admin_username                  = "gateway"
  disable_password_authentication = true
  custom_data                     = base64gzip(module.boot.document)
  source_image_id                 = local.image == null ? var.image : null
  secure_boot_enabled             = true
  vtpm_enabled                    = true
  encryption_at_host_enabled      = var.encryption_at_host
  upgrade_mode                    = "Rolling"
  health_probe_id                 = azurerm_lb_probe.ready.id
  tags                            = var.tags

  admin_ssh_key {
    username   = "gateway"
    public_key = var.admin_ssh_key
  }

  dynamic "source_image_reference" {
    for_each = local.image == null ? [] : [local.image]
    content {
      publisher = source_image_reference.value[0]
      offer     = source_image_reference.value[1]
      sku       = source_image_reference.value[2]
      version   = source_image_reference.value[3]
    }
  }

  os_disk {
    caching                = "ReadWrite"
    storage_account_type   = "Premium_LRS"
    disk_encryption_set_id = var.disk_encryption_set_id
  }

  identity {
    type         = "UserAssigned"
    identity_ids = [azurerm_user_assigned_identity.gateway.id]
  }

  network_interface {
    name                          = "gateway"
    primary                       = true
    enable_ip_forwarding          = true
    enable_accelerated_networking = true
    network_security_group_id     = azurerm_network_security_group.gateway.id

    ip_configuration {
      name                                   = "gateway"
      primary                                = true
      subnet_id                              = var.subnet_id
      load_balancer_backend_address_pool_ids = [azurerm_lb_backend_address_pool.gateway.id]
    }
  }

  # New machines first, and old ones when these are well: settings change without a gap.
  rolling_upgrade_policy {
    max_batch_instance_percent              = 50
    max_unhealthy_instance_percent          = 50
    max_unhealthy_upgraded_instance_percent = 50
    pause_time_between_batches              = "PT30S"
    maximum_surge_instances_enabled         = true
  }

  automatic_instance_repair {
    enabled      = true
    grace_period = "PT20M"
  }

  lifecycle {
    precondition {
      condition     = length(base64gzip(module.boot.document)) <= 65535
      error_message = "The policies do not fit into custom data (64 KiB, compressed): use a kubeconfig, or fewer of them."
    }
  }

  # A probe counts only where a rule uses it; secrets and a way out have to be there at the first start.
  depends_on = [
    azurerm_lb_rule.gateway,
    azurerm_role_assignment.gateway,
    azurerm_subnet_nat_gateway_association.gateway,
    azurerm_nat_gateway_public_ip_association.gateway,
  ]
}

# ---- Their way out -------------------------------------------------------------------------------------------------

resource "azurerm_public_ip" "outside" {
  count = var.nat_addresses

  name                = "${var.name}-outside-${count.index}"
  resource_group_name = var.resource_group_name
  location            = var.location
  sku                 = "Standard"
  allocation_method   = "Static"
  tags                = var.tags
}

resource "azurerm_nat_gateway" "gateway" {
  count = var.nat_addresses > 0 ? 1 : 0

  name                    = var.name
  resource_group_name     = var.resource_group_name
  location                = var.location
  sku_name                = "Standard"
  idle_timeout_in_minutes = 30
  tags                    = var.tags
}

resource "azurerm_nat_gateway_public_ip_association" "gateway" {
  count = var.nat_addresses

  nat_gateway_id       = azurerm_nat_gateway.gateway[0].id
  public_ip_address_id = azurerm_public_ip.outside[count.index].id
}

resource "azurerm_subnet_nat_gateway_association" "gateway" {
  count = var.nat_addresses > 0 ? 1 : 0

  subnet_id      = var.subnet_id
  nat_gateway_id = azurerm_nat_gateway.gateway[0].id
}
