r"""Cuts a stream of server-sent events into their data, wherever the network cut the bytes.

    b'data: {"a"'  b': 1}\n\nda'  b'ta: [DONE]\n\n'   ──feed──▶   b'{"a": 1}'   b'[DONE]'

Lines end with LF, CR or CR LF; an event ends with an empty line; its `data` lines are joined with
LF; comments and other fields are skipped. Bytes stay bytes: a character may be cut in two anywhere.
Source: the WHATWG HTML standard, section 9.2.6, "Interpreting an event stream".

What comes out depends on the bytes alone, not on how they were cut.
"""

from __future__ import annotations

from collections.abc import Iterator

from serve.errors import AnswerGarbled

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventReader:
    r"""The events of one stream.

    >>> events = EventReader("here", line_bytes_max=100)
    >>> list(events.feed(b": ping\n\ndata: a\ndata:b\n\ndata: c")), list(events.end())
    ([b'a\nb'], [b'c'])
    """

    def __init__(self, where: str, line_bytes_max: int) -> None:
        """`where` names the sender in errors."""
        self._where, self._line_bytes_max = where, line_bytes_max
        self._rest: list[bytes] = []  # of a line whose end has not come yet
        self._rest_bytes = 0
        self._data: list[bytes] = []  # of an event whose end has not come yet
        self._ended_with_cr = False  # then a LF to come belongs to the same line end
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the events that end in this chunk. Exhaust it before feeding more.

        Raises AnswerGarbled: a line is too long.
        """
        if self._ended_with_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._ended_with_cr = False
        if b"\r" in chunk:
            self._ended_with_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        if len(lines) > 1:
            lines[0] = b"".join(self._rest) + lines[0]
            self._rest, self._rest_bytes = [], 0
        self._rest.append(rest := lines.pop())
        self._rest_bytes += len(rest)
        for line in lines:
            if line or not self._data:
                self._take(line)
            else:
                yield self._event()
        self._check(self._rest_bytes)

    def end(self) -> Iterator[bytes]:
        """The data of an event that the end of the stream cut off; the standard would drop it.

        Many servers forget the last empty line.
        """
        self._take(b"".join(self._rest))
        if self._data:
            yield self._event()

    def _event(self) -> bytes:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data = []
        return data

    def _take(self, line: bytes) -> None:
        self._check(len(line))
        if self._first:
            line, self._first = line.removeprefix(BYTE_ORDER_MARK), False
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            self._data.append(b"")

    def _check(self, n_bytes: int) -> None:
        if n_bytes > self._line_bytes_max:
            problem = f"a line of more than {self._line_bytes_max} bytes"
            raise AnswerGarbled(self._where, problem)
