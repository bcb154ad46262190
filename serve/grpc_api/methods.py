"""A service's methods as gRPC is handed them: with messages read here, not by the generated code.

    bytes ──read──▶ message of a tenant, or the error it is ──▶ servicer ──written──▶ bytes

Bytes that are no message, or one of too many parts, are handed on as the error they are, to be
refused like any bad input. By itself `grpc.aio` answers with UNKNOWN and a trace in the log, and in
a stream never.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from serve.errors import InvalidRequest
from serve.grpc_api.guard import Methods, impose
from serve.grpc_api.repeated import part_check

KINDS = {  # by whether the client streams, and the server
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def methods_of(service: ServiceDescriptor, servicer: object, tenant: str) -> Methods:
    """A service's methods, as the generated code registers them but for reading messages.

    Messages are read as those of `tenant`; "" is whoever they say.
    """
    found = {}
    for method in service.methods:
        handler = KINDS[method.client_streaming, method.server_streaming]
        found[method.name] = handler(
            getattr(servicer, method.name),
            request_deserializer=_reader(GetMessageClass(method.input_type), tenant),
            response_serializer=_written,
        )
    return found


def _written(reply: Message | bytes) -> bytes:
    """A reply as bytes, which hot paths write themselves."""
    return reply if isinstance(reply, bytes) else reply.SerializeToString()


def _reader(kind: type[Message], tenant: str) -> Callable[[bytes], Message | InvalidRequest]:
    name, check_parts = kind.DESCRIPTOR.full_name, part_check(kind.DESCRIPTOR)

    def read(content: bytes) -> Message | InvalidRequest:
        try:
            check_parts(content)
            message = kind.FromString(content)
            impose(message, tenant)
        except InvalidRequest as error:
            return error
        except DecodeError as error:
            problem = f"{len(content)} bytes that can't be read ({error})"
            return InvalidRequest("the message", problem, f"a {name}")
        return message

    return read
