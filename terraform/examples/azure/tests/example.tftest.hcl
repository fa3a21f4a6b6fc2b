mock_provider "azurerm" {
  mock_resource "azurerm_subnet" {
    defaults = { id = "/subscriptions/0/resourceGroups/skouter/providers/Microsoft.Network/virtualNetworks/main/subnets/gateways" }
  }
  mock_resource "azurerm_route_table" {
    defaults = { id = "/subscriptions/0/resourceGroups/skouter/providers/Microsoft.Network/routeTables/machines" }
  }
}

variables {
  subscription_id = "00000000-0000-0000-0000-000000000000"
  peer_key_secret = "/subscriptions/0/resourceGroups/keys/providers/Microsoft.KeyVault/vaults/example/secrets/skouter-peer-key"
  admin_ssh_key   = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample"
  agent           = { url = "https://example.com/skouter.tar.gz", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
}

run "it_applies" {
  assert {
    condition     = length(output.public_addresses) == 1
    error_message = "There is no address outside."
  }
}
