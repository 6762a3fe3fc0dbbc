"""Files that would execute something, or fill the memory, are named, and nothing in them is executed."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusers_pfgm.hub.convert import convert_checkpoint
from diffusers_pfgm.hub.convert.restricted_pickle import read_pickle

PFGM = Path(__file__).parents[1] / "fixtures" / "published" / "checkpoint_tiny_ddpmpp"
EDM = PFGM.with_name("tiny_edm_ncsnpp")


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def storage(size: int) -> bytes:
    """The bytes of a storage of this many numbers in a pickle of EDM."""
    file = io.BytesIO()
    torch.save(torch.zeros(size).storage(), file)
    return file.getvalue()


class Build:
    """An object whose unpickling sets attributes."""

    def __reduce__(self) -> Any:
        return Build, (), {"x": 1}


def hostile(marker: Path) -> dict[str, bytes]:
    """Pickles that would write a file, or do something else than hold weights, when they are loaded by pickle."""
    touch = f"touch {marker}"
    objects: dict[str, Any] = {
        "os.system": Call(os.system, touch),
        "builtins.eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "builtins.getattr": Call(getattr, "text", "join"),
        "builtins.open": Call(open, str(marker), "w"),
        "subprocess.Popen": Call(__import__("subprocess").Popen, ["touch", str(marker)]),
        "importlib.import_module": Call(__import__("importlib").import_module, "antigravity"),
        "shutil.rmtree": Call(__import__("shutil").rmtree, str(marker)),
        "torch.load": Call(torch.load, str(marker)),
        "torch.hub.load": Call(torch.hub.load, "a/b", "c"),
        "codecs.encode": Call(__import__("codecs").encode, "x", "rot13"),
        "operator.attrgetter": Call(__import__("operator").attrgetter, "system"),
        "functools.partial": Call(__import__("functools").partial, os.system, touch),
        "tests.hub.test_hostile_checkpoints.Build": Build(),
        "builtins.print": Call(print, "loaded"),
        "numpy.load": Call(__import__("numpy").load, str(marker)),
    }
    pickles = {name: pickle.dumps({"ema": value}) for name, value in objects.items()}
    pickles["nested"] = pickle.dumps({"ema": [[{"a": Call(os.system, touch)}]]})
    stored = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, stored)
    inner = pickle.dumps(Call(os.system, touch))
    pickles["a pickle in a storage"] = pickle.dumps({"ema": Call(torch.storage._load_from_bytes, inner)})
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(stored.getvalue())) as source:
        entries = {entry.filename: source.read(entry.filename) for entry in source.infolist()}
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name, entry in entries.items():
            target.writestr(name, entry)
    pickles["a zip bomb"] = pickle.dumps({"ema": Call(torch.storage._load_from_bytes, bomb.getvalue())})
    pickles["truncated"] = pickles["os.system"][:-8]
    pickles["empty"] = b""
    pickles["an outside object"] = b"\x80\x04C\x01xQ."
    return pickles


def test_hostile_pickles_execute_nothing_and_are_named(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickles = hostile(marker)
    assert len(pickles) >= 20
    for name, content in pickles.items():
        path = tmp_path / "network.pkl"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="was not read") as caught:
            read_pickle(path)
        assert str(path) in str(caught.value)
        function = name.rpartition(".")[2]
        if "." in name:
            assert function in str(caught.value), name
    assert not marker.exists()


def test_hostile_checkpoints_of_torch_execute_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": Call(os.system, f"touch {marker}")}, path)
    with pytest.raises(ValueError, match="was not read"):
        convert_checkpoint(path, f"{PFGM}_config.json")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 100_000)
    with pytest.raises(ValueError, match="may be a zip bomb"):
        convert_checkpoint(path, f"{PFGM}_config.json")
    assert not marker.exists()


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    good = torch.load(f"{PFGM}.pth", weights_only=True)
    weights = good["ema"]["shadow_params"]
    damaged: list[tuple[dict[str, Any], str]] = [
        ({"ema": None}, "does not have EMA weights"),
        ({"ema": [1]}, "does not have EMA weights"),
        ({"ema": {"shadow_params": [1] * len(weights)}}, "does not have EMA weights"),
        ({"ema": {"shadow_params": [*weights[:-1], weights[-1] * 1j]}}, r"is of torch\.complex64"),
        ({"ema": {"shadow_params": [*weights[:-1], weights[-1].int()]}}, r"is of torch\.int32"),
        ({"model": good["model"] | {"step": 3}}, "'step' under 'model' is not the name of a tensor"),
        ({"model": good["model"] | {3: torch.zeros(3)}}, "3 under 'model' is not the name of a tensor"),
    ]
    for change, message in damaged:
        torch.save(good | change, path)
        with pytest.raises(ValueError, match=message) as caught:
            convert_checkpoint(path, f"{PFGM}_config.json")
        assert str(path) in str(caught.value)


def test_damaged_pickles_are_named(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["_modules"] = {"model": endless}
    path = tmp_path / "network.pkl"
    for network in (endless, {"_parameters": [1]}, {"_modules": None}):
        path.write_bytes(pickle.dumps({"ema": network}))
        with pytest.raises(ValueError, match="is damaged") as caught:
            convert_checkpoint(path, f"{EDM}_config.json")
        assert str(path) in str(caught.value)
    short = Call(torch._utils._rebuild_tensor_v2, Call(torch.storage._load_from_bytes, storage(1)), 0, (8,), (1,))
    path.write_bytes(pickle.dumps({"ema": {"_parameters": {3: short}}}))
    with pytest.raises(ValueError, match="was not read"):
        convert_checkpoint(path, f"{EDM}_config.json")
