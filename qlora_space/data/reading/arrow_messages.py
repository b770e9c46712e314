"""How much a message of an Arrow stream unpacks to, read from its FlatBuffers header and its buffers."""

import struct

_HEADER_TYPE, _HEADER = 1, 2  # the fields of Message
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # its kinds of header
_BATCH_OF_DICTIONARY = 1  # the field of DictionaryBatch
_BUFFERS, _COMPRESSION = 2, 3  # the fields of RecordBatch
_NOT_PACKED = -1  # in front of a buffer that is stored as it is


def unpacked_bytes(metadata: bytes, body: memoryview) -> int:
    """Bytes that have to be unpacked, 0 if it is stored as it is. Raises ValueError for a damaged header."""
    try:
        return _unpacked(metadata, body)
    except struct.error as error:
        raise ValueError("a batch has a damaged header") from error


def _unpacked(metadata: bytes, body: memoryview) -> int:
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
    return length if size == _NOT_PACKED else max(0, size)


def _field(data: bytes, table: int, index: int) -> int:
    """Where a field of a table stands; 0 if it has its default."""
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
