"""Walk over the elements of a DICOM file before anything interprets them, and keep those of an allow-list.

A DICOM file is a list of elements, some of which are sequences of lists. pydicom recurses into sequences and keeps all that it
reads. So lengths, depth and numbers are checked here, without recursion, and of the rest only what is wanted is kept. pydicom
never sees the file, only the pixels of one frame.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

from bcc_ops.exceptions import ImageRefused

MAGIC_AT = 128
MAGIC = b"DICM"
HEAD = MAGIC_AT + len(MAGIC)
"""Bytes that tell whether a file is DICOM."""

PIXEL_DATA = 0x7FE00010

MOST_ELEMENTS = 50_000
"""In all sequences together. A cine loop of an ultrasound scanner has some thousands."""

MOST_DEPTH = 16
"""Sequences within sequences. Structured reports, the deepest there are, rarely have ten."""

MOST_BYTES_KEPT = 2_000_000
"""Of the wanted elements. The largest are palettes of 131 KB for each colour."""

MOST_ITEMS = 64
"""In a sequence that is read. A scanner's screen has some ten regions."""

MOST_INFLATED = 64_000_000
"""Bytes that a deflated file may become."""

LONGEST_TEXT = 64
"""Characters that are read of a text."""

_TRANSFER_SYNTAX, _META_GROUP = 0x00020010, 0x0002
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG_LENGTHS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"


class Encoding(NamedTuple):
    """How elements are written."""

    implicit: bool
    little: bool

    @property
    def order(self) -> str:
        """Return the byte order, as `struct` spells it."""
        return "<" if self.little else ">"


class Element(NamedTuple):
    """An element of the outermost list: `content[start:end]` with its header, of which the value begins at `value`."""

    tag: int
    start: int
    value: int
    end: int


@dataclass(frozen=True)
class DicomParts:
    """What is kept of a DICOM file.

    Attributes:
        transfer_syntax: its UID.
        encoding: of `kept`.
        kept: tag -> the wanted element, header included.
        content: the file, inflated if it was deflated.
        pixels: where in `content` the value of the pixel data begins and ends; the end is None if it is encapsulated. None if
            there are no pixels.
    """

    transfer_syntax: str
    encoding: Encoding
    kept: dict[int, bytes]
    content: memoryview
    pixels: tuple[int, int | None] | None

    def value(self, tag: int) -> bytes:
        """Return the bytes of an element's value; none if the file lacks the element."""
        element = self.kept.get(tag, b"")
        return element[_Reader(memoryview(element), self.encoding).header(0).value :] if element else b""

    def short(self, tag: int, default: int = 0) -> int:
        """Return an element of 16 bits; `default` if the file lacks it."""
        value = self.value(tag)
        return int.from_bytes(value[:2], "little" if self.encoding.little else "big") if len(value) >= 2 else default

    def text(self, tag: int) -> str:
        """Return an element's text, printable and `LONGEST_TEXT` characters at most."""
        value = self.value(tag)[: 4 * LONGEST_TEXT]
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        return "".join(c if c.isprintable() else " " for c in text).strip()[:LONGEST_TEXT]

    def number(self, tag: int) -> float | None:
        """Return the first number of a decimal string; None if there is none."""
        try:
            number = float(self.text(tag).split("\\")[0])
        except ValueError:
            return None
        return number if isfinite(number) else None

    def integer(self, tag: int, default: int) -> int:
        """Return the first number of a decimal string, whole; `default` if there is none."""
        number = self.number(tag)
        return default if number is None else int(number)

    def items(self, tag: int) -> list[dict[int, bytes]]:
        """Return the items of a sequence, each as tag -> value, without what they contain in sequences of their own.

        Raises:
            ImageRefused: "truncated", "damaged" or "too many parts".
        """
        reader = _Reader(memoryview(self.value(tag)), self.encoding)
        return [reader.values(start, end) for start, end in reader.items()]


def is_dicom(head: bytes | memoryview) -> bool:
    """Return whether a file that begins so is a DICOM file."""
    return bytes(head[MAGIC_AT:HEAD]) == MAGIC


