# ---- Where ---------------------------------------------------------------------------------------------------

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

variable "vpc_id" {
  description = "The VPC of the gateways and their clients."
  type        = string
  nullable    = false

  validation {
    condition     = startswith(var.vpc_id, "vpc-")
    error_message = "vpc_id: write the id of a VPC, such as vpc-0123456789abcdef0."
  }
}

variable "zones" {
  description = "A gateway for each availability zone (eu-central-1a): the subnet that it stands in, which has a way out, and the route tables that lead their default routes to it, by any names, since ids may be known only later. private_ip is chosen by AWS where it is not given, and stays."
  type = map(object({
    subnet_id       = string
    route_table_ids = map(string)
    private_ip      = optional(string)
  }))
  nullable = false

  validation {
    condition     = length(var.zones) > 0
    error_message = "zones: write one availability zone or more."
  }
  validation {
    condition     = alltrue([for zone in keys(var.zones) : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+(-[a-z]+-[0-9]+)?[a-z]$", zone))])
    error_message = "zones: their keys are the names of availability zones, such as eu-central-1a."
  }
  validation {
    condition     = alltrue([for zone in var.zones : startswith(zone.subnet_id, "subnet-")])
    error_message = "zones: subnet_id is the id of a subnet, such as subnet-0123456789abcdef0."
  }
  validation {
    condition     = alltrue([for zone in var.zones : alltrue([for id in values(zone.route_table_ids) : startswith(id, "rtb-")])])
    error_message = "zones: route_table_ids are ids of route tables, such as rtb-0123456789abcdef0."
  }
}

variable "ipv6" {
  description = "Whether IPv6 is forwarded as well: the subnets need IPv6 networks, and the clients' route tables no ::/0 of their own."
  type        = bool
  default     = false
  nullable    = false
}

variable "public_addresses" {
  description = "Whether each gateway has an elastic IP address, which stays; else its subnet leads out another way."
  type        = bool
  default     = true
  nullable    = false
}

variable "dns_for_network" {
  description = "Whether DHCP tells the gateways' addresses as DNS servers: to the whole VPC, since DHCP options are per VPC. Otherwise point the clients there in their own configuration (output dns_servers)."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = !var.dns_for_network || length(var.zones) <= 4
    error_message = "dns_for_network: DHCP options have room for four DNS servers; write four zones at most."
  }
}

variable "domain_name" {
  description = "The domain that DHCP tells beside the DNS servers, such as eu-central-1.compute.internal."
  type        = string
  default     = null
}

# ---- What they do ----------------------------------------------------------------------------------------------

variable "clients" {
  description = "Networks (CIDR, IPv4 and IPv6) of the machines that are forwarded; nobody else is."
  type        = set(string)
  nullable    = false
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
  description = "Which secrets of Secrets Manager the machines read, by their ARNs: peer_key, which gateways share (skouter gateway --make-key; without it they tell each other nothing), old_peer_key, which is accepted too while keys change, and kubeconfig: the policies are then those of that API server. Only the references are known here."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = length(setsubtract(keys(var.secrets), ["kubeconfig", "peer_key", "old_peer_key"])) == 0
    error_message = "secrets: their keys are kubeconfig, peer_key and old_peer_key."
  }
  validation {
    condition     = alltrue([for secret in values(var.secrets) : can(regex("^arn:[^:]+:secretsmanager:[^:]+:[0-9]+:secret:.+$", secret))])
    error_message = "secrets: write ARNs of secrets of Secrets Manager, not what they hold."
  }
}

variable "secrets_kms_key" {
  description = "ARN of the KMS key that encrypts these secrets, where it is not the account's aws/secretsmanager."
  type        = string
  default     = null
}

variable "dns" {
  description = "Whom the gateways' resolver asks: upstreams (the VPC's resolver), zones with servers of their own, and whether DNS that clients send elsewhere is answered here as well (capture)."
  type = object({
    upstreams = optional(list(string), ["169.254.169.253"])
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

variable "take_over" {
  description = "Whether a gateway that is ready leads the routes of one that is not to itself, until that one is ready again."
  type        = bool
  default     = false
  nullable    = false
}

# ---- What they are -----------------------------------------------------------------------------------------------

variable "instance_type" {
  description = "The machines' type; its processors' architecture is that of the image."
  type        = string
  default     = "c7g.medium"
  nullable    = false
}

variable "image" {
  description = "An AMI (ami-...), or the name of a public parameter that holds one (resolve:ssm:...): Debian 12 or newer, with cloud-init and systemd-resolved."
  type        = string
  default     = "resolve:ssm:/aws/service/debian/release/12/latest/arm64"
  nullable    = false

  validation {
    condition     = can(regex("^(ami-[0-9a-f]{8,17}|resolve:ssm:\\S+)$", var.image))
    error_message = "image: write ami-0123456789abcdef0, or resolve:ssm: and the name of a parameter."
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
  description = "GiB of the encrypted root volume."
  type        = number
  default     = 8
  nullable    = false
}

variable "disk_kms_key" {
  description = "ARN of the KMS key of the root volume, where it is not the account's aws/ebs."
  type        = string
  default     = null
}

variable "replace_at_once" {
  description = "Whether a change of settings replaces all running machines at once. Otherwise they are replaced zone by zone when you say so."
  type        = bool
  default     = false
  nullable    = false
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
  nullable    = false
}
