"""ELF64 objects without a C toolchain: read what LLVM emits, combine several into one, write a relocatable `.o`.

All objects of a model become one `Image` of five blobs (text, rodata, data, bss, weights), one symbol table and one
list of relocations. `linker.py` makes a shared library of an Image. Format: System V ABI, and its x86-64 and AArch64
supplements.
"""
from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

X86_64, AARCH64 = 62, 183  # e_machine
EHDR, SHDR, SYM, RELA = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
PROGBITS, SYMTAB, STRTAB, SHT_RELA, NOBITS = 1, 2, 3, 4, 8
WRITE, ALLOC, EXEC, INFO_LINK = 1, 2, 4, 0x40
ET_REL, ET_DYN = 1, 3
KINDS = ("text", "rodata", "data", "bss", "weights")
FLAGS = {"text": ALLOC | EXEC, "rodata": ALLOC, "data": ALLOC | WRITE, "bss": ALLOC | WRITE, "weights": ALLOC}
SECTION_NAMES = {"text": ".text", "rodata": ".rodata", "data": ".data", "bss": ".bss", "weights": ".rodata.weights"}
FUNC, OBJECT = 2, 1
Bytes = bytes | bytearray | memoryview


class ElfError(Exception):
    """The bytes are no object that this module can read, or objects do not fit together."""


@dataclass(slots=True)
class Blob:
    """One section under construction: chunks that follow each other, never copied before they are written."""

    chunks: list[Bytes] = field(default_factory=list)
    size: int = 0
    align: int = 16

    def append(self, data: Bytes, align: int) -> int:
        """Offset at which `data` was put."""
        pad = -self.size % align
        if pad:
            self.chunks.append(bytes(pad))
        self.chunks.append(data)
        start, self.size = self.size + pad, self.size + pad + memoryview(data).nbytes
        self.align = max(self.align, align)
        return start

    def reserve(self, size: int, align: int) -> int:
        """Offset of `size` bytes without content (bss)."""
        start = self.size + -self.size % align
        self.size, self.align = start + size, max(self.align, align)
        return start


@dataclass(frozen=True, slots=True)
class Symbol:
    kind: str
    offset: int
    size: int
    type: int


@dataclass(frozen=True, slots=True)
class Reloc:
    """At `offset` of blob `kind`: a reference to the symbol `name`, or for "" to `target` (blob, offset); plus addend."""

    kind: str
    offset: int
    type: int
    name: str
    target: tuple[str, int]
    addend: int


@dataclass(slots=True)
class Image:
    machine: int
    blobs: dict[str, Blob] = field(default_factory=lambda: {k: Blob() for k in KINDS})
    symbols: dict[str, Symbol] = field(default_factory=dict)
    relocs: list[Reloc] = field(default_factory=list)

    def undefined(self) -> tuple[str, ...]:
        """Names that are referred to and not defined, in order of first use."""
        return tuple(dict.fromkeys(r.name for r in self.relocs if r.name and r.name not in self.symbols))

    def define(self, name: str, symbol: Symbol) -> None:
        if name in self.symbols:
            raise ElfError(f"symbol {name} is defined twice")
        self.symbols[name] = symbol

    def add_weights(self, name: str, arrays: Iterable[Bytes]) -> tuple[int, ...]:
        """Defines `name` as the arrays one after the other, each 64-byte aligned; their offsets from `name`."""
        blob = self.blobs["weights"]
        base = blob.append(b"", 64)
        offsets = tuple(blob.append(a, 64) - base for a in arrays)
        self.define(name, Symbol("weights", base, blob.size - base, OBJECT))
        return offsets


def combine(objects: Iterable[bytes]) -> Image:
    """One Image of several relocatable objects for the same machine. Raises ElfError."""
    image: Image | None = None
    for data in objects:
        try:
            image = _add(image, data)
        except (struct.error, IndexError, UnicodeDecodeError, ValueError) as e:
            raise ElfError(f"damaged object: {e}") from None
    if image is None:
        raise ElfError("no objects")
    return image


