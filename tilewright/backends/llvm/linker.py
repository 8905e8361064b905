"""An Image as a shared library: layout, relocation, dynamic section.

    [headers .hash .dynsym .dynstr .rela.dyn] R   [.text .plt] RX   [.rodata] R   [.data .got .dynamic .bss] RW   [weights] R

Handles the relocations that LLVM emits for position-independent code in the small code model. Undefined functions
(memcpy and its like, which LLVM makes of loops) are bound by the dynamic loader through the GOT.
"""
from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass, field

from .elf import (
    AARCH64,
    ALLOC,
    ET_DYN,
    EXEC,
    FLAGS,
    FUNC,
    KINDS,
    NOBITS,
    PROGBITS,
    RELA,
    SECTION_NAMES,
    SHT_RELA,
    STRTAB,
    SYM,
    WRITE,
    X86_64,
    Bytes,
    ElfError,
    File,
    Image,
    Reloc,
    Strings,
    file_header,
)

PHDR, DYN = struct.Struct("<IIQQQQQQ"), struct.Struct("<qQ")
R, RX, RW = 4, 5, 6
PAGE = {X86_64: 0x1000, AARCH64: 0x10000}
_STUB = 16  # bytes
_HEAD, _DYNAMIC_ENTRIES = 64 + 7 * PHDR.size, 10
# machine -> relocation types of the dynamic loader: (an address of this library + addend, the address of a symbol)
_RELATIVE, _GLOB_DAT = {X86_64: 8, AARCH64: 1027}, {X86_64: 6, AARCH64: 1025}
_X86_PC32, _X86_GOT = (2, 4), (9, 41, 42)
_ABS64 = {X86_64: 1, AARCH64: 257}
_ARM_LO12 = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}  # type -> log2 of the access's size
_ARM_GOT_PAGE, _ARM_GOT_LO12 = 311, 312
_ARM_BRANCH = {282: (26, 0), 283: (26, 0), 280: (19, 5), 279: (14, 5)}  # type -> (bits of the field, its position)


@dataclass(slots=True)
class _Layout:
    """Addresses. Each equals its offset in the file, except for the weights, which follow bss, that takes no room there.

    base: of each blob. at: of the tables ("hash", "dynsym", "dynstr", "rela", "stubs", "got", "dynamic"), and "…_end".
    stubs, got: of the stub and the GOT slot of each symbol that has one. dynamic: (address, type, symbol or "", addend)
    of each relocation that is left to the loader."""

    image: Image
    tables: _Tables
    base: dict[str, int] = field(default_factory=dict)
    at: dict[str, int] = field(default_factory=dict)
    stubs: dict[str, int] = field(default_factory=dict)
    got: dict[str, int] = field(default_factory=dict)
    dynamic: list[tuple[int, int, str, int]] = field(default_factory=list)
    weights_offset: int = 0

    def address(self, r: Reloc) -> int:
        """S: of what the relocation refers to; of its stub when that lies outside."""
        if r.name in self.stubs:
            return self.stubs[r.name]
        return self.symbol(r.name) if r.name else self.base[r.target[0]] + r.target[1]

    def symbol(self, name: str) -> int:
        s = self.image.symbols.get(name)
        if s is None:
            raise ElfError(f"undefined symbol {name} is used as data")
        return self.base[s.kind] + s.offset


def shared_library(image: Image, exported: Collection[str], soname: str, external: Collection[str] = ()) -> list[Bytes]:
    """The file, in chunks. `external`: undefined symbols that the process provides. Raises ElfError for others."""
    outside = image.undefined()
    if unknown := [n for n in outside if n not in external]:
        raise ElfError(f"undefined symbols: {', '.join(unknown)}")
    lay = _lay_out(image, _Tables(image, exported, outside, soname))
    content = _relocated(lay)
    _fill_got(lay)
    file = _write(lay, content)
    segments = _segments(lay)
    _describe_sections(file, lay)
    sections_at, names = file.finish()
    head = file_header(ET_DYN, image.machine, file, sections_at, names, len(segments)) + b"".join(segments)
    file.chunks[0] = head.ljust(_HEAD, b"\0")
    return file.chunks


