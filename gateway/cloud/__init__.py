"""What a gateway asks of its cloud: secrets when it starts, and routes of gateways that are not ready.

Rules this package obeys:

- It imports nothing of the other packages, and none of them imports it: units of systemd run it.
- The clouds' own kits are large, and AWS's (botocore) wants an older python-dateutil than the client of
  Kubernetes: these few questions are plain HTTP, asked of the metadata server and of one service of each.
  Variables of the environment that those kits know say where else to ask.
- A secret goes from the store to a file in memory that only root reads; it is never told.
"""
