"""Convert the four IDX files of MNIST (or Fashion-MNIST, KMNIST) to parquet files for the training script.

    python pipelines_examples/data/mnist_to_parquet.py --idx_dir mnist --output_dir mnist-parquet

The IDX files may be compressed with gzip. The script writes train.parquet and test.parquet, and prints for each the
number and size of its images, the number of classes and its path.
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers_pfgm.examples  # noqa: F401 - names the extra if one of its packages is missing

# isort: split
import datasets
import numpy as np
from PIL import Image

from diffusers_pfgm.training.run.script_errors import run_script

DTYPES = {
    8: ">u1",
    9: ">i1",
    11: ">i2",
    12: ">i4",
    13: ">f4",
    14: ">f8",
}  # NumPy's dtypes by the type code of the IDX format
FILE_PREFIXES = {"train": "train", "test": "t10k"}  # prefixes of file names by split
FILE_NAMES = ("images-idx3-ubyte", "labels-idx1-ubyte")


def read_idx(path: Path) -> np.ndarray:
    """Read the array of an IDX file.

    Raises:
        ValueError: if the file is not an IDX file, or is incomplete or damaged.
    """
    content = path.read_bytes()
    try:
        data = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is incomplete or damaged: {error}. Download it again.") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in DTYPES:
        raise ValueError(f"{path} is not an IDX file: it begins with {data[:4].hex(' ')}.")
    header_size = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:header_size], dtype=">u4"))
    dtype = np.dtype(DTYPES[data[2]])
    if len(data) != header_size + math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{path} is incomplete: its header states the shape {shape}, but it has {len(data)} bytes. Download it "
            "again."
        )
    return np.frombuffer(data, dtype, offset=header_size).reshape(shape)


def find_file(folder: Path, name: str) -> Path:
    """Return the path of the file with this name, or of its compressed version.

    Raises:
        ValueError: if the folder has neither.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"`--idx_dir` {str(folder)!r} has neither {name} nor {name}.gz. Put the original files there.")


def make_rows(images: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield a row with a PNG image and a label for each image (K, H, W) and label (K,)."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "png")
        yield {"image": {"bytes": png.getvalue(), "path": f"{i:05d}.png"}, "label": int(label)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--idx_dir", type=Path, required=True, help="folder of the files train-images-idx3-ubyte.gz and so on"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("mnist-parquet"), help="folder of the parquet files")
    args = parser.parse_args(argv)
    arrays = {
        split: [read_idx(find_file(args.idx_dir, f"{prefix}-{name}")) for name in FILE_NAMES]
        for split, prefix in FILE_PREFIXES.items()
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in arrays.items():
        names = [str(label) for label in range(labels.max() + 1)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        dataset = datasets.Dataset.from_list(list(make_rows(images, labels)), features)
        path = args.output_dir / f"{split}.parquet"
        dataset.to_parquet(path)
        print(f"{len(dataset):,} images of {images.shape[1]} x {images.shape[2]} and {len(names)} classes: {path}")


if __name__ == "__main__":
    run_script(main)
