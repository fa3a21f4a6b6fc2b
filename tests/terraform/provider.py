"""Providers that know their schema and nothing else, for mock_provider to make up the rest.

Rules this file obeys:

- A schema is served as it lies in the cache. Every other question is answered by an empty message, which means:
  no complaint. So whatever is planned or applied has to be mocked; else Terraform says what it misses.
- The servers run in this process, and Terraform is told where, as it is of a provider in a debugger: nothing is
  started, installed or looked up, and no registry has to be named.

Source: Terraform's plugin protocol 6; go-plugin's reattach configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

SERVICE = "/tfplugin6.Provider/"


class SchemaOnly(grpc.GenericRpcHandler):
    def __init__(self, schema: bytes) -> None:
        self.schema = schema

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if not details.method.startswith(SERVICE):
            return None
        answer = self.schema if details.method == f"{SERVICE}GetProviderSchema" else b""
        return grpc.unary_unary_rpc_method_handler(_always(answer))


def _always(answer: bytes) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    return lambda _request, _context: answer


@contextmanager
def serving(schemas: dict[str, Path], sockets: Path) -> Iterator[dict[str, str]]:
    """Serves each schema as the provider of its name ("hashicorp/aws"); yields what Terraform's environment needs."""
    with ExitStack() as stack:
        attached = {}
        for number, (name, schema) in enumerate(schemas.items()):
            socket = sockets / f"{number}.sock"
            server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[SchemaOnly(schema.read_bytes())])
            server.add_insecure_port(f"unix:{socket}")
            server.start()
            stack.callback(lambda ending=server: ending.stop(None).wait())
            attached[name] = {
                "Protocol": "grpc",
                "ProtocolVersion": 6,
                "Pid": os.getpid(),
                "Test": True,
                "Addr": {"Network": "unix", "String": str(socket)},
            }
        yield {"TF_REATTACH_PROVIDERS": json.dumps(attached)}