def _add(image: Image | None, data: bytes) -> Image:
    ident, kind, machine, _, _, _, shoff, _, _, _, _, _, shnum, shstr = EHDR.unpack_from(data)
    if ident[:6] != b"\x7fELF\x02\x01" or kind != ET_REL or machine not in (X86_64, AARCH64):
        raise ElfError("not a relocatable ELF64 object for x86-64 or AArch64")
    image = image or Image(machine)
    if machine != image.machine:
        raise ElfError("objects for different machines")
    headers = [SHDR.unpack_from(data, shoff + k * SHDR.size) for k in range(shnum)]
    names = _content(data, headers[shstr])
    placed = {k: p for k, h in enumerate(headers) if (p := _place(image, data, h, _string(names, h[0])))}
    symtab = next((h for h in headers if h[1] == SYMTAB), None)
    if symtab is None:
        return image
    strings = _content(data, headers[symtab[6]])
    targets: list[tuple[str, tuple[str, int]]] = []
    for name_at, info, _, section, value, size in SYM.iter_unpack(_content(data, symtab)):
        name = _string(strings, name_at)
        at = placed.get(section)
        if at and name and info & 15 in (FUNC, OBJECT) and info >> 4:
            image.define(name, Symbol(at[0], at[1] + value, size, info & 15))
        targets.append((name if info >> 4 else "", (at[0], at[1] + value) if at else ("", 0)))
    for h in headers:
        if h[1] == SHT_RELA and (at := placed.get(h[7])):
            for offset, info, addend in RELA.iter_unpack(_content(data, h)):
                name, target = targets[info >> 32]
                if not name and not target[0]:
                    raise ElfError("a relocation refers to a section that is not loaded")
                image.relocs.append(Reloc(at[0], at[1] + offset, info & 0xFFFFFFFF, name, target, addend))
    return image


def _place(image: Image, data: bytes, header: tuple[int, ...], name: str) -> tuple[str, int] | None:
    """(blob, offset) of a section that is loaded. Unwind tables are left out: kernels never unwind."""
    kind, flags, size, align = header[1], header[2], header[5], max(1, header[8])
    if not flags & ALLOC or name.startswith((".eh_frame", ".note")):
        return None
    if kind not in (PROGBITS, NOBITS) or flags & 0x400:
        raise ElfError(f"section {name} of type {kind} is not supported")
    if kind == NOBITS:
        return "bss", image.blobs["bss"].reserve(size, align)
    blob = "text" if flags & EXEC else "data" if flags & WRITE else "rodata"
    return blob, image.blobs[blob].append(_content(data, header), align)


def _content(data: bytes, header: tuple[int, ...]) -> bytes:
    start, size = header[4], header[5]
    if start + size > len(data):
        raise ElfError("damaged object: a section lies outside of the file")
    return data[start:start + size]


def _string(table: bytes, at: int) -> str:
    return table[at:table.index(b"\0", at)].decode()


