"""The JSON file of all claims, and the page that is written from it and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ...utils.atomic_file import atomic_file
from .claim import NOT_MEASURABLE, Cell, Check, Claim, interval
from .reproduction import SECTION

COMMAND = "python pipelines_examples/claims/claims.py"
INTRODUCTION = """# Claims of the papers

The claims of PFGM (arXiv 2209.11178) and PFGM++ (arXiv 2302.04265), checked at the size that two CPU cores allow, on
the models and data that come with the package. `make claims` measures all of them in about 20 minutes on two quiet
cores, writes `docs/claims.json`, and writes this page from that file. MNIST's images are not part of the package:
`make claims MNIST=<folder or parquet file>` adds the claims that need them.

Each claim has checks: a quantity and a bound, which was written down before the measurement. "±" is half the width of
the 95 % interval over seeds (Student's t). A check is **confirmed** if the whole interval is on the claimed side of
the bound, and **refuted** if it is on the other side. If the interval contains the bound, a measurement of this size
cannot decide: **not measurable here (inconclusive)**. A claim is refuted if one of its checks is, confirmed if all are,
and otherwise inconclusive. A claim whose data were missing is **not measurable here (not measured)**. A verdict is only
about these small models and data.
"""
INCONCLUSIVE = f"{NOT_MEASURABLE} (inconclusive)"
NOT_MEASURED = f"{NOT_MEASURABLE} (not measured)"


def read_claims(path: Path) -> dict[str, Claim]:
    """Return the claims of a JSON file by their letters; none if the file does not exist."""
    content = json.loads(path.read_text()) if path.exists() else {}
    return {
        letter: Claim(**values | {"checks": [Check(**check) for check in values["checks"]]})
        for letter, values in sorted(content.items())
    }


def write_claims(claims: Mapping[str, Claim], path: Path) -> None:
    """Write claims to a JSON file, and the page to a .md file beside it. Claims of the file with other letters stay."""
    content = {letter: asdict(claim) for letter, claim in sorted((read_claims(path) | dict(claims)).items())}
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    page = path.with_suffix(".md")
    with atomic_file(page) as partial:
        partial.write_text(make_page(read_claims(path)))


def make_page(claims: Mapping[str, Claim]) -> str:
    """Return the page of claims in Markdown: the verdicts, a section for each claim, and the commands for a GPU."""
    summary = _table(
        ["", "claim", "verdict"],
        [[letter, claim.title, f"**{_verdict(claim)}**"] for letter, claim in claims.items()],
    )
    sections = [_section(letter, claim) for letter, claim in claims.items()]
    return "\n".join([INTRODUCTION, summary, *sections, SECTION])


def _verdict(judged: Check | Claim) -> str:
    """The verdict, with the reason if it is "not measurable here"."""
    if judged.verdict != NOT_MEASURABLE:
        return judged.verdict
    return NOT_MEASURED if isinstance(judged, Claim) and judged.missing is not None else INCONCLUSIVE


def _section(letter: str, claim: Claim) -> str:
    parts = [f"## {letter}. {claim.title}", f"{claim.statement} ({claim.source}).", claim.method]
    if claim.missing is not None:
        parts.append(f"**{_verdict(claim)}**: {claim.missing}")
    else:
        checks: list[list[Cell]] = [
            [check.quantity, f"{check.relation} {check.bound:g}", check.values, _verdict(check)]
            for check in claim.checks
        ]
        parts.append(f"Verdict: **{_verdict(claim)}**.")
        parts.append(_table(["check", "claimed", "measured", "verdict"], checks).strip())
        parts.append(_table(claim.header, claim.rows).strip())
    parts += [f"![{text}](pictures/{name})" for name, text in claim.pictures.items()]
    if claim.sizes:
        parts.append("Sizes: " + ", ".join(f"{name} {_text(value)}" for name, value in claim.sizes.items()) + ".")
    return "\n" + "\n\n".join([*parts, f"```bash\n{COMMAND} --only {letter}\n```"]) + "\n"


def _table(header: list[str], rows: list[list[Cell]]) -> str:
    lines = [header, ["---"] * len(header), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(cell: Cell) -> str:
    """A number with three digits, or the mean and the interval of several."""
    if isinstance(cell, str):
        return cell
    if not isinstance(cell, list):
        return f"{cell:.3g}"
    mean, half_width = interval(cell)
    return f"{mean:.3g}" if len(cell) == 1 else f"{mean:.3g} ± {half_width:.2g}"


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
