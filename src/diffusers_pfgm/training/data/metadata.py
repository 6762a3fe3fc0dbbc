"""Removes the metadata of image files, so that broken metadata do not prevent reading the pixels."""

from __future__ import annotations

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
JPEG_START = b"\xff\xd8"
JPEG_SCAN = 0xDA
JPEG_EXIF = 0xE1
# APP1 to APP15 and comments. Adobe's APP14 is kept, since it defines the colour space of the pixels.
JPEG_METADATA = (*range(0xE1, 0xEE), 0xEF, 0xFE)


def without_metadata(data: bytes) -> tuple[bytes, bytes] | None:
    """Return a PNG or JPEG file without its metadata (profiles, texts, EXIF), and its EXIF bytes.

    For files of other formats it returns None.
    """
    if data.startswith(PNG_SIGNATURE):
        return _split_png(data)
    if data.startswith(JPEG_START):
        return _split_jpeg(data)
    return None


def _split_png(data: bytes) -> tuple[bytes, bytes]:
    """Split a PNG file. Each chunk consists of the length of its data, a type, the data and a checksum."""
    kept = [PNG_SIGNATURE]
    exif = b""
    start = len(PNG_SIGNATURE)
    while start < len(data):
        chunk_type = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if chunk_type in PNG_PIXEL_CHUNKS:
            kept.append(data[start:end])
        elif chunk_type == b"eXIf":
            exif = data[start + 8 : end - 4]
        start = end
    return b"".join(kept), exif


def _split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG file. Each segment before the scan consists of 0xFF, a type, the length of the rest and the rest."""
    kept = [JPEG_START]
    exif = b""
    at = len(JPEG_START)
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != bytes([JPEG_SCAN]) and at + 4 <= len(data):
        segment_type = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if segment_type not in JPEG_METADATA:
            kept.append(data[at:end])
        elif segment_type == JPEG_EXIF and data[at + 4 : end].startswith(b"Exif"):
            exif = data[at + 4 : end]
        at = end
    return b"".join([*kept, data[at:]]), exif
