"""MongoDB's wire messages, as far as a proxy must understand them: framing, the command's name, a reply's document."""

from __future__ import annotations

import struct
from asyncio import StreamReader
from dataclasses import dataclass
from typing import Any

import bson

__all__ = ["HELLOS", "Message", "answer_to", "read_message"]

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
HELLOS = frozenset({"hello", "isMaster", "ismaster"})

_HEADER = struct.Struct("<iiii")
_CHECKSUM, _MORE_TO_COME = 1, 2
_REPLY_PREFIX = 20  # flags, cursor id, starting from, number returned


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the wire protocol, header and all."""

    data: bytes

    @property
    def request_id(self) -> int:
        return int(_HEADER.unpack_from(self.data)[1])

    @property
    def response_to(self) -> int:
        return int(_HEADER.unpack_from(self.data)[2])

    @property
    def opcode(self) -> int:
        return int(_HEADER.unpack_from(self.data)[3])

    @property
    def more_to_come(self) -> bool:
        """Whether another message follows without being asked for, or none is expected."""
        return self.opcode == OP_MSG and bool(int.from_bytes(self.data[16:20], "little") & _MORE_TO_COME)

    @property
    def command(self) -> str:
        """The name of the command that a request carries, such as "insert"; empty where it is none."""
        start = self._document_at
        if start is None:
            return ""
        name = start + 5  # the document's length, and the type of its first field
        return self.data[name : self.data.index(0, name)].decode()

    @property
    def document(self) -> dict[str, Any]:
        """The body."""
        start = self._document_at
        assert start is not None, f"a message of kind {self.opcode} carries no document"
        (length,) = struct.unpack_from("<i", self.data, start)
        decoded: dict[str, Any] = bson.decode(self.data[start : start + length])
        return decoded

    def with_document(self, document: dict[str, Any]) -> Message:
        """Returns this reply with another body."""
        start = self._document_at
        assert start is not None
        flags = int.from_bytes(self.data[16:20], "little") & ~_CHECKSUM
        middle = flags.to_bytes(4, "little") + self.data[20:start]
        rest = middle + bson.encode(document)
        header = _HEADER.pack(len(rest) + 16, self.request_id, self.response_to, self.opcode)
        return Message(header + rest)

    @property
    def _document_at(self) -> int | None:
        if self.opcode == OP_MSG:
            return self._body_section()
        if self.opcode == OP_REPLY:
            return 16 + _REPLY_PREFIX
        if self.opcode == OP_QUERY:
            return self.data.index(0, 20) + 1 + 8
        return None

    def _body_section(self) -> int:
        at = 20
        while self.data[at] != 0:  # a document sequence: kind 1, its size, its name, its documents
            at += 1 + int(struct.unpack_from("<i", self.data, at + 1)[0])
        return at + 1


def answer_to(request: Message, document: dict[str, Any]) -> Message:
    """Returns a reply to `request` that no server has sent."""
    body = bytes(4) + b"\0" + bson.encode(document)
    return Message(_HEADER.pack(len(body) + 16, 0, request.request_id, OP_MSG) + body)


async def read_message(reader: StreamReader) -> Message:
    """Returns the next message. Raises `IncompleteReadError` at the end of the connection."""
    length = await reader.readexactly(4)
    return Message(length + await reader.readexactly(int.from_bytes(length, "little") - 4))
