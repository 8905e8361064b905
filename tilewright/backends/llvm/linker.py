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
_STUB = {X86_64: 16, AARCH64: 16}
# machine -> relocation types of the dynamic loader: (an address of this library + addend, the address of a symbol)
_RELATIVE, _GLOB_DAT = {X86_64: 8, AARCH64: 1027}, {X86_64: 6, AARCH64: 1025}
_X86_PC32, _X86_GOT = (2, 4), (9, 41, 42)
_ABS64 = {X86_64: 1, AARCH64: 257}
_ARM_LO12 = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}  # type -> log2 of the access's size
_ARM_GOT_PAGE, _ARM_GOT_LO12 = 311, 312
_ARM_BRANCH = {282: (26, 0), 283: (26, 0), 280: (19, 5), 279: (14, 5)}  # type -> (bits of the field, its position)


@dataclass(slots=True)
class _Layout:
    """Addresses: of each blob, of the stub and the GOT slot of each symbol that needs one."""

    image: Image
    base: dict[str, int] = field(default_factory=dict)
    stubs: dict[str, int] = field(default_factory=dict)
    got: dict[str, int] = field(default_factory=dict)
    dynamic: list[tuple[int, int, str, int]] = field(default_factory=list)  # address, type, symbol or "", addend

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
    unknown = [n for n in image.undefined() if n not in external]
    if unknown:
        raise ElfError(f"undefined symbols: {', '.join(unknown)}")
    page = PAGE[image.machine]
    lay = _Layout(image)
    outside = image.undefined()
    got_names = tuple(dict.fromkeys((*outside, *(r.name for r in image.relocs if _needs_got(image.machine, r.type)))))
    if "" in got_names:
        raise ElfError("a GOT relocation without a symbol")
    absolute = sum(r.type == _ABS64[image.machine] for r in image.relocs)
    tables = _Tables(image, exported, outside, soname)
    rela_size = (len(got_names) + absolute) * RELA.size
    head = 64 + 7 * PHDR.size
    at = {"hash": head + -head % 8}
    at["dynsym"] = at["hash"] + len(tables.hash) + -len(tables.hash) % 8
    at["dynstr"] = at["dynsym"] + (len(tables.names) + 1) * SYM.size
    at["rela"] = at["dynstr"] + len(tables.strings.data) + -len(tables.strings.data) % 8
    end = at["rela"] + rela_size
    blobs = image.blobs
    lay.base["text"] = end + -end % page
    stubs_at = lay.base["text"] + blobs["text"].size + -blobs["text"].size % 16
    stub_size = _STUB[image.machine]
    lay.stubs = {n: stubs_at + k * stub_size for k, n in enumerate(outside)}
    end = stubs_at + len(outside) * stub_size
    lay.base["rodata"] = end + -end % page
    end = lay.base["rodata"] + blobs["rodata"].size
    lay.base["data"] = end + -end % page
    got_at = lay.base["data"] + blobs["data"].size + -blobs["data"].size % 8
    lay.got = {n: got_at + 8 * k for k, n in enumerate(got_names)}
    dynamic_at = got_at + 8 * len(got_names)
    dynamic_size = 10 * DYN.size
    file_end = dynamic_at + dynamic_size
    lay.base["bss"] = file_end + -file_end % blobs["bss"].align
    end = lay.base["bss"] + blobs["bss"].size
    lay.base["weights"] = end + -end % page
    content = _relocated(lay)
    _fill_got(lay)
    dynamic = _dynamic(at, tables, lay, rela_size)
    # Every address equals its offset in the file, except that bss takes no room: `shift` is what the file saves.
    file = File([bytes(head)], head)
    file.put(bytes(tables.hash), 8)
    file.put(tables.symbols(lay), 8)
    file.put(bytes(tables.strings.data))
    file.put(b"".join(RELA.pack(a, (tables.names.index(n) + 1 if n else 0) << 32 | t, add) for a, t, n, add in lay.dynamic), 8)
    file.put(content["text"], page)
    file.put(b"".join(_stub(image.machine, lay.stubs[n], lay.got[n]) for n in outside), 16)
    file.put(content["rodata"], page)
    file.put(content["data"], page)
    file.put(bytes(8 * len(got_names)), 8)
    assert file.size == dynamic_at, "layout of the library"
    file.put(dynamic)
    weights_at = file.put(blobs["weights"].chunks, page)
    segments = _segments(lay, at["rela"] + rela_size, stubs_at + len(outside) * stub_size, dynamic_at, dynamic_size, weights_at)
    _describe_sections(file, lay, at, tables, rela_size, stubs_at, got_at, dynamic_at, dynamic_size, weights_at)
    sections_at, names = file.finish()
    file.chunks[0] = (file_header(ET_DYN, image.machine, file, sections_at, names, len(segments)) + b"".join(segments)).ljust(head, b"\0")
    return file.chunks