def transfer_syntax_of(content: memoryview) -> tuple[str, int]:
    """Return the UID that says how a DICOM file is encoded, and where the part so encoded begins.

    Raises:
        ImageRefused: "truncated" or "damaged".
    """
    place, transfer_syntax = HEAD, ""
    meta = _Reader(content, Encoding(implicit=False, little=True))
    while place < len(content) and meta.group(place) == _META_GROUP:
        element = meta.header(place)
        if element.tag == _TRANSFER_SYNTAX:
            transfer_syntax = bytes(content[element.value : element.end]).decode("ascii", "replace").strip("\0 ")
        place = element.end
    if not transfer_syntax:
        raise ImageRefused("damaged", "the DICOM file does not say how it is encoded (0002,0010)")
    return transfer_syntax, place


def take_apart(content: memoryview, wanted: Collection[int]) -> DicomParts:
    """Find the wanted elements of a DICOM file, and where its pixels are.

    Args:
        content: the file; `is_dicom` says that it is one.
        wanted: tags of elements of the outermost list.

    Raises:
        ImageRefused: "truncated", "damaged", "too many parts" or "too large".
    """
    transfer_syntax, place = transfer_syntax_of(content)
    encoding = Encoding(transfer_syntax == _IMPLICIT, transfer_syntax != _BIG_ENDIAN)
    if transfer_syntax == DEFLATED:
        content, place = _inflate(content[place:]), 0
    kept: dict[int, bytes] = {}
    pixels: tuple[int, int | None] | None = None
    size = 0
    for element in _Reader(content, encoding).elements(place):
        if element.tag == PIXEL_DATA:
            pixels = (element.value, element.end if element.end >= 0 else None)
        elif element.tag in wanted and element.tag not in kept:
            size += element.end - element.start
            if size > MOST_BYTES_KEPT:
                raise ImageRefused(
                    "too many parts", f"more than {MOST_BYTES_KEPT:,} bytes of DICOM elements that describe the image"
                )
            kept[element.tag] = bytes(content[element.start : element.end])
    return DicomParts(transfer_syntax, encoding, kept, content, pixels)


def _inflate(deflated: memoryview) -> memoryview:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(deflated, MOST_INFLATED + 1)
    except zlib.error:
        raise ImageRefused("damaged", "its deflated part cannot be inflated") from None
    if len(content) > MOST_INFLATED:
        raise ImageRefused("too large", f"its deflated part becomes more than {MOST_INFLATED:,} bytes")
    if not inflater.eof:
        raise ImageRefused("truncated", "the end of its deflated part is missing")
    return memoryview(content)


