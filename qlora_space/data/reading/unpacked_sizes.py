"""How much the pages of a Parquet file and the batches of an Arrow stream unpack to.

Read from the headers of pages and buffers before anything is unpacked: a file's footer may claim anything.
Of a Parquet page that is a Thrift struct in the compact protocol, of an Arrow message a FlatBuffers table.
"""

import struct
from typing import BinaryIO

_MAX_HEADER_BYTES = 2**16  # statistics in a header hold two values, which writers cut short
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY = 0, 1, 2, 3, 7, 8
_INTEGERS, _LISTS, _STRUCT = (4, 5, 6), (9, 10), 12
_UNCOMPRESSED, _COMPRESSED = 2, 3  # the fields of PageHeader
_MAX_DEPTH = 8

# Arrow: numbers of FlatBuffers fields.
_HEADER_TYPE, _HEADER = 1, 2  # the fields of Message
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # its types of header
_BATCH_OF_DICTIONARY = 1  # the field of DictionaryBatch
_BUFFERS, _COMPRESSION = 2, 3  # the fields of RecordBatch
_NOT_COMPRESSED = -1  # in front of a buffer that is stored as it is


class _ThriftReader:
    """The compact protocol of Thrift, as far as page headers use it."""

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
        """The integer fields by number; everything else is skipped."""
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
            raise ValueError("an unknown type of field")

    def _skip_list(self, depth: int) -> None:
        head = self.byte()
        count = head >> 4 if head >> 4 < 15 else self.varint()
        if count > len(self.data):
            raise ValueError("a list that is too long")
        for _ in range(count):
            self.skip(head & 15, depth + 1)


def largest_parquet_page(
    stream: BinaryIO, start: int, num_bytes: int, max_pages: int | None = None
) -> int:
    """Unpacked bytes of the largest page among the first `max_pages` of a column chunk.

    `start`, `num_bytes`: where the chunk is in `stream`. Raises ValueError for damaged pages.
    """
    largest, end, seen = 0, start + num_bytes, 0
    while start < end and seen != max_pages:
        seen += 1
        stream.seek(start)
        reader = _ThriftReader(stream.read(min(_MAX_HEADER_BYTES, end - start)))
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


def arrow_batch_bytes(metadata: bytes, body: memoryview) -> int:
    """Bytes that a message of an Arrow stream unpacks to; 0 if it is not compressed.

    Raises ValueError for a damaged header.
    """
    try:
        return _batch_bytes(metadata, body)
    except struct.error as error:
        raise ValueError("a batch has a damaged header") from error


def _batch_bytes(metadata: bytes, body: memoryview) -> int:
    message = _int(metadata, 0, "<I")
    kind = _field(metadata, message, _HEADER_TYPE)
    header = _field(metadata, message, _HEADER)
    if not kind or not header:
        return 0
    batch = _follow(metadata, header)
    if metadata[kind] == _DICTIONARY_BATCH:
        batch = _follow(metadata, _field(metadata, batch, _BATCH_OF_DICTIONARY))
    elif metadata[kind] != _RECORD_BATCH:
        return 0
    buffers = _field(metadata, batch, _BUFFERS)
    if not _field(metadata, batch, _COMPRESSION) or not buffers:
        return 0
    vector = _follow(metadata, buffers)
    count = min(_int(metadata, vector, "<I"), len(metadata) // 16)
    return sum(_buffer_bytes(metadata, body, vector + 4 + 16 * index) for index in range(count))


def _buffer_bytes(metadata: bytes, body: memoryview, at: int) -> int:
    offset, length = struct.unpack_from("<qq", metadata, at)
    if length < 8:
        return 0
    if not 0 <= offset <= len(body) - 8:
        raise ValueError("a buffer lies outside its batch")
    (size,) = struct.unpack_from("<q", body, offset)
    return length if size == _NOT_COMPRESSED else max(0, size)


def _field(data: bytes, table: int, index: int) -> int:
    """Position of a field of a table; 0 if it has its default."""
    vtable = table - _int(data, table, "<i")
    entry = 4 + 2 * index
    if vtable < 0 or entry >= _int(data, vtable, "<H"):
        return 0
    offset = _int(data, vtable + entry, "<H")
    return table + offset if offset else 0


def _follow(data: bytes, at: int) -> int:
    return at + _int(data, at, "<I")


def _int(data: bytes, at: int, kind: str) -> int:
    return struct.unpack_from(kind, data, at)[0]
