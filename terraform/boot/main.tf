# The document that makes a machine a gateway: files with settings, and which units run. What can fail and has to be
# tried again (installing, secrets) is a program's or a unit's to do, not this document's.

locals {
  run = "/run/skouter-cloud" # in memory: secrets are never on a disk

  secrets = {
    for file, secret in {
      "kubeconfig"   = var.kubeconfig_secret
      "peer.key"     = var.peer_key_secret
      "peer.old.key" = var.old_peer_key_secret
    } : "${local.run}/${file}" => secret if secret != null
  }

  # What is null is left out below.
  peers = var.peer_key_secret == null ? null : {
    listen     = "[::]:7946"
    members    = var.peers
    keyFile    = "${local.run}/peer.key"
    oldKeyFile = var.old_peer_key_secret == null ? null : "${local.run}/peer.old.key"
  }

  dns = {
    capture   = var.dns.capture
    upstreams = length(var.dns.upstreams) == 0 ? null : var.dns.upstreams
    zones     = length(var.dns.zones) == 0 ? null : var.dns.zones
  }

  gateway = {
    clients      = sort(var.clients)
    unselected   = var.unselected
    snat         = var.snat
    dns          = { for key, value in local.dns : key => value if value != null }
    health       = { address = "::", port = var.health_port }
    drainSeconds = var.drain_seconds
    conntrack    = var.conntrack
    policies     = var.policies == null ? null : "/etc/skouter/policies"
    kubernetes   = var.kubeconfig_secret == null ? null : { kubeconfig = "${local.run}/kubeconfig" }
    peers        = local.peers == null ? null : { for key, value in local.peers : key => value if value != null }
  }

  cloud = {
    secrets  = length(local.secrets) == 0 ? null : local.secrets
    takeOver = var.take_over
  }

  asks_cloud = anytrue([for value in values(local.cloud) : value != null])

  documents = var.policies == null ? {} : {
    for name in fileset(var.policies, "*.yaml") : "/etc/skouter/policies/${name}" => file("${var.policies}/${name}")
  }

  settings = {
    "/etc/skouter/gateway.yaml" = yamlencode({ for key, value in local.gateway : key => value if value != null })
    "/etc/skouter/cloud.yaml"   = local.asks_cloud ? yamlencode({ for key, value in local.cloud : key => value if value != null }) : null
    "/etc/systemd/resolved.conf.d/skouter.conf" = length(var.own_resolvers) == 0 ? null : templatefile(
      "${path.module}/resolved.conf", { servers = var.own_resolvers }
    )
  }
  files = merge(local.documents, { for path, text in local.settings : path => text if text != null })

  units = concat(
    length(local.secrets) == 0 ? [] : ["skouter-secrets.service"],
    ["skouter-resolver.service", "skouter-gateway.service"],
    var.take_over == null ? [] : ["skouter-take-over.service"],
  )

  document = {
    write_files = concat(
      [for path, text in local.files : { path = path, content = text, permissions = "0644" }],
      var.agent == null ? [] : [
        { path = "/usr/local/sbin/install-skouter", content = file("${path.module}/install-skouter"), permissions = "0755" },
      ],
    )
    runcmd = concat(
      length(var.own_resolvers) == 0 ? [] : [["systemctl", "try-restart", "systemd-resolved.service"]],
      var.agent == null ? [] : [["/usr/local/sbin/install-skouter", var.agent.url, var.agent.sha256]],
      [["systemctl", "disable", "--now", "unbound.service"]], # Debian's own, at the same port
      [concat(["systemctl", "enable", "--now"], local.units)],
    )
  }
}
