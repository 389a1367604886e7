"""A codec for tests: not secret, but its bytes show nothing of what went in, and it knows its own."""

from __future__ import annotations

__all__ = ["Mask"]


class Mask:
    """Masks bytes with a key of 1 to 255; refuses what another key has masked."""

    def __init__(self, key: int = 0x5A) -> None:
        self.key = key

    def encode(self, data: bytes, /) -> bytes:
        return bytes([self.key]) + bytes(byte ^ self.key for byte in data)

    def decode(self, data: bytes, /) -> bytes:
        if data[:1] != bytes([self.key]):
            raise ValueError("masked with another key")
        return bytes(byte ^ self.key for byte in data[1:])

    def __repr__(self) -> str:
        return f"Mask(key={self.key})"