class Strings:
    """A string table under construction."""

    def __init__(self) -> None:
        self.data, self._at = bytearray(b"\0"), {"": 0}

    def add(self, text: str) -> int:
        if text not in self._at:
            self._at[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self._at[text]


@dataclass(slots=True)
class File:
    """Chunks of a file in order, with the section headers to write at its end."""

    chunks: list[Bytes] = field(default_factory=list)
    size: int = 0
    headers: list[tuple[int, ...]] = field(default_factory=lambda: [(0,) * 10])
    names: Strings = field(default_factory=Strings)

    def put(self, data: Bytes | list[Bytes], align: int = 1) -> int:
        """Offset in the file at which `data` begins."""
        pad = -self.size % align
        parts = [bytes(pad), *(data if isinstance(data, list) else [data])]
        self.chunks += parts
        start = self.size + pad
        self.size += sum(memoryview(p).nbytes for p in parts)
        return start

    def section(self, name: str, kind: int, flags: int, address: int, at: int, size: int, *, link: int = 0, info: int = 0,
                align: int = 8, entry: int = 0) -> int:
        """Index of the new section header."""
        self.headers.append((self.names.add(name), kind, flags, address, at, size, link, info, align, entry))
        return len(self.headers) - 1

    def finish(self) -> tuple[int, int]:
        """Writes the section headers; (their offset, the index of the section of names)."""
        name = self.names.add(".shstrtab")
        at = self.put(bytes(self.names.data))
        self.headers.append((name, STRTAB, 0, 0, at, len(self.names.data), 0, 0, 1, 0))
        return self.put(b"".join(SHDR.pack(*h) for h in self.headers), 8), len(self.headers) - 1


def file_header(kind: int, machine: int, file: File, sections_at: int, names: int, programs: int = 0) -> bytes:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    return EHDR.pack(ident, kind, machine, 1, 0, EHDR.size if programs else 0, sections_at, 0, EHDR.size, 56 if programs else 0, programs,
                     SHDR.size, len(file.headers), names)


def relocatable(image: Image, exported: Collection[str]) -> list[Bytes]:
    """The Image as one `.o` file, in chunks. Symbols other than `exported` become local, so that several models link
    into one program."""
    file = File([bytes(EHDR.size)], EHDR.size)
    named = {s.kind for s in image.symbols.values()}  # of an empty part too, such as weights that nothing reads
    used = [k for k in KINDS if image.blobs[k].size or k == "text" or k in named]
    index = {}
    for k in used:
        b = image.blobs[k]
        at = file.put(b.chunks, b.align)
        index[k] = file.section(SECTION_NAMES[k], NOBITS if k == "bss" else PROGBITS, FLAGS[k], 0, at, b.size, align=b.align)
    symbols, number, local_count = _symbol_table(image, index, exported)
    strings = Strings()
    table = b"".join(SYM.pack(strings.add(name), info, 0, section, value, size) for name, info, section, value, size in symbols)
    strtab = file.section(".strtab", STRTAB, 0, 0, file.put(bytes(strings.data)), len(strings.data), align=1)
    symtab = file.section(".symtab", SYMTAB, 0, 0, file.put(table, 8), len(table), link=strtab, info=local_count, entry=SYM.size)
    for k in used:
        rela = b"".join(_rela(r, number, index) for r in image.relocs if r.kind == k)
        if rela:
            file.section(".rela" + SECTION_NAMES[k], SHT_RELA, INFO_LINK, 0, file.put(rela, 8), len(rela), link=symtab, info=index[k],
                         entry=RELA.size)
    file.section(".note.GNU-stack", PROGBITS, 0, 0, file.size, 0, align=1)
    sections_at, names = file.finish()
    file.chunks[0] = file_header(ET_REL, image.machine, file, sections_at, names)
    return file.chunks


def _symbol_table(image: Image, index: Mapping[str, int], exported: Collection[str],
                  ) -> tuple[list[tuple[str, int, int, int, int]], dict[str, int], int]:
    """(name, info, section, value, size) of each symbol, local ones first; name -> number; how many are local.
    Numbers 1, 2, … are the sections' own symbols, in the order of `index`."""
    missing = [x for x in exported if x not in image.symbols]
    if missing:
        raise ElfError(f"symbols to export are not defined: {', '.join(missing)}")
    rows = [("", 0, 0, 0, 0), *(("", 3, i, 0, 0) for i in index.values())]
    rows += [(n, s.type, index[s.kind], s.offset, s.size) for n, s in image.symbols.items() if n not in exported]
    local_count = len(rows)
    rows += [(n, 16 | s.type, index[s.kind], s.offset, s.size) for n, s in image.symbols.items() if n in exported]
    rows += [(n, 16, 0, 0, 0) for n in image.undefined()]
    return rows, {r[0]: k for k, r in enumerate(rows) if r[0]}, local_count


def _rela(r: Reloc, number: Mapping[str, int], index: Mapping[str, int]) -> bytes:
    if r.name:
        return RELA.pack(r.offset, number[r.name] << 32 | r.type, r.addend)
    section = list(index).index(r.target[0]) + 1
    return RELA.pack(r.offset, section << 32 | r.type, r.addend + r.target[1])
