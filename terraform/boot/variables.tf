variable "clients" {
  description = "Networks (CIDR, IPv4 and IPv6) of the machines that are forwarded; nobody else is."
  type        = set(string)
  nullable    = false

  validation {
    condition     = length(var.clients) > 0 && alltrue([for network in var.clients : can(cidrhost(network, 0))])
    error_message = "clients: write one network or more in CIDR notation, such as 10.20.0.0/16 or fd00:20::/64."
  }
  validation {
    condition     = alltrue([for network in var.clients : !endswith(network, "/0")])
    error_message = "clients: a network of length 0 is everybody, servers outside too: write the networks of your machines."
  }
}

variable "unselected" {
  description = "What becomes of a client that no object selects: deny or allow."
  type        = string
  default     = "deny"
  nullable    = false

  validation {
    condition     = contains(["deny", "allow"], var.unselected)
    error_message = "unselected: write deny or allow."
  }
}

variable "policies" {
  description = "A folder of Egress, ClusterEgress and ExternalWorkload documents (*.yaml), which are copied to the machines. Exclusive with a kubeconfig among the secrets."
  type        = string
  default     = null

  validation {
    condition     = (var.policies == null) == contains(keys(var.secrets), "kubeconfig")
    error_message = "policies: name a folder of documents, or a kubeconfig among the secrets, and not both."
  }
  validation {
    condition     = var.policies == null || length(fileset(coalesce(var.policies, "."), "*.yaml")) > 0
    error_message = "policies: there is no *.yaml in this folder; gateways without policies would refuse everything."
  }
}

variable "secrets" {
  description = "Which secrets of the cloud's store the machines read, by the names that the store knows: peer_key, which gateways share (skouter gateway --make-key; without it they tell each other nothing), old_peer_key, which is accepted too while keys change, and kubeconfig: the policies are then those of that API server. Only the references are known here."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = length(setsubtract(keys(var.secrets), ["kubeconfig", "peer_key", "old_peer_key"])) == 0
    error_message = "secrets: their keys are kubeconfig, peer_key and old_peer_key."
  }
  validation {
    condition     = !contains(keys(var.secrets), "old_peer_key") || contains(keys(var.secrets), "peer_key")
    error_message = "secrets: an old_peer_key needs a peer_key beside it."
  }
}

variable "peers" {
  description = "Addresses or names of all gateways; one's own may be among them."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = length(var.peers) <= 64
    error_message = "peers: 64 is the most that a gateway speaks with."
  }
}

variable "dns" {
  description = "Whom the gateways' resolver asks: upstreams (none: from the root servers), zones with servers of their own, and whether DNS that clients send elsewhere is answered here as well (capture)."
  type = object({
    upstreams = optional(list(string), [])
    zones     = optional(map(list(string)), {})
    capture   = optional(bool, true)
  })
  default  = {}
  nullable = false
}

variable "own_resolvers" {
  description = "The name servers of the gateways themselves, which must not be gateways: a first one could not start."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "snat" {
  description = "Whether forwarded packets leave with the gateway's own address (masquerade) or their own (none)."
  type        = string
  default     = "masquerade"
  nullable    = false

  validation {
    condition     = contains(["masquerade", "none"], var.snat)
    error_message = "snat: write masquerade or none."
  }
}

variable "health_port" {
  description = "Where /livez, /readyz and /metrics are answered, over plain HTTP."
  type        = number
  default     = 9808
  nullable    = false

  validation {
    condition     = var.health_port > 0 && var.health_port < 65536 && !contains([53, 7946], var.health_port)
    error_message = "health_port: write a port from 1 to 65535 that is neither DNS (53) nor that of peers (7946)."
  }
}

variable "drain_seconds" {
  description = "How long a gateway that is told to end goes on forwarding, not ready any more."
  type        = number
  default     = 30
  nullable    = false

  validation {
    condition     = var.drain_seconds >= 0 && var.drain_seconds <= 150
    error_message = "drain_seconds: write 0 to 150; systemd waits no longer than 180 seconds for a gateway to end."
  }
}

variable "conntrack" {
  description = "Connections that a gateway's kernel may track."
  type        = number
  default     = 262144
  nullable    = false

  validation {
    condition     = var.conntrack >= 1024
    error_message = "conntrack: write 1024 or more."
  }
}

variable "agent" {
  description = "An archive (.tar.gz) of Skouter's sources to install at the first start, and its SHA-256 in hexadecimal digits. Without it, the image has Skouter installed."
  type = object({
    url    = string
    sha256 = string
  })
  default = null

  validation {
    condition     = var.agent == null || can(regex("^https://[^\\s]+$", var.agent.url))
    error_message = "agent: url has to begin with https://."
  }
  validation {
    condition     = var.agent == null || can(regex("^[0-9a-f]{64}$", var.agent.sha256))
    error_message = "agent: sha256 has to be 64 hexadecimal digits, as sha256sum prints them."
  }
}

variable "routes_to_take_over" {
  description = "What a gateway does about the routes of one that is not ready: a document for the cloud's part of Skouter, or null for nothing."
  type        = any
  default     = null
}