class _Reader:
    """Reads headers of elements. Its offsets are those of `content`."""

    def __init__(self, content: memoryview, encoding: Encoding) -> None:
        self._content = content
        self._encoding = encoding
        self._tag = struct.Struct(f"{encoding.order}HH")
        self._short, self._long = struct.Struct(f"{encoding.order}H"), struct.Struct(f"{encoding.order}L")

    def group(self, place: int) -> int:
        """Return the group of the tag at `place`."""
        return int(self._unpack(self._tag, place)[0])

    def header(self, place: int, implicit: bool | None = None) -> Element:
        """Read the header at `place`. `end` is -1 for an element whose end is marked and not stated.

        Raises:
            ImageRefused: the element is incomplete, "truncated"; or this is not a header, "damaged".
        """
        group, number = self._unpack(self._tag, place)
        tag = group << 16 | number
        if tag in (_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE) or (self._encoding.implicit if implicit is None else implicit):
            value, length = place + 8, int(self._unpack(self._long, place + 4)[0])
        else:
            vr = bytes(self._content[place + 4 : place + 6])
            if vr in _LONG_LENGTHS:
                value, length = place + 12, int(self._unpack(self._long, place + 8)[0])
            elif vr.isalpha() and vr.isupper():
                value, length = place + 8, int(self._unpack(self._short, place + 6)[0])
            else:
                raise ImageRefused("damaged", f"what should be a DICOM element at byte {place:,} has no type")
        if length == _UNDEFINED:
            return Element(tag, place, value, -1)
        if value + length > len(self._content):
            raise ImageRefused("truncated", f"a DICOM element at byte {place:,} states {length:,} bytes, more than the file has")
        return Element(tag, place, value, value + length)

    def elements(self, place: int) -> Iterator[Element]:
        """Yield the outermost elements from `place` on, up to the pixel data, which comes last.

        What is in sequences is counted, and skipped.

        Raises:
            ImageRefused: "truncated", "damaged" or "too many parts".
        """
        count = 0
        while place < len(self._content):
            count += 1
            _refuse_more(count, MOST_ELEMENTS, "DICOM elements")
            element = self.header(place)
            if element.tag == PIXEL_DATA:
                yield element
                return
            if element.tag in (_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE):
                raise ImageRefused("damaged", f"an item at byte {place:,} is in no DICOM sequence")
            if element.end < 0:
                # What is of unknown type (UN) and of undefined length is a sequence in implicit encoding (PS3.5, 6.2.2).
                unknown = not self._encoding.implicit and bytes(self._content[place + 4 : place + 6]) == b"UN"
                end, count = self._skip([_END_OF_SEQUENCE], element.value, count, True if unknown else None)
                element = element._replace(end=end)
            yield element
            place = element.end

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield where each item's elements begin and end: `content` is the value of a sequence."""
        place, count = 0, 0
        while place < len(self._content):
            item = self.header(place)
            if item.tag == _END_OF_SEQUENCE:
                return
            if item.tag != _ITEM:
                raise ImageRefused("damaged", "a DICOM sequence has something other than items")
            count += 1
            _refuse_more(count, MOST_ITEMS, "items in a DICOM sequence")
            if item.end < 0:
                place, _ = self._skip([_END_OF_ITEM], item.value, 0, None)
                yield item.value, place - 8
            else:
                yield item.value, item.end
                place = item.end

    def values(self, place: int, end: int) -> dict[int, bytes]:
        """Return tag -> value of the elements in `content[place:end]`; sequences of undefined length are left out."""
        found: dict[int, bytes] = {}
        inside = _Reader(self._content[:end], self._encoding)
        for element in inside.elements(place):
            found.setdefault(element.tag, bytes(self._content[element.value : element.end]))
        return found

    def _skip(self, inside: list[int], place: int, count: int, implicit: bool | None) -> tuple[int, int]:
        """Return where what has an undefined length ends, and how many elements were counted by then.

        Only what has an undefined length is entered: the rest can be skipped.

        Args:
            inside: the marks that end what we are in, the outermost first.
            place: where it begins.
            count: elements so far.
            implicit: whether this is in implicit encoding; None if it is in the file's own.
        """
        while inside:
            count += 1
            _refuse_more(count, MOST_ELEMENTS, "DICOM elements")
            element = self.header(place, implicit)
            place = element.value if element.end < 0 else element.end
            if element.tag in (_END_OF_ITEM, _END_OF_SEQUENCE):
                if element.tag != inside.pop():
                    raise ImageRefused("damaged", f"a DICOM sequence at byte {element.start:,} ends within another one")
            elif (element.tag == _ITEM) != (inside[-1] == _END_OF_SEQUENCE):
                raise ImageRefused("damaged", f"the items of a DICOM sequence are mixed up at byte {element.start:,}")
            elif element.end < 0:
                inside.append(_END_OF_ITEM if element.tag == _ITEM else _END_OF_SEQUENCE)
                _refuse_more(len(inside), 2 * MOST_DEPTH, "DICOM sequences and items within each other")
        return place, count

    def _unpack(self, form: struct.Struct, place: int) -> tuple[int, ...]:
        if place + form.size > len(self._content):
            raise ImageRefused("truncated", f"the DICOM file ends at byte {len(self._content):,}, within an element")
        return form.unpack_from(self._content, place)


def fragments(content: memoryview, place: int) -> Iterator[Element]:
    """Yield the fragments of encapsulated pixel data, the offset table first.

    Args:
        content: the file.
        place: where the value of the pixel data begins.

    Raises:
        ImageRefused: one is incomplete, "truncated"; or something else is among them, "damaged".
    """
    reader = _Reader(content, Encoding(implicit=True, little=True))
    count = 0
    while (item := reader.header(place)).tag == _ITEM and item.end >= 0:
        count += 1
        _refuse_more(count, MOST_ELEMENTS, "fragments of pixel data")
        yield item
        place = item.end
    if item.tag != _END_OF_SEQUENCE:
        raise ImageRefused("damaged", f"something that is not a fragment is among those of the pixel data, at byte {place:,}")


def _refuse_more(found: int, most: int, what: str) -> None:
    if found > most:
        raise ImageRefused("too many parts", f"more than {most:,} {what}")
