"""A flat code image: relocatable objects linked into one position-independent block of bytes.

Generated code refers to nothing outside itself, so linking is laying sections one after another and patching pc-relative
references. The image can be mapped anywhere, executable and read-only, without a loader.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Section, SymbolTableSection

from compiler.errors import InternalError

_PC32 = {2, 4}
"""R_X86_64_PC32 and R_X86_64_PLT32 (AMD64 ABI supplement, table 4.9): symbol + addend - place, 32 bits."""


@dataclass(frozen=True)
class Image:
    """Machine code and its read-only data; ``entries`` are the byte offsets of the functions that may be called from outside."""

    code: bytes
    entries: dict[str, int]


def link(objects: Sequence[bytes], entries: Sequence[str]) -> Image:
    """One image of all objects. Raises InternalError for a symbol none of them defines or a relocation that is not pc-relative."""
    files = [ELFFile(io.BytesIO(data)) for data in objects]
    code = bytearray()
    placed: dict[tuple[int, int], int] = {}
    for number, elf in enumerate(files):
        for index, section in enumerate(elf.iter_sections()):
            if _is_loaded(section):
                align = max(section["sh_addralign"], 1)
                code += bytes(-len(code) % align)
                placed[number, index] = len(code)
                code += section.data()
    symbols = _global_symbols(files, placed)
    for number, elf in enumerate(files):
        for section in elf.iter_sections():
            if isinstance(section, RelocationSection) and (number, section["sh_info"]) in placed:
                _relocate(code, elf, section, number, placed, symbols)
    missing = [name for name in entries if name not in symbols]
    if missing:
        raise InternalError(f"entry points {missing} are not defined", where="backends.llvm.image")
    return Image(bytes(code), {name: symbols[name] for name in entries})


def _is_loaded(section: Section) -> bool:
    flags = section["sh_flags"]
    if not flags & SH_FLAGS.SHF_ALLOC or section.name.startswith(".eh_frame"):
        return False
    if flags & SH_FLAGS.SHF_WRITE and section["sh_size"]:
        raise InternalError(f"generated code has writable data in {section.name}", where="backends.llvm.image")
    return section["sh_type"] == "SHT_PROGBITS"


def _symbol_table(elf: ELFFile) -> SymbolTableSection:
    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        raise InternalError("object file has no symbol table", where="backends.llvm.image")
    return table


def _global_symbols(files: Sequence[ELFFile], placed: dict[tuple[int, int], int]) -> dict[str, int]:
    symbols = {}
    for number, elf in enumerate(files):
        for symbol in _symbol_table(elf).iter_symbols():
            base = placed.get((number, symbol["st_shndx"]))
            if base is not None and symbol["st_info"]["bind"] == "STB_GLOBAL":
                symbols[symbol.name] = base + symbol["st_value"]
    return symbols


def _relocate(
    code: bytearray, elf: ELFFile, section: RelocationSection, number: int, placed: dict[tuple[int, int], int], symbols: dict[str, int]
) -> None:
    base, table = placed[number, section["sh_info"]], _symbol_table(elf)
    for relocation in section.iter_relocations():
        symbol = table.get_symbol(relocation["r_info_sym"])
        local = placed.get((number, symbol["st_shndx"]))
        value = symbols.get(symbol.name) if local is None else local + symbol["st_value"]
        if value is None:
            raise InternalError(f"generated code calls {symbol.name}, which it does not contain", where="backends.llvm.image")
        if relocation["r_info_type"] not in _PC32:
            raise InternalError(f"relocation type {relocation['r_info_type']} is not pc-relative", where="backends.llvm.image")
        place = base + relocation["r_offset"]
        code[place : place + 4] = (value + relocation["r_addend"] - place).to_bytes(4, "little", signed=True)
