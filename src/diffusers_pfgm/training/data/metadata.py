"""Image files without their metadata, for files whose pixels are good and whose metadata are not."""

from __future__ import annotations

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the chunks that pixels are made from
JPEG_START = b"\xff\xd8"
JPEG_SCAN, JPEG_EXIF = 0xDA, 0xE1
# APP1 to APP15 and comments. Adobe's APP14 stays, since it says which colours the numbers mean.
JPEG_METADATA = (*range(0xE1, 0xEE), 0xEF, 0xFE)


def without_metadata(data: bytes) -> tuple[bytes, bytes] | None:
    """A PNG or JPEG file without profiles, texts, EXIF and the like, and its EXIF bytes; None for other kinds."""
    if data.startswith(PNG_SIGNATURE):
        return _split_png(data)
    if data.startswith(JPEG_START):
        return _split_jpeg(data)
    return None


def _split_png(data: bytes) -> tuple[bytes, bytes]:
    """Each chunk is the length of its data, a type, the data and a checksum."""
    kept, exif, at = [PNG_SIGNATURE], b"", len(PNG_SIGNATURE)
    while at < len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind in PNG_PIXELS:
            kept.append(data[at:end])
        elif kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        at = end
    return b"".join(kept), exif


def _split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Each segment before the scan is 0xFF, a type, the length of the rest, and the rest."""
    kept, exif, at = [JPEG_START], b"", len(JPEG_START)
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != bytes([JPEG_SCAN]) and at + 4 <= len(data):
        kind, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind not in JPEG_METADATA:
            kept.append(data[at:end])
        elif kind == JPEG_EXIF and data[at + 4 : end].startswith(b"Exif"):
            exif = data[at + 4 : end]
        at = end
    return b"".join([*kept, data[at:]]), exif
