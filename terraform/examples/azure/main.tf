# A subnet of machines reaches out through three gateways.

provider "azurerm" {
  features {}
  subscription_id = var.subscription_id
}

module "skouter" {
  source = "../../azure"

  resource_group_name = azurerm_resource_group.main.name
  location            = azurerm_resource_group.main.location
  subnet_id           = azurerm_subnet.gateways.id
  subnet_cidr         = "10.0.0.0/28"
  route_table_ids     = { machines = azurerm_route_table.machines.id }
  clients             = ["10.0.64.0/18"]
  policies            = "${path.module}/../policies"
  secrets             = { peer_key = var.peer_key_secret }
  admin_ssh_key       = var.admin_ssh_key
  agent               = var.agent
  dns_for_network     = true # of all of this network
}

variable "subscription_id" {
  description = "The subscription of all this."
  type        = string
}

# Its value never comes here: skouter gateway --make-key >peer.key
# az keyvault secret set --vault-name VAULT --name skouter-peer-key --file peer.key
variable "peer_key_secret" {
  description = "The versionless resource id of a secret in a Key Vault whose rights are roles (RBAC)."
  type        = string
}

variable "admin_ssh_key" {
  description = "A public key, which Azure wants."
  type        = string
}

variable "agent" {
  description = "An archive of Skouter's sources, and its SHA-256."
  type        = object({ url = string, sha256 = string })
}

# ---- The network ---------------------------------------------------------------------------------------------------

resource "azurerm_resource_group" "main" {
  name     = "skouter"
  location = "germanywestcentral"
}

resource "azurerm_virtual_network" "main" {
  name                = "main"
  resource_group_name = azurerm_resource_group.main.name
  location            = azurerm_resource_group.main.location
  address_space       = ["10.0.0.0/16"]
}

resource "azurerm_subnet" "gateways" {
  name                            = "gateways"
  resource_group_name             = azurerm_resource_group.main.name
  virtual_network_name            = azurerm_virtual_network.main.name
  address_prefixes                = ["10.0.0.0/28"]
  default_outbound_access_enabled = false
}

resource "azurerm_subnet" "machines" {
  name                            = "machines"
  resource_group_name             = azurerm_resource_group.main.name
  virtual_network_name            = azurerm_virtual_network.main.name
  address_prefixes                = ["10.0.64.0/18"]
  default_outbound_access_enabled = false
}

# Its default route is the module's.
resource "azurerm_route_table" "machines" {
  name                = "machines"
  resource_group_name = azurerm_resource_group.main.name
  location            = azurerm_resource_group.main.location
}

resource "azurerm_subnet_route_table_association" "machines" {
  subnet_id      = azurerm_subnet.machines.id
  route_table_id = azurerm_route_table.machines.id
}

output "public_addresses" {
  value = module.skouter.public_addresses
}
