# The document that makes a machine a gateway: files with settings, and which units run. What can fail and has to be
# tried again (installing, secrets) is a program's or a unit's to do, not this document's.

locals {
  run = "/run/skouter-cloud" # in memory: secrets are never on a disk

  paths = {
    kubeconfig   = "${local.run}/kubeconfig"
    peer_key     = "${local.run}/peer.key"
    old_peer_key = "${local.run}/peer.old.key"
  }
  has = { for secret, path in local.paths : secret => contains(keys(var.secrets), secret) }

  # What is null is left out below.
  peers = !local.has.peer_key ? null : {
    listen     = "[::]:7946"
    members    = var.peers
    keyFile    = local.paths.peer_key
    oldKeyFile = local.has.old_peer_key ? local.paths.old_peer_key : null
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
    health       = { port = var.health_port }
    drainSeconds = var.drain_seconds
    conntrack    = var.conntrack
    policies     = var.policies == null ? null : "/etc/skouter/policies"
    kubernetes   = local.has.kubeconfig ? { kubeconfig = local.paths.kubeconfig } : null
    peers        = local.peers == null ? null : { for key, value in local.peers : key => value if value != null }
  }

  cloud = {
    secrets  = length(var.secrets) == 0 ? null : { for secret, name in var.secrets : local.paths[secret] => name }
    takeOver = var.routes_to_take_over
  }

  asks_cloud = length(var.secrets) > 0 || var.routes_to_take_over != null

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
    length(var.secrets) == 0 ? [] : ["skouter-secrets.service"],
    ["skouter-resolver.service", "skouter-gateway.service"],
    var.routes_to_take_over == null ? [] : ["skouter-take-over.service"],
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
