"""The bytes of a file, whatever it is compressed with, up to a number of them."""

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import IO, Any

import zstandard

COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")

EXPANSION = 250
"""Times a file's size that its text may have, beyond the first 64 MiB. Text that people wrote
shrinks to a third or a tenth."""

EXPANDS = f"it expands to more than {EXPANSION} times its size, which no text does"

_XZ_MEMORY = 512 * 2**20  # bytes; the strongest setting of xz asks for 65 MB

_ZST_WINDOW = 2**31  # bytes: `zstd --long=31`, the longest there is; taken as far as it is used


def opened(path: Path, most: int) -> IO[bytes]:
    """The bytes of a file, of which, where it is compressed, at most ``most`` can be read.

    Reading raises what the compression's library does, also where the file was cut off, and
    ValueError beyond ``most``.
    """
    suffix = path.suffix.lower()
    if suffix not in COMPRESSIONS:
        return path.open("rb")
    if suffix == ".xz":
        with path.open("rb") as head:  # the memory that it asks for stands at its beginning
            lzma.LZMADecompressor(memlimit=_XZ_MEMORY).decompress(head.read(2**16), 1)
    openers: dict[str, Any] = {
        ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": _Zstandard
    }  # fmt: skip
    return io.BufferedReader(Bounded(openers[suffix](str(path)), most), 2**20)


class Bounded(io.RawIOBase):
    """What a compressed file holds, up to a number of bytes; ValueError beyond it."""

    def __init__(self, opened: Any, most: int) -> None:
        self._opened = opened
        self._left = most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self._opened.read(len(buffer))
        buffer[: len(read)] = read
        self._left -= len(read)
        if self._left < 0:
            raise ValueError(EXPANDS)
        return len(read)

    def close(self) -> None:
        self._opened.close()
        super().close()


class _Zstandard:
    """Frames of zstandard, one after another, of any window; ValueError for a part of one.

    Arrow's reader refuses windows of more than 128 MiB, and zstandard's own takes a file that was
    cut off for a whole one.
    """

    _AT_ONCE = 2**12  # bytes, of which at most 128 MiB become

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  closed by close()
        self._frame: Any = None  # the one that has begun
        self._read = b""  # of the file, not yet unpacked
        self._unpacked = memoryview(b"")

    def read(self, size: int) -> bytes:
        while not self._unpacked:
            self._read = self._read or self._file.read(self._AT_ONCE)
            if not self._read:
                if self._frame is not None:
                    raise ValueError("it was cut off")
                break
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(
                    max_window_size=_ZST_WINDOW
                ).decompressobj()
            self._unpacked = memoryview(self._frame.decompress(self._read))
            self._read = b""
            if self._frame.eof:
                self._read, self._frame = self._frame.unused_data, None
        part, self._unpacked = self._unpacked[:size], self._unpacked[size:]
        return bytes(part)

    def close(self) -> None:
        self._file.close()