def _lay_out(image: Image, tables: _Tables) -> _Layout:
    page, blobs, lay = PAGE[image.machine], image.blobs, _Layout(image, tables)
    got_names = tuple(dict.fromkeys((*tables.outside, *(r.name for r in image.relocs if _needs_got(image.machine, r.type)))))
    if "" in got_names:
        raise ElfError("a GOT relocation without a symbol")
    absolute = sum(r.type == _ABS64[image.machine] for r in image.relocs)
    end = _HEAD

    def place(size: int, align: int) -> int:
        nonlocal end
        start = end + -end % align
        end = start + size
        return start

    def table(name: str, size: int, align: int) -> int:
        lay.at[name] = place(size, align)
        lay.at[f"{name}_end"] = end
        return lay.at[name]
    table("hash", len(tables.hash), 8)
    table("dynsym", (len(tables.names) + 1) * SYM.size, 8)
    table("dynstr", len(tables.strings.data), 1)
    table("rela", (len(got_names) + absolute) * RELA.size, 8)
    lay.base["text"] = place(blobs["text"].size, page)
    stubs = table("stubs", len(tables.outside) * _STUB, 16)
    lay.stubs = {n: stubs + k * _STUB for k, n in enumerate(tables.outside)}
    lay.base["rodata"] = place(blobs["rodata"].size, page)
    lay.base["data"] = place(blobs["data"].size, page)
    got = table("got", 8 * len(got_names), 8)
    lay.got = {n: got + 8 * k for k, n in enumerate(got_names)}
    table("dynamic", _DYNAMIC_ENTRIES * DYN.size, 8)
    lay.base["bss"] = place(blobs["bss"].size, blobs["bss"].align)
    lay.base["weights"] = place(blobs["weights"].size, page)
    return lay


def _write(lay: _Layout, content: dict[str, bytearray]) -> File:
    image, tables, page = lay.image, lay.tables, PAGE[lay.image.machine]
    number = {n: k for k, n in enumerate(tables.names, 1)}
    file = File([bytes(_HEAD)], _HEAD)
    file.put(tables.hash, 8)
    file.put(tables.symbols(lay), 8)
    file.put(bytes(tables.strings.data))
    file.put(b"".join(RELA.pack(a, number.get(n, 0) << 32 | t, add) for a, t, n, add in lay.dynamic), 8)
    file.put(content["text"], page)
    file.put(b"".join(_stub(image.machine, lay.stubs[n], lay.got[n]) for n in tables.outside), 16)
    file.put(content["rodata"], page)
    file.put(content["data"], page)
    file.put(bytes(8 * len(lay.got)), 8)
    placed = file.put(_dynamic(lay), 8)
    assert placed == lay.at["dynamic"] and file.size == lay.at["dynamic_end"], "layout of the library"
    lay.weights_offset = file.put(image.blobs["weights"].chunks, page)
    return file


class _Tables:
    """Dynamic symbols: the exported ones and the undefined ones, with their names and hash table."""

    def __init__(self, image: Image, exported: Collection[str], outside: tuple[str, ...], soname: str) -> None:
        missing = [n for n in exported if n not in image.symbols]
        if missing:
            raise ElfError(f"symbols to export are not defined: {', '.join(missing)}")
        self.outside, self.names = outside, [*outside, *exported]
        self.strings = Strings()
        self.soname = self.strings.add(soname)
        for n in self.names:
            self.strings.add(n)
        self.hash = self._hash()

    def _hash(self) -> bytes:
        """System V hash table with about one bucket for each symbol."""
        buckets, chain = [0] * max(1, len(self.names)), [0] * (len(self.names) + 1)
        for k, n in enumerate(self.names, 1):
            h = 0
            for c in n.encode():
                h = (h << 4) + c
                g = h & 0xF0000000
                h = (h ^ g >> 24) & ~g & 0xFFFFFFFF
            b = h % len(buckets)
            chain[k], buckets[b] = buckets[b], k
        return struct.pack(f"<II{len(buckets)}I{len(chain)}I", len(buckets), len(chain), *buckets, *chain)

    def symbols(self, lay: _Layout) -> bytes:
        rows = [bytes(SYM.size)]
        for n in self.names:
            s = lay.image.symbols.get(n)
            row = (16, 0, 0, 0, 0) if s is None else (16 | s.type, 0, KINDS.index(s.kind) + 1, lay.symbol(n), s.size)
            rows.append(SYM.pack(self.strings.add(n), *row))
        return b"".join(rows)


