"""Sizes of the pages of a Parquet file, from the pages' own headers: the footer may say anything.

A header is a Thrift struct in the compact protocol; only its first fields are needed.
"""

from typing import BinaryIO

_HEADER_BYTES = 2**16  # statistics in a header hold two values, which writers cut short
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY = 0, 1, 2, 3, 7, 8
_INTEGERS, _LISTS, _STRUCT = (4, 5, 6), (9, 10), 12
_UNCOMPRESSED, _COMPRESSED = 2, 3  # the fields of PageHeader
_MAX_DEPTH = 8


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def signed(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, int]:
        """The integer fields; everything else is passed over."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        fields: dict[int, int] = {}
        number = 0
        while (head := self.byte()) != _STOP:
            number = number + (head >> 4) if head >> 4 else self.signed()
            if head & 15 in _INTEGERS:
                fields[number] = self.signed()
            elif head & 15 not in (_TRUE, _FALSE):
                self.skip(head & 15, depth)
        return fields

    def skip(self, kind: int, depth: int) -> None:
        if kind in _INTEGERS:
            self.varint()
        elif kind in (_BYTE, _TRUE, _FALSE):
            self.at += 1
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self.varint()  # moves on by itself
            self.at += length
        elif kind == _STRUCT:
            self.struct(depth + 1)
        elif kind in _LISTS:
            self._skip_list(depth)
        else:
            raise ValueError("an unknown kind of field")

    def _skip_list(self, depth: int) -> None:
        head = self.byte()
        count = head >> 4 if head >> 4 < 15 else self.varint()
        if count > len(self.data):
            raise ValueError("a list that is too long")
        for _ in range(count):
            self.skip(head & 15, depth + 1)


def largest_page(stream: BinaryIO, start: int, num_bytes: int, most: int | None = None) -> int:
    """Bytes of the largest unpacked page among the first `most` of a column chunk.

    Raises ValueError for damaged ones.
    """
    largest, end, seen = 0, start + num_bytes, 0
    while start < end and seen != most:
        seen += 1
        stream.seek(start)
        reader = _Reader(stream.read(min(_HEADER_BYTES, end - start)))
        try:
            fields = reader.struct()
            unpacked, packed = fields[_UNCOMPRESSED], fields[_COMPRESSED]
        except (IndexError, KeyError) as error:
            raise ValueError("a page has no whole header") from error
        if packed < 0 or unpacked < 0:
            raise ValueError("a page has a negative size")
        largest = max(largest, unpacked)
        start += reader.at + packed
    return largest
