# Who may speak to the gateways, and what the gateways may do.

resource "azurerm_user_assigned_identity" "gateway" {
  name                = var.name
  resource_group_name = var.resource_group_name
  location            = var.location
  tags                = var.tags
}

resource "azurerm_role_assignment" "gateway" {
  for_each = var.secrets

  scope                = each.value
  role_definition_name = "Key Vault Secrets User"
  principal_id         = azurerm_user_assigned_identity.gateway.principal_id
}

resource "azurerm_network_security_group" "gateway" {
  name                = var.name
  resource_group_name = var.resource_group_name
  location            = var.location
  tags                = var.tags
}

# By name: priority, from where, protocol, port. What gateways forward comes here too: every protocol and port, as
# policies have it. The last rule stands before those that Azure has, which let the whole network in.
locals {
  rules = {
    for name, rule in {
      clients    = { priority = 100, access = "Allow", from = var.clients, tag = null, protocol = "*", port = "*" }
      probes     = { priority = 110, access = "Allow", from = [], tag = "AzureLoadBalancer", protocol = "Tcp", port = tostring(var.health_port) }
      health     = { priority = 120, access = "Allow", from = var.health_clients, tag = null, protocol = "Tcp", port = tostring(var.health_port) }
      peers      = { priority = 130, access = "Allow", from = contains(keys(var.secrets), "peer_key") ? [var.subnet_cidr] : [], tag = null, protocol = "Udp", port = "7946" }
      all_others = { priority = 4096, access = "Deny", from = [], tag = "*", protocol = "*", port = "*" }
    } : name => rule if rule.tag != null || length(rule.from) > 0
  }
}

resource "azurerm_network_security_rule" "gateway" {
  for_each = local.rules

  name                        = each.key
  resource_group_name         = var.resource_group_name
  network_security_group_name = azurerm_network_security_group.gateway.name
  direction                   = "Inbound"
  priority                    = each.value.priority
  access                      = each.value.access
  protocol                    = each.value.protocol
  source_address_prefix       = each.value.tag
  source_address_prefixes     = each.value.tag == null ? each.value.from : null
  source_port_range           = "*"
  destination_address_prefix  = "*"
  destination_port_range      = each.value.port
}