def _needs_got(machine: int, kind: int) -> bool:
    return kind in (_X86_GOT if machine == X86_64 else (_ARM_GOT_PAGE, _ARM_GOT_LO12))


def _relocated(lay: _Layout) -> dict[str, bytearray]:
    content = {k: bytearray(b"".join(lay.image.blobs[k].chunks)) for k in ("text", "rodata", "data")}
    apply = _apply_x86 if lay.image.machine == X86_64 else _apply_arm
    for r in lay.image.relocs:
        place = lay.base[r.kind] + r.offset
        if r.type == _ABS64[lay.image.machine]:
            if r.kind != "data":
                raise ElfError("an absolute address in read-only memory")
            lay.dynamic.append((place, _RELATIVE[lay.image.machine], "", lay.address(r) + r.addend))
        else:
            apply(lay, r, content[r.kind], place)
    return content


def _apply_x86(lay: _Layout, r: Reloc, data: bytearray, place: int) -> None:
    if r.type in _X86_PC32:
        value = lay.address(r) + r.addend - place
    elif r.type in _X86_GOT:
        value = lay.got[r.name] + r.addend - place
    elif r.type == 24:  # R_X86_64_PC64
        struct.pack_into("<q", data, r.offset, lay.address(r) + r.addend - place)
        return
    else:
        raise ElfError(f"x86-64 relocation type {r.type} is not supported")
    if not -(1 << 31) <= value < 1 << 31:
        raise ElfError("the library is larger than 2 GiB, which its code cannot address")
    struct.pack_into("<i", data, r.offset, value)


