"""Measure the claims of the papers, and write docs/claims.json and docs/claims.md. `make claims` runs this script.

    python pipelines_examples/claims/claims.py --mnist mnist-parquet/test.parquet

Claims that are not measured keep their figures in the file: `--only a c` measures two of them again. Without --mnist
the claims that need MNIST's images say so. All of them take about 20 minutes on two quiet CPU cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from diffusers_pfgm.examples.claims.all_claims import LETTERS, measure
from diffusers_pfgm.examples.claims.page import read_claims, write_claims
from diffusers_pfgm.training.data.source import open_images
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import output_file

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=LETTERS, default=LETTERS, help="claims to measure; all by default")
    parser.add_argument(
        "--mnist", help="MNIST's test images, a folder or a parquet file, for the claims that need them"
    )
    parser.add_argument(
        "--output", type=output_file(".json"), default=DOCS / "claims.json", help="the JSON file, beside the page"
    )
    args = parser.parse_args(argv)
    # A file that cannot be read, and images that are missing, end the script at its start.
    kept = read_claims(args.output)
    if args.mnist is not None:
        open_images(args.mnist)
    pictures = args.output.parent / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for letter in args.only:
        started = time.perf_counter()
        claim = measure(letter, pictures, args.mnist)
        if claim.missing is not None and letter in kept and kept[letter].missing is None:
            print(f"{letter}. {claim.title}: keeps its figures. {claim.missing}", flush=True)
            continue
        write_claims({letter: claim}, args.output)
        print(f"{letter}. {claim.title}: {claim.verdict} ({time.perf_counter() - started:.0f} s)", flush=True)
        for check in claim.checks:
            print(f"   {check.quantity}: {check.verdict}")
    print(f"Page: {args.output.with_suffix('.md')}")


if __name__ == "__main__":
    run_script(main)
