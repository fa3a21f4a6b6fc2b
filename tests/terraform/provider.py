"""Providers that know their schema and nothing else, for mock_provider to make up the rest.

Rules this file obeys:

- A schema is served as it was given, and a state is taken as it was written. Every other question is
  answered by an empty message, which means: no complaint. So what is planned has to be mocked.
- The servers run in this process, and Terraform is told where, as it is of a provider in a debugger: nothing
  is started, installed or looked up, and no registry has to be named.

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
from tf.gen import tfplugin_pb2 as wire

Answer = Callable[[bytes, grpc.ServicerContext], bytes]

SERVICE = "/tfplugin6.Provider/"


class SchemaOnly(grpc.GenericRpcHandler):
    def __init__(self, schema: bytes) -> None:
        self.answers: dict[str, Answer] = {
            f"{SERVICE}GetProviderSchema": lambda _request, _context: schema,
            f"{SERVICE}UpgradeResourceState": _upgraded,
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if not details.method.startswith(SERVICE):
            return None
        return grpc.unary_unary_rpc_method_handler(self.answers.get(details.method, _nothing))


def _upgraded(request: bytes, _context: grpc.ServicerContext) -> bytes:
    written = wire.UpgradeResourceState.Request.FromString(request).raw_state.json
    answer = wire.UpgradeResourceState.Response(upgraded_state=wire.DynamicValue(json=written))
    return answer.SerializeToString()


def _nothing(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    return b""


@contextmanager
def serving(schemas: dict[str, bytes], sockets: Path) -> Iterator[dict[str, str]]:
    """Serves each schema as the provider of its name ("hashicorp/aws"); yields variables for Terraform."""
    with ExitStack() as stack:
        attached = {}
        for number, (name, schema) in enumerate(schemas.items()):
            socket = sockets / f"{number}.sock"
            server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[SchemaOnly(schema)])
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