def _apply_arm(lay: _Layout, r: Reloc, data: bytearray, place: int) -> None:
    def patch(mask: int, bits: int) -> None:
        word, = struct.unpack_from("<I", data, r.offset)
        struct.pack_into("<I", data, r.offset, word & ~mask | bits & mask)

    target = (lay.got[r.name] if _needs_got(AARCH64, r.type) else lay.address(r)) + r.addend
    if r.type in _ARM_BRANCH:
        bits, shift = _ARM_BRANCH[r.type]
        distance = _in_range(target - place >> 2, bits)
        patch((1 << bits) - 1 << shift, distance << shift)
    elif r.type in (275, 276, _ARM_GOT_PAGE):
        pages = _in_range((target >> 12) - (place >> 12), 21)
        patch(0x60FFFFE0, (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5)
    elif r.type == 274:  # ADR_PREL_LO21
        distance = _in_range(target - place, 21)
        patch(0x60FFFFE0, (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5)
    elif r.type in _ARM_LO12:
        patch(0xFFF << 10, ((target & 0xFFF) >> _ARM_LO12[r.type]) << 10)
    elif r.type == _ARM_GOT_LO12:
        patch(0xFFF << 10, ((target & 0xFFF) >> 3) << 10)
    elif r.type in (261, 314):  # PREL32, PLT32
        struct.pack_into("<i", data, r.offset, _in_range(target - place, 32))
    elif r.type == 260:  # PREL64
        struct.pack_into("<q", data, r.offset, target - place)
    else:
        raise ElfError(f"AArch64 relocation type {r.type} is not supported")


def _in_range(value: int, bits: int) -> int:
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ElfError("the library is larger than its code can address")
    return value


def _fill_got(lay: _Layout) -> None:
    machine = lay.image.machine
    for name, at in lay.got.items():
        if name in lay.image.symbols:
            lay.dynamic.append((at, _RELATIVE[machine], "", lay.symbol(name)))
        else:
            lay.dynamic.append((at, _GLOB_DAT[machine], name, 0))


def _stub(machine: int, place: int, slot: int) -> bytes:
    """Jump to the address in a GOT slot."""
    if machine == X86_64:
        return (b"\xff\x25" + struct.pack("<i", slot - place - 6)).ljust(16, b"\xcc")  # jmp *slot(%rip)
    pages = (slot >> 12) - (place >> 12)
    adrp = 0x90000010 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5  # adrp x16, slot
    return struct.pack("<IIII", adrp, 0xF9400211 | (slot & 0xFFF) >> 3 << 10, 0xD61F0220, 0xD503201F)  # ldr x17, [x16]; br x17; nop


def _dynamic(lay: _Layout) -> bytes:
    at, tables = lay.at, lay.tables
    entries = [(14, tables.soname), (4, at["hash"]), (5, at["dynstr"]), (6, at["dynsym"]), (10, len(tables.strings.data)), (11, SYM.size)]
    if lay.dynamic:
        entries += [(7, at["rela"]), (8, at["rela_end"] - at["rela"]), (9, RELA.size)]
    assert len(entries) < _DYNAMIC_ENTRIES
    return b"".join(DYN.pack(*e) for e in entries).ljust(_DYNAMIC_ENTRIES * DYN.size, b"\0")


def _segments(lay: _Layout) -> list[bytes]:
    """Program headers. Empty segments are left out: loaders refuse some of them."""
    blobs, base, at = lay.image.blobs, lay.base, lay.at

    def load(flags: int, address: int, end: int, memory_end: int = 0, offset: int | None = None) -> list[bytes]:
        where, size = address if offset is None else offset, end - address
        row = (1, flags, where, address, address, size, max(size, memory_end - address), PAGE[lay.image.machine])
        return [PHDR.pack(*row)] if size else []
    bss_end = base["bss"] + blobs["bss"].size if blobs["bss"].size else 0
    dynamic_size = at["dynamic_end"] - at["dynamic"]
    return [
        *load(R, 0, at["rela_end"]),
        *load(RX, base["text"], at["stubs_end"]),
        *load(R, base["rodata"], base["rodata"] + blobs["rodata"].size),
        *load(RW, base["data"], at["dynamic_end"], bss_end),
        *load(R, base["weights"], base["weights"] + blobs["weights"].size, offset=lay.weights_offset),
        PHDR.pack(2, RW, *[at["dynamic"]] * 3, dynamic_size, dynamic_size, 8),
        PHDR.pack(0x6474E551, RW, 0, 0, 0, 0, 0, 16),  # PT_GNU_STACK: not executable
    ]


def _describe_sections(file: File, lay: _Layout) -> None:
    """Section headers, which loaders ignore and nm, objdump and debuggers read. The blobs come first: `_Tables.symbols`
    counts on it."""
    blobs, base, at = lay.image.blobs, lay.base, lay.at
    for k in KINDS:
        where = {"weights": lay.weights_offset, "bss": at["dynamic_end"]}.get(k, base[k])
        file.section(SECTION_NAMES[k], NOBITS if k == "bss" else PROGBITS, FLAGS[k], base[k], where, blobs[k].size, align=blobs[k].align)

    def table(name: str, key: str, kind: int, flags: int = ALLOC, link: int = 0, info: int = 0, entry: int = 0) -> int:
        size = at[f"{key}_end"] - at[key]
        return file.section(name, kind, flags, at[key], at[key], size, link=link, info=info, entry=entry) if size else 0
    dynstr = table(".dynstr", "dynstr", STRTAB)
    dynsym = table(".dynsym", "dynsym", 11, link=dynstr, info=1, entry=SYM.size)
    table(".hash", "hash", 5, link=dynsym, entry=4)
    table(".rela.dyn", "rela", SHT_RELA, link=dynsym, entry=RELA.size)
    table(".plt", "stubs", PROGBITS, ALLOC | EXEC)
    table(".got", "got", PROGBITS, ALLOC | WRITE, entry=8)
    table(".dynamic", "dynamic", 6, ALLOC | WRITE, link=dynstr, entry=DYN.size)
    functions = [(n, s) for n, s in lay.image.symbols.items() if s.type == FUNC]
    strings = Strings()
    rows = [bytes(SYM.size), *(SYM.pack(strings.add(n), s.type, 0, KINDS.index(s.kind) + 1, lay.symbol(n), s.size) for n, s in functions)]
    strtab = file.section(".strtab", STRTAB, 0, 0, file.put(bytes(strings.data)), len(strings.data), align=1)
    file.section(".symtab", 2, 0, 0, file.put(b"".join(rows), 8), len(rows) * SYM.size, link=strtab, info=len(rows), entry=SYM.size)
