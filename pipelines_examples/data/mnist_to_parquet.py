"""Turn the four IDX files of MNIST (or Fashion-MNIST, KMNIST) into parquet files that the training script reads.

Prints what it wrote. The files may be compressed by gzip or not.
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
SPLITS = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file.

    Raises:
        ValueError: if it is no IDX file, or not whole.
    """
    raw = path.read_bytes()
    data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES:
        raise ValueError(f"{path} is no IDX file: it begins with {data[:4].hex(' ')}.")
    header = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:header], dtype=">u4"))
    dtype = np.dtype(TYPES[data[2]])
    if len(data) != header + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path} is not whole: its header tells of the shape {shape}, but it has {len(data)} bytes.")
    return np.frombuffer(data, dtype, offset=header).reshape(shape)


def find(folder: Path, name: str) -> Path:
    """The file of that name, compressed or not."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"`--idx_dir` {str(folder)!r} has neither {name} nor {name}.gz. Put the original files there.")


def rows(images: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, Any]]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "png")
        yield {"image": {"bytes": png.getvalue(), "path": f"{i:05d}.png"}, "label": int(label)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idx_dir", type=Path, required=True, help="with train-images-idx3-ubyte.gz and so on")
    parser.add_argument("--output_dir", type=Path, default=Path("mnist-parquet"))
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for split, prefix in SPLITS.items():
        images = read_idx(find(args.idx_dir, f"{prefix}-images-idx3-ubyte"))
        labels = read_idx(find(args.idx_dir, f"{prefix}-labels-idx1-ubyte"))
        names = [str(label) for label in range(labels.max() + 1)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        dataset = datasets.Dataset.from_list(list(rows(images, labels)), features)
        path = args.output_dir / f"{split}.parquet"
        dataset.to_parquet(path)
        print(f"{len(dataset):,} images of {images.shape[1]} x {images.shape[2]} and {len(names)} classes: {path}")


if __name__ == "__main__":
    main()
