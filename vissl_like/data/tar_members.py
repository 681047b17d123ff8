"""Goes through the headers of a tar archive (ustar, GNU or pax) without trusting them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
LONGEST_EXTRA = 2**20
"""Bytes of a long name or of pax records (which precede a header) above which an archive counts as damaged."""

_READ_AHEAD = 4096  # a header, a small member behind it, and the next header in one call
_END_PADDING = 2**16
_END = bytes(BLOCK)
_REGULAR, _UNUSED = b"\0" + b"07", b"123456"
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class DamagedTar(Exception):
    """An archive that cannot be read further; the text says where and why."""


class Member(NamedTuple):
    """A regular file in an archive: its name as stored, and where its bytes are."""

    name: bytes
    offset: int
    size: int


class TarReader:
    """Random access to an open archive.

    Args:
        descriptor: of the open file; not closed here.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._begin, self._held = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset``, fewer at the end of the file."""
        inside = offset - self._begin
        if inside < 0 or inside + size > len(self._held):
            self._begin, self._held = offset, os.pread(self._descriptor, max(size, _READ_AHEAD), offset)
            inside = 0
        return self._held[inside : inside + size]

    def members(self) -> Iterator[Member]:
        """Regular files in their order; directories, links and devices are passed over.

        Raises:
            DamagedTar: after the last member that is whole: no header where one should be, a member that goes beyond
                the end of the file, a sparse member, or more than padding behind the end mark.
            OSError: the file cannot be read.
        """
        place, name, size = 0, None, None
        while True:
            if place > self.size:
                raise DamagedTar(f"the file ends at byte {self.size}, before byte {place}: it is cut off")
            header = self.read(place, BLOCK)
            if header == _END or (place and not header):
                self._check_end(place)
                return
            kind, length = self._checked(header, place)
            begin = place + BLOCK
            if kind in b"xL":
                extra = self._extra(begin, length)
                if kind == b"L":
                    name = extra.split(b"\0", 1)[0]
                else:
                    name, size = _pax(extra, name, size, place)
                place = begin + _padded(length)
                continue
            if kind == b"S":
                raise DamagedTar(f"a sparse file at byte {place}, which is not supported; pack without --sparse")
            if kind in b"gK":
                place = begin + _padded(length)
                continue
            length = 0 if kind in _UNUSED else length if size is None else size
            if begin + length > self.size:
                raise DamagedTar(f"the file ends at byte {self.size}, within the member at byte {place}: it is cut off")
            called = _plain_name(header) if name is None else name
            if kind in _REGULAR and not called.endswith(b"/"):
                yield Member(called, begin, length)
            place, name, size = begin + _padded(length), None, None

    def _checked(self, header: bytes, place: int) -> tuple[bytes, int]:
        """Type and size of a header whose checksum is right."""
        if place == 0:
            for magic, command in _COMPRESSED.items():
                if header.startswith(magic):
                    raise DamagedTar(f"it is compressed, and a member cannot be read alone; unpack it with {command}")
        if len(header) < BLOCK:
            raise DamagedTar(f"the file ends at byte {self.size}, within the header at byte {place}: it is cut off")
        try:
            wanted = _number(header[148:156])
            # The lower half of adler32 is 1 + the sum of the bytes, modulo 65521: many times faster than sum().
            summed = zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF
            if wanted > BLOCK * 255 or summed != (1 + wanted) % 65521:
                raise ValueError("the checksum is wrong")
            return header[156:157], _number(header[124:136])
        except ValueError as error:
            if place == 0:
                raise DamagedTar("it is not a tar archive") from error
            raise DamagedTar(f"no valid header at byte {place} ({error})") from error

    def _extra(self, begin: int, length: int) -> bytes:
        if length > LONGEST_EXTRA:
            raise DamagedTar(f"{length} bytes of name or attributes at byte {begin}, more than {LONGEST_EXTRA}")
        extra = self.read(begin, length)
        if len(extra) < length:
            raise DamagedTar(f"the file ends at byte {self.size}, within the attributes at byte {begin}: it is cut off")
        return extra

    def _check_end(self, place: int) -> None:
        left = self.size - place
        if left > _END_PADDING:
            raise DamagedTar(
                f"{left} bytes follow the end mark at byte {place}, and are not read; archives are joined with "
                "'tar --concatenate', not with 'cat'"
            )


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _number(field: bytes) -> int:
    """Octal text, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if value >= 2**62:
            raise ValueError(f"the number {field!r} is out of range")
        return value
    text = field.split(b"\0", 1)[0].strip()
    if text and not text.isdigit():  # int() would take signs and underscores
        raise ValueError(f"{field!r} is not a number")
    return int(text, 8) if text else 0


def _plain_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(records: bytes, name: bytes | None, size: int | None, place: int) -> tuple[bytes | None, int | None]:
    """Name and size from ``<length> <key>=<value>\\n`` records, where they say something of them."""
    begin = 0
    while begin < len(records) and records[begin]:
        digits, space, _ = records[begin : begin + 20].partition(b" ")
        end = begin + (int(digits) if space and digits.isdigit() else 0)
        record = records[begin + len(digits) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(records) or not equals or not record.endswith(b"\n"):
            raise DamagedTar(f"attributes at byte {place} cannot be read")
        if key == b"path":
            name = value
        elif key == b"size":
            if not (value.isdigit() and len(value) < 19):
                raise DamagedTar(f"attributes at byte {place} give the size {value[:40]!r}")
            size = int(value)
        elif key.startswith(b"GNU.sparse."):
            raise DamagedTar(f"a sparse file at byte {place}, which is not supported; pack without --sparse")
        begin = end
    return name, size
