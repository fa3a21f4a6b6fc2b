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

variable "project" {
  description = "The project of the gateways."
  type        = string
  nullable    = false
}

variable "region" {
  description = "The region of the gateways and of their clients, such as europe-west3."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region: write the name of a region, such as europe-west3."
  }
}

variable "zones" {
  description = "The zones of that region that the machines are spread over."
  type        = set(string)
  nullable    = false

  validation {
    condition     = length(var.zones) > 0 && alltrue([for zone in var.zones : can(regex("^${var.region}-[a-z]$", zone))])
    error_message = "zones: write one zone of the region or more, such as europe-west3-a."
  }
}

variable "network" {
  description = "The VPC network (projects/PROJECT/global/networks/NAME)."
  type        = string
  nullable    = false
}

variable "subnet_id" {
  description = "The gateways' subnet (projects/PROJECT/regions/REGION/subnetworks/NAME)."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^projects/[^/]+/regions/[^/]+/subnetworks/[^/]+$", var.subnet_id))
    error_message = "subnet_id: write projects/PROJECT/regions/REGION/subnetworks/NAME."
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

variable "client_tags" {
  description = "Network tags: the default route of machines with one of them leads to the gateways."
  type        = set(string)
  nullable    = false

  validation {
    condition     = length(var.client_tags) > 0 && alltrue([for tag in var.client_tags : can(regex("^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$", tag))])
    error_message = "client_tags: write one network tag or more; without any, the gateways' own route would lead to themselves."
  }
}

variable "route_priority" {
  description = "Priority of that route; lower ones win, and the network's own default route has 1000."
  type        = number
  default     = 900
  nullable    = false

  validation {
    condition     = var.route_priority >= 0 && var.route_priority < 1000
    error_message = "route_priority: write 0 to 999, or clients go past the gateways."
  }
}

variable "nat_addresses" {
  description = "How many public addresses clients have outside, by Cloud NAT; 0: the subnet leads out another way."
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
  description = "Which secrets of Secret Manager the machines read, by their ids (projects/PROJECT/secrets/NAME): peer_key, which gateways share (skouter gateway --make-key; without it they tell each other nothing), old_peer_key, which is accepted too while keys change, and kubeconfig: the policies are then those of that API server. Only the references are known here."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = length(setsubtract(keys(var.secrets), ["kubeconfig", "peer_key", "old_peer_key"])) == 0
    error_message = "secrets: their keys are kubeconfig, peer_key and old_peer_key."
  }
  validation {
    condition     = alltrue([for secret in values(var.secrets) : can(regex("^projects/[^/]+/secrets/[^/]+$", secret))])
    error_message = "secrets: write projects/PROJECT/secrets/NAME, not what it holds."
  }
}

variable "dns" {
  description = "Whom the gateways' resolver asks: upstreams (the metadata server), zones with servers of their own, and whether DNS that clients send elsewhere is answered here as well (capture)."
  type = object({
    upstreams = optional(list(string), ["169.254.169.254"])
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
  description = "The machines' type; its processors' architecture is that of the image."
  type        = string
  default     = "n4-highcpu-2"
  nullable    = false
}

variable "image" {
  description = "An image (projects/PROJECT/global/images/family/NAME) with cloud-init, systemd-resolved and Google's guest agent, as Ubuntu's have; Google's of Debian have no cloud-init."
  type        = string
  default     = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
  nullable    = false

  validation {
    condition     = can(regex("^projects/[^/]+/global/images/(family/)?[^/]+$", var.image))
    error_message = "image: write projects/PROJECT/global/images/family/NAME, or without family/ for one image."
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

variable "disk_size" {
  description = "GB of the root disk."
  type        = number
  default     = 10
  nullable    = false
}

variable "disk_kms_key" {
  description = "The key (Cloud KMS) that encrypts the root disk, where it is not Google's."
  type        = string
  default     = null
}

variable "labels" {
  description = "Labels of what can have some."
  type        = map(string)
  default     = {}
  nullable    = false
}
