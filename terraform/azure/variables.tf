# ---- Where -------------------------------------------------------------------------------------------------------------

variable "name" {
  description = "What everything here is called, or begins with."
  type        = string
  default     = "skouter"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]([-a-z0-9]{0,26}[a-z0-9])?$", var.name))
    error_message = "name: write 1 to 28 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "resource_group_name" {
  description = "The resource group of everything here."
  type        = string
  nullable    = false
}

variable "location" {
  description = "The region, such as germanywestcentral."
  type        = string
  nullable    = false
}

variable "zones" {
  description = "The availability zones that the machines are spread over."
  type        = set(string)
  default     = ["1", "2", "3"]
  nullable    = false

  validation {
    condition     = alltrue([for zone in var.zones : contains(["1", "2", "3"], zone)])
    error_message = "zones: write some of 1, 2 and 3, or none in a region without zones."
  }
}

variable "subnet_id" {
  description = "The gateways' subnet."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.Network/virtualNetworks/[^/]+/subnets/[^/]+$", var.subnet_id))
    error_message = "subnet_id: write the resource id of a subnet."
  }
}

variable "subnet_cidr" {
  description = "The IPv4 network of that subnet, /26 to /28: nothing else stands in it, so all of its addresses are tried for other gateways."
  type        = string
  nullable    = false

  validation {
    condition     = can(cidrhost(var.subnet_cidr, 0)) && can(regex("^[0-9.]+/(26|27|28)$", var.subnet_cidr))
    error_message = "subnet_cidr: write a network of IPv4 of length 26, 27 or 28, such as 10.0.0.0/28."
  }
}

variable "private_ip" {
  description = "The load balancer's address, which routes lead to and clients ask for names: one of the subnet; the last one where it is not given."
  type        = string
  default     = null
}

variable "route_table_ids" {
  description = "The clients' route tables: their default route leads to the gateways. By its name, which may be any, since ids are known only later."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for id in var.route_table_ids : can(regex("^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.Network/routeTables/[^/]+$", id))])
    error_message = "route_table_ids: write resource ids of route tables."
  }
}

variable "dns_for_network" {
  description = "Whether the virtual network names the gateways as DNS servers to all of its machines. Otherwise point the clients there in their own configuration (output dns_servers)."
  type        = bool
  default     = false
  nullable    = false
}

variable "nat_addresses" {
  description = "How many public addresses clients have outside, by a NAT gateway at the subnet; 0: the subnet leads out another way."
  type        = number
  default     = 1
  nullable    = false

  validation {
    condition     = var.nat_addresses >= 0 && var.nat_addresses <= 16 && floor(var.nat_addresses) == var.nat_addresses
    error_message = "nat_addresses: write 0 to 16."
  }
}

# ---- What they do ------------------------------------------------------------------------------------------------------

variable "clients" {
  description = "Networks (CIDR, IPv4) of the machines that are forwarded; nobody else is."
  type        = set(string)
  nullable    = false

  validation {
    condition     = alltrue([for network in var.clients : !strcontains(network, ":")])
    error_message = "clients: write networks of IPv4; README.md says why there is no IPv6 here."
  }
}

variable "unselected" {
  description = "What becomes of a client that no object selects: deny or allow."
  type        = string
  default     = "deny"
  nullable    = false
}

variable "policies" {
  description = "A folder of Egress, ClusterEgress and ExternalWorkload documents (*.yaml), which are copied to the machines. Exclusive with a kubeconfig among the secrets."
  type        = string
  default     = null
}

variable "secrets" {
  description = "Which secrets of Key Vault the machines read, by their versionless resource ids: peer_key, which gateways share (skouter gateway --make-key; without it they tell each other nothing), old_peer_key, which is accepted too while keys change, and kubeconfig: the policies are then those of that API server. Only the references are known here."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = length(setsubtract(keys(var.secrets), ["kubeconfig", "peer_key", "old_peer_key"])) == 0
    error_message = "secrets: their keys are kubeconfig, peer_key and old_peer_key."
  }
  validation {
    condition     = alltrue([for secret in values(var.secrets) : can(regex("^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft.KeyVault/vaults/[^/]+/secrets/[^/]+$", secret))])
    error_message = "secrets: write versionless resource ids of secrets of Key Vault, not what they hold."
  }
}

variable "dns" {
  description = "Whom the gateways' resolver asks: upstreams (Azure's resolver), zones with servers of their own, and whether DNS that clients send elsewhere is answered here as well (capture)."
  type = object({
    upstreams = optional(list(string), ["168.63.129.16"])
    zones     = optional(map(list(string)), {})
    capture   = optional(bool, true)
  })
  default  = {}
  nullable = false
}

variable "health_port" {
  description = "Where /livez, /readyz and /metrics are answered, over plain HTTP."
  type        = number
  default     = 9808
  nullable    = false
}

variable "health_clients" {
  description = "Networks (CIDR) that may ask there, such as those of Prometheus."
  type        = set(string)
  default     = []
  nullable    = false
}

variable "drain_seconds" {
  description = "How long a gateway that is told to end goes on forwarding, not ready any more."
  type        = number
  default     = 30
  nullable    = false
}

variable "conntrack" {
  description = "Connections that a gateway's kernel may track."
  type        = number
  default     = 262144
  nullable    = false
}

# ---- What they are -----------------------------------------------------------------------------------------------------

variable "machines" {
  description = "How many gateways there are. All forward, and are equal."
  type        = number
  default     = 3
  nullable    = false

  validation {
    condition     = var.machines >= 1 && var.machines <= 10 && floor(var.machines) == var.machines
    error_message = "machines: write 1 to 10; a subnet of 16 addresses has no room for more."
  }
}

variable "instance_type" {
  description = "The machines' size; its processors' architecture is that of the image."
  type        = string
  default     = "Standard_F2s_v2"
  nullable    = false
}

variable "image" {
  description = "The resource id of an image, or PUBLISHER:OFFER:SKU:VERSION: Debian 12 or newer, with cloud-init and systemd-resolved."
  type        = string
  default     = "Debian:debian-12:12-gen2:latest"
  nullable    = false

  validation {
    condition     = can(regex("^(/subscriptions/.+|[^:/]+:[^:/]+:[^:/]+:[^:/]+)$", var.image))
    error_message = "image: write the resource id of an image, or PUBLISHER:OFFER:SKU:VERSION."
  }
}

variable "agent" {
  description = "An archive (.tar.gz) of Skouter's sources to install at the first start, and its SHA-256 in hexadecimal digits. Without it, the image has Skouter installed."
  type = object({
    url    = string
    sha256 = string
  })
  default = null
}

variable "admin_ssh_key" {
  description = "A public key (ssh-rsa or ssh-ed25519), since Azure starts no machine without one; no rule lets SSH in."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^ssh-(rsa|ed25519) ", var.admin_ssh_key))
    error_message = "admin_ssh_key: write a public key, such as ssh-ed25519 AAAA..."
  }
}

variable "disk_encryption_set_id" {
  description = "The disk encryption set of the root disk, where its key is not Azure's."
  type        = string
  default     = null
}

variable "encryption_at_host" {
  description = "Whether the host encrypts temporary disks and caches too; false where the subscription does not have this feature."
  type        = bool
  default     = true
  nullable    = false
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
  nullable    = false
}
