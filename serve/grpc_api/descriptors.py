"""What gRPC's reflection tells tools about the API: also where a method is declared.

`grpcurl describe` and `ghz` ask for the file of `package.Service.Method`. Python's descriptor pool
knows messages, fields and services by name, but no methods: their service is looked up instead.
"""

from __future__ import annotations

from typing import cast

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor


class _MethodsFound:
    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> object:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - as the pool's
        """The file that declares a symbol. Raises KeyError where none does."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._pool.FindServiceByName(service)
            if method not in found.methods_by_name:
                raise
            return found.file


def methods_found() -> descriptor_pool.DescriptorPool:
    """The default pool of descriptors, in which methods can be found, too."""
    return cast("descriptor_pool.DescriptorPool", _MethodsFound())
