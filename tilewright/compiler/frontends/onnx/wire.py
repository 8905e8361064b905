"""Takes the large weights out of a serialised ModelProto without parsing or copying them.

Parsing a 500 MB file with protobuf copies it twice. Here the wire format of the few outer levels is scanned, the
initializers' `raw_data` become views of the file's bytes, and only the small rest is given to protobuf. Anything
unusual makes `split_weights` return None, and the whole file is parsed the ordinary way.

Source: https://protobuf.dev/programming-guides/encoding/ and onnx.proto (field numbers below).
"""
from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
LARGE = 1 << 12  # smaller tensors stay in the proto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Unusual(Exception):
    """Not the plain structure expected here."""


def split_weights(data: bytes | mmap) -> tuple[bytes, dict[int, memoryview]] | None:
    """(the model without its large weights, index of initializer -> its raw_data), or None: parse `data` as it is."""
    view = memoryview(data)
    try:
        model = list(_fields(view, 0, len(view)))
        graphs = [f for f in model if f[0] == MODEL_GRAPH]
        if len(graphs) != 1 or graphs[0][1] != _BYTES:
            return None
        _, _, start, body, end = graphs[0]
        graph, weights = _strip_graph(view, body, end)
    except _Unusual:
        return None
    if not weights:
        return None
    return b"".join((view[:start], _bytes_header(MODEL_GRAPH, len(graph)), graph, view[end:])), weights


def _strip_graph(view: memoryview, start: int, end: int) -> tuple[bytes, dict[int, memoryview]]:
    pieces: list[bytes | memoryview] = []
    weights: dict[int, memoryview] = {}
    index, copied = 0, start
    for number, kind, field_start, body, field_end in _fields(view, start, end):
        if number != GRAPH_INITIALIZER:
            continue
        if kind == _BYTES and field_end - body > LARGE:
            raw = [f for f in _fields(view, body, field_end) if f[0] == TENSOR_RAW_DATA]
            if len(raw) == 1 and raw[0][1] == _BYTES:
                _, _, raw_start, raw_body, raw_end = raw[0]
                weights[index] = view[raw_body:raw_end]
                rest = bytes(view[body:raw_start]) + bytes(view[raw_end:field_end])
                pieces += [view[copied:field_start], _bytes_header(GRAPH_INITIALIZER, len(rest)), rest]
                copied = field_end
        index += 1
    pieces.append(view[copied:end])
    return b"".join(pieces), weights


def _fields(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(field number, wire type, start of the tag, start of the payload, end) of each field in view[at:end]."""
    while at < end:
        start = at
        tag, at = _varint(view, at, end)
        kind = tag & 7
        body = at
        if kind == _VARINT:
            _, at = _varint(view, at, end)
        elif kind == _FIXED64:
            at += 8
        elif kind == _BYTES:
            size, body = _varint(view, at, end)
            at = body + size
        elif kind == _FIXED32:
            at += 4
        else:
            raise _Unusual
        if at > end:
            raise _Unusual
        yield tag >> 3, kind, start, body, at


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = view[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise _Unusual


def _bytes_header(number: int, size: int) -> bytes:
    out = bytearray()
    for value in (number << 3 | _BYTES, size):
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)
