"""Pixels are read whatever the metadata of a file, and an image that cannot be read is named."""

import contextlib
import gzip
import http.server
import io
import random
import re
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from diffusers_pfgm.training.data import decoding
from diffusers_pfgm.training.data.decoding import BrokenImageError, ImageReader, open_image
from diffusers_pfgm.training.data.images import ImageTensors

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    IMAGE.convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def png_with(kind: bytes, data: bytes, before: bytes = b"IDAT", raw: bytes = b"") -> bytes:
    raw = raw or encoded("PNG")
    at = raw.index(before) - 4
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return raw[:at] + chunk + raw[at:]


def jpeg_with(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A JPEG file whose EXIF entries are (tag, type, count, value of at most four bytes)."""
    ifd = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + ifd + bytes(4)
    raw = encoded("JPEG")
    return raw[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + raw[2:]


def opened(data: bytes) -> np.ndarray:
    return np.array(open_image("x", {"bytes": data, "path": None}).convert("RGB"))


ROTATED = (0x112, 3, 1, b"\6\0")  # by 90 degrees
LARGE = zlib.compress(bytes(2**21))


@pytest.mark.parametrize(
    "data",
    [
        png_with(b"zTXt", b"prompt\0\0" + LARGE),
        png_with(b"iCCP", b"big\0\0" + LARGE),
        png_with(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 9\nzzzz")),
        png_with(b"zTXt", b"prompt\0\0" + LARGE, before=b"IEND"),
        png_with(b"iTXt", b"prompt\0\1\0\0\0" + LARGE),
        png_with(b"pHYs", b"1"),
        png_with(b"eXIf", b"MM\0*\xff\xff"),
        png_with(b"gAMA", b""),
        encoded("PNG", pnginfo=None)[:-12] + b"\0\0\0\4tEXtabcd\0\0\0\0" + encoded("PNG")[-12:],
    ],
)
def test_pixels_of_a_png_are_read_whatever_its_metadata(data: bytes) -> None:
    assert np.array_equal(opened(data), PIXELS)


@pytest.mark.parametrize(
    "odd", [(0x11A, 2, 4, b"72\0\0"), (0x11A, 5, 0, b""), (0x128, 7, 3, b"\xff"), (0x10E, 99, 9, b"")]
)
def test_a_jpeg_is_rotated_whatever_its_other_tags(odd: tuple[int, int, int, bytes]) -> None:
    expected = np.rot90(np.array(Image.open(io.BytesIO(encoded("JPEG")))), -1)
    assert np.array_equal(opened(jpeg_with(ROTATED, odd)), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_is_rotated_even_if_its_metadata_are_removed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    data = encoded(kind, exif=exif)
    if kind == "PNG":
        data = png_with(b"zTXt", b"prompt\0\0" + LARGE, raw=data)
    else:
        monkeypatch.setattr("PIL.JpegImagePlugin.COM", lambda *args: 1 / 0)
        data = data[:2] + b"\xff\xfe\0\4no" + data[2:]
    expected = np.rot90(np.array(Image.open(io.BytesIO(encoded(kind)))), -1)
    assert np.array_equal(opened(data), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_agree_with_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded("PNG", exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(opened(data), expected)


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 8])):
        at = chance.randrange(min(len(changed), chance.choice([64, 256, len(changed)])))
        kind = chance.random()
        if kind < 0.6:
            changed[at] = chance.choice([0, 255, chance.randrange(256), changed[at] ^ (1 << chance.randrange(8))])
        elif kind < 0.8:
            del changed[at : at + chance.randrange(1, 5)]
        else:
            changed[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 5)))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO"])
def test_a_damaged_file_raises_nothing_but_a_broken_image_error(kind: str) -> None:
    exif = Image.Exif()
    info = PngImagePlugin.PngInfo()
    chance = random.Random(kind)
    exif[0x112], exif[0x11A], exif[0x10E] = 6, 72.0, "text"
    info.add_text("a", "b" * 99, zip=True)
    options: dict[str, Any] = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    options |= {"PNG": {"pnginfo": info}, "ICO": {"sizes": [PIXELS.shape[1::-1]]}}.get(kind, {})
    data = encoded(kind, **options)
    reader = ImageReader(8, "RGB", center_crop=True, only_gray=False)
    read = 0
    for _ in range(400):
        with contextlib.suppress(BrokenImageError):
            pixels, _ = reader("x", {"bytes": mutated(data, chance), "path": None}, lambda: 0)
            read += pixels.shape == (3, 8, 8)
    assert 0 < read < 400


def test_warnings_of_pillow_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # below 12 x 16, above half of it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(opened(encoded("PNG")), PIXELS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BrokenImageError, match=r"x cannot be read: Image size .* exceeds limit"):
        opened(encoded("PNG"))


@pytest.mark.parametrize("size", [(1, 300_000), (300_000, 1), (3, 60_000)])
@pytest.mark.parametrize("center_crop", [True, False])
def test_a_long_image_needs_little_memory(
    size: tuple[int, int], center_crop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize = Image.Image.resize
    sizes = []

    def record(image: Image.Image, size: tuple[int, int], *args: Any) -> Image.Image:
        sizes.append(size)
        assert size[0] * size[1] <= 2**24  # 64 x 19,200,000 pixels would be 73 times as many
        return resize(image, size, *args)

    stream = io.BytesIO()
    Image.new("L", size, 9).save(stream, "PNG")
    monkeypatch.setattr(Image.Image, "resize", record)
    reader = ImageReader(64, "L", center_crop, only_gray=False)
    pixels, is_fixed = reader("x", {"bytes": stream.getvalue(), "path": None}, lambda: 77)
    assert torch.equal(pixels, torch.full((1, 64, 64), 9, dtype=torch.uint8)) and is_fixed == center_crop and sizes


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_cropping_first_agrees_with_resizing_first(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"bytes": encoded("PNG", mode), "path": None}
    for number in range(4):
        expected, _ = ImageReader(9, mode, False, False)("x", entry, lambda n=number: n)
        monkeypatch.setattr(decoding, "MAX_RESIZED_PIXELS", 0)
        pixels, _ = ImageReader(9, mode, False, False)("x", entry, lambda n=number: n)
        monkeypatch.undo()
        assert (pixels.int() - expected.int()).abs().max() <= 1  # Pillow keeps the region in float32


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """A server that also supports ranges of files, which reading an archive needs."""

    def do_GET(self) -> None:
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if requested is None or not path.is_file():
            super().do_GET()
            return
        whole = path.read_bytes()
        first = int(requested[1])
        last = min(int(requested[2]), len(whole) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(whole[first : last + 1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = partial(RangeHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_images_are_opened_by_url_and_archive_path_as_datasets_does(tmp_path: Path, server: str) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "deep/a.png")
    (tmp_path / "c.gz").write_bytes(gzip.compress(encoded("PNG")))
    paths = [f"zip://deep/a.png::{tmp_path}/b.zip", f"gzip://c::{tmp_path}/c.gz", str(tmp_path / "a.png")]
    paths += [f"{server}/a.png", f"zip://deep/a.png::{server}/b.zip"]
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": paths}, features)
    for row in range(len(paths)):
        assert np.array_equal(np.array(dataset[row]["image"]), PIXELS)
        assert np.array_equal(np.array(open_image("x", {"bytes": None, "path": paths[row]})), PIXELS)
    plain = ImageTensors(dataset, 12, center_crop=True).plain()
    assert all(torch.equal(image, plain[0]) for image in plain)
    with pytest.raises(BrokenImageError, match=r"x \(.*gone.png\) cannot be read"):
        open_image("x", {"bytes": None, "path": f"{server}/gone.png"})
    with pytest.raises(BrokenImageError, match=r"x \(zip://gone.png::.*b.zip\) cannot be read"):
        open_image("x", {"bytes": None, "path": f"zip://gone.png::{tmp_path}/b.zip"})


def test_the_mode_is_that_of_the_first_readable_images() -> None:
    names = [(str(i), {"bytes": b"no", "path": None}) for i in range(150)]
    good = [("good", {"bytes": encoded("PNG"), "path": None})]
    assert ImageReader.from_images(names + good, 8, None, True).mode == "RGB"
    with pytest.raises(BrokenImageError, match=r"No image can be read: 0 cannot be read: .*other 149\.$"):
        ImageReader.from_images(names, 8, None, True)
    with pytest.raises(ValueError, match="The data set is empty"):
        ImageReader.from_images([], 8, None, True)


def test_an_image_of_16_bits_is_refused_with_advice() -> None:
    deep = io.BytesIO()
    Image.fromarray(PIXELS[..., 0].astype(np.uint16)).save(deep, "PNG")
    with pytest.raises(BrokenImageError, match=r"mode 'I;16', not of 8 bits per channel. Convert it to 8 bits") as info:
        ImageReader.from_images([("x", {"bytes": deep.getvalue(), "path": None})], 8, None, True)
    assert "skip" not in str(info.value)


def test_colours_of_16_bits_are_refused_too() -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (8, 8, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    chunks = {b"IHDR": struct.pack(">2I5B", 8, 8, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks.items():
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    with pytest.raises(BrokenImageError, match=r"x cannot be read: its colours have 16 bits per channel. Convert it"):
        open_image("x", {"bytes": data, "path": None})