class _Tables:
    """Dynamic symbols: the exported ones and the undefined ones, with their names and hash table."""

    def __init__(self, image: Image, exported: Collection[str], outside: tuple[str, ...], soname: str) -> None:
        missing = [n for n in exported if n not in image.symbols]
        if missing:
            raise ElfError(f"symbols to export are not defined: {', '.join(missing)}")
        self.names = [*outside, *exported]
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


def _dynamic(at: dict[str, int], tables: _Tables, lay: _Layout, rela_size: int) -> bytes:
    entries = [(14, tables.soname), (4, at["hash"]), (5, at["dynstr"]), (6, at["dynsym"]), (10, len(tables.strings.data)), (11, SYM.size)]
    if lay.dynamic:
        entries += [(7, at["rela"]), (8, rela_size), (9, RELA.size)]
    return b"".join(DYN.pack(*e) for e in [*entries, (0, 0)]).ljust(10 * DYN.size, b"\0")


def _segments(lay: _Layout, head_end: int, text_end: int, dynamic_at: int, dynamic_size: int, weights_at: int) -> list[bytes]:
    """Program headers. Empty segments are left out: loaders refuse some of them."""
    blobs, base, page = lay.image.blobs, lay.base, PAGE[lay.image.machine]

    def load(flags: int, offset: int, address: int, in_file: int, in_memory: int) -> list[bytes]:
        return [PHDR.pack(1, flags, offset, address, address, in_file, in_memory, page)] if in_memory else []
    rw_end = base["bss"] + blobs["bss"].size if blobs["bss"].size else dynamic_at + dynamic_size
    return [
        *load(R, 0, 0, head_end, head_end),
        *load(RX, base["text"], base["text"], text_end - base["text"], text_end - base["text"]),
        *load(R, base["rodata"], base["rodata"], blobs["rodata"].size, blobs["rodata"].size),
        *load(RW, base["data"], base["data"], dynamic_at + dynamic_size - base["data"], rw_end - base["data"]),
        *load(R, weights_at, base["weights"], blobs["weights"].size, blobs["weights"].size),
        PHDR.pack(2, RW, dynamic_at, dynamic_at, dynamic_at, dynamic_size, dynamic_size, 8),
        PHDR.pack(0x6474E551, RW, 0, 0, 0, 0, 0, 16),
    ]


def _describe_sections(file: File, lay: _Layout, at: dict[str, int], tables: _Tables, rela_size: int, stubs_at: int, got_at: int,
                       dynamic_at: int, dynamic_size: int, weights_at: int) -> None:
    """Section headers, which loaders ignore and nm, objdump and debuggers read. The blobs come first: `_Tables.symbols`
    counts on it."""
    blobs, base = lay.image.blobs, lay.base
    for k, flags in (("text", ALLOC | EXEC), ("rodata", ALLOC), ("data", ALLOC | WRITE), ("bss", ALLOC | WRITE), ("weights", ALLOC)):
        kind = NOBITS if k == "bss" else PROGBITS
        where = weights_at if k == "weights" else dynamic_at + dynamic_size if k == "bss" else base[k]
        file.section(SECTION_NAMES[k], kind, flags, base[k], where, blobs[k].size, align=blobs[k].align)
    dynstr = file.section(".dynstr", STRTAB, ALLOC, at["dynstr"], at["dynstr"], len(tables.strings.data), align=1)
    dynsym = file.section(".dynsym", 11, ALLOC, at["dynsym"], at["dynsym"], (len(tables.names) + 1) * SYM.size, link=dynstr, info=1,
                          entry=SYM.size)
    file.section(".hash", 5, ALLOC, at["hash"], at["hash"], len(tables.hash), link=dynsym, entry=4)
    if rela_size:
        file.section(".rela.dyn", SHT_RELA, ALLOC, at["rela"], at["rela"], rela_size, link=dynsym, entry=RELA.size)
    if lay.stubs:
        file.section(".plt", PROGBITS, ALLOC | EXEC, stubs_at, stubs_at, len(lay.stubs) * _STUB[lay.image.machine], align=16)
    if lay.got:
        file.section(".got", PROGBITS, ALLOC | WRITE, got_at, got_at, 8 * len(lay.got), entry=8)
    file.section(".dynamic", 6, ALLOC | WRITE, dynamic_at, dynamic_at, dynamic_size, link=dynstr, entry=DYN.size)
    symbols = [(n, s) for n, s in lay.image.symbols.items() if s.type == FUNC]
    strings = Strings()
    rows = [bytes(SYM.size), *(SYM.pack(strings.add(n), s.type, 0, KINDS.index(s.kind) + 1, lay.symbol(n), s.size) for n, s in symbols)]
    strtab = file.section(".strtab", STRTAB, 0, 0, file.put(bytes(strings.data)), len(strings.data), align=1)
    file.section(".symtab", 2, 0, 0, file.put(b"".join(rows), 8), len(rows) * SYM.size, link=strtab, info=len(rows), entry=SYM.size)
