"""The page of the claims, the script that measures them, and the commands for a GPU at reduced size."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_pfgm.examples.claims.claim import Check, Claim
from diffusers_pfgm.examples.claims.page import make_page, read_claims, write_claims
from diffusers_pfgm.examples.claims.reproduction import COMMANDS
from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.training.run import conversion, evaluation, evaluation_arguments
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "tests" / "fixtures" / "published" / "checkpoint_tiny_ddpmpp"


def test_the_page_is_written_from_the_file(tmp_path: Path) -> None:
    claim = Claim(
        *("Title", "One sentence", "Paper, section 1", "How"),
        checks=[Check("ratio", "above", 1.5, [1.0, 2.0, 6.0])],
        header=["name", "one", "three"],
        rows=[["row", 0.12345, [1.0, 2.0, 6.0]]],
        sizes={"seeds": [0, 1, 2], "samples": 7},
        pictures={"a.png": "A picture"},
    )
    path = tmp_path / "claims.json"
    write_claims({"b": claim}, path)
    write_claims({"a": dataclasses.replace(claim, title="Other")}, path)
    assert read_claims(path) == {"a": dataclasses.replace(claim, title="Other"), "b": claim}
    page = (tmp_path / "claims.md").read_text()
    assert page == make_page(read_claims(path))
    inconclusive = "not measurable here (inconclusive)"
    assert f"| b | Title | **{inconclusive}** |" in page and page.index("## a. Other") < page.index("## b. Title")
    assert f"| ratio | above 1.5 | 3 ± 6.6 | {inconclusive} |" in page and "| row | 0.123 | 3 ± 6.6 |" in page
    assert "Sizes: seeds 0 1 2, samples 7." in page and "![A picture](pictures/a.png)" in page
    content = json.loads(path.read_text())
    content["b"]["checks"][0]["values"] = [9.0, 9.1, 9.2]
    path.write_text(json.dumps(content))
    assert "| b | Title | **confirmed** |" in make_page(read_claims(path))


def test_the_published_page_is_that_of_its_file() -> None:
    claims = read_claims(ROOT / "docs" / "claims.json")
    assert list(claims) == list("abcdefgh")
    assert (ROOT / "docs" / "claims.md").read_text() == make_page(claims)
    for claim in claims.values():
        assert all((ROOT / "docs" / "pictures" / name).stat().st_size < 100_000 for name in claim.pictures)
        for values in (check.values for check in claim.checks if "p-value" not in check.quantity):
            assert len(values) >= 3


def test_the_script_measures_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("claims")
    asked = []

    def measure(letter: str, pictures: Path, mnist: str | None) -> Claim:
        asked.append((letter, mnist))
        assert pictures.is_dir()
        return Claim("", "", "", "", checks=[Check("", "above", 0.0, [1.0])])

    monkeypatch.setattr(script, "measure", measure)
    path = tmp_path / "docs" / "claims.json"
    script.main(["--only", "c", "--output", str(path)])
    images = str(tmp_path / "test.parquet")
    write_parquet(split_digits()[1][:2], Path(images))
    script.main(["--only", "a", "d", "--mnist", images, "--output", str(path)])
    assert asked == [("c", None), ("a", images), ("d", images)]
    assert list(read_claims(path)) == ["a", "c", "d"] and "confirmed" in capsys.readouterr().out


def test_files_are_checked_before_claims_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("claims")
    monkeypatch.setattr(script, "measure", lambda *arguments: pytest.fail("A claim was measured."))
    (tmp_path / "notes.json").write_text("{")
    with pytest.raises(SystemExit):
        script.main(["--output", str(tmp_path / "page.md")])  # the page would replace the claims
    with pytest.raises(json.JSONDecodeError):
        script.main(["--output", str(tmp_path / "notes.json")])
    with pytest.raises(ValueError, match=r"missing\.parquet' is not a file"):
        script.main(["--mnist", "missing.parquet", "--output", str(tmp_path / "claims.json")])


def test_a_claim_whose_data_are_missing_keeps_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("claims")
    measured = Claim("Title", "Sentence", "Paper", "How", checks=[Check("ratio", "above", 1.5, [1.0])])
    path = tmp_path / "claims.json"
    write_claims({"f": measured}, path)
    missing = dataclasses.replace(measured, checks=[], missing="Pass `MNIST=`.")
    monkeypatch.setattr(script, "measure", lambda *arguments: missing)
    script.main(["--only", "f", "g", "--output", str(path)])
    assert read_claims(path) == {"f": measured, "g": missing}
    assert "f. Title: keeps its figures. Pass `MNIST=`." in capsys.readouterr().out


class SquareMeans(torch.nn.Module):
    """Stands in for Inception: means over squares of 16 x 16 images in colour, and logits from them."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.nn.functional.avg_pool2d(images, 8).flatten(1)
        return features, features[:, :10]


@pytest.mark.slow
def test_the_commands_for_a_gpu_run_at_reduced_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "load_feature_network", lambda *names: (networks.append(names), SquareMeans())[1])
    (tmp_path / "images").mkdir()
    for number in range(14):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    reduced = {"checkpoint.pth": f"{PUBLISHED}.pth", "cifar10_deep": f"{PUBLISHED}_config.json"}
    reduced |= {"cifar10-train.parquet": "images", "50000": "14", "500": "7", "1e-4": "0.1"}
    convert, evaluate = (shlex.split(command) for command in COMMANDS.replace("\\\n", "").splitlines())
    assert reduced.keys() <= {*convert, *evaluate}
    assert convert[:2] == ["python", "training/convert_checkpoint.py"] and (ROOT / convert[1]).exists()
    assert evaluate[:4] == ["python", "-m", "accelerate.commands.launch", "training/evaluate_pfgm.py"]
    conversion.main(None, [reduced.get(word, word) for word in convert[2:]])
    evaluation.main(evaluation_arguments.parse_args(None, [reduced.get(word, word) for word in evaluate[4:]]))
    report = json.loads((tmp_path / "pfgm-cifar10-evaluation" / "metrics.json").read_text())
    assert networks == [("inception", None)] and report["num_images"] == 14
    assert {"frechet_distance", "inception_score"} <= {*report["metrics"]["inception"]}
    assert report["nfe"] > 7 and report["nfe"] % 6 in (1, 2, 3)
