"""Upload and download of models by the real client, in separate processes, with a local server of the Hub's API."""

import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diffusers_pfgm import PFGMPipeline
from diffusers_pfgm.hub import publishing as hub_module
from diffusers_pfgm.hub.publishing import check_hub
from tests.hub.hub_server import Hub, serve
from tests.networks import make_tiny_pipeline, seeded
from tests.warm_python import WarmPython

WRITES, READS = "hf_secretThatWrites", "hf_secretThatReads"
ROOT = Path(__file__).parents[2]


class Client:
    """A user of the Hub with a separate home folder, whose commands run in separate processes.

    Args:
        python: starts processes that look for their home folder at `link`.
        link: a link, which points to this home folder until the client is closed.
        home: the home folder.
    """

    def __init__(self, python: WarmPython, link: Path, home: Path) -> None:
        self.python, self.link, self.home = python, link, home
        self.output = ""
        home.mkdir()
        self._before = link.readlink()
        self._point_to(home)

    def _point_to(self, home: Path) -> None:
        self.link.unlink()
        self.link.symlink_to(home)

    def close(self) -> None:
        self._point_to(self._before)

    def run(self, script: str, token: str | None = WRITES, code: int = 0) -> str:
        """Run a Python script with this token. Checks the exit code and returns the output."""
        done = self.call(self.python, "-c", script, token=token)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def call(
        self, python: WarmPython, *arguments: object, token: str | None = WRITES
    ) -> subprocess.CompletedProcess[str]:
        """Run a `python` command with this token."""
        done = python.run(*arguments, env={"HF_TOKEN": token} if token else {}, cwd=self.home.parent)
        self.output += done.stdout + done.stderr
        return done


@pytest.fixture
def hub() -> Hub:
    return Hub({WRITES: ("ada", "write"), READS: ("ada", "read"), "hf_other": ("bob", "write")})


@pytest.fixture
def client(hub: Hub, hub_socket: socket.socket, python: WarmPython, hub_home: Path, tmp_path: Path) -> Iterator[Client]:
    with serve(hub, hub_socket):
        client = Client(python, hub_home, tmp_path / "home")
        yield client
        client.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    make_tiny_pipeline().save_pretrained(folder)
    return folder


def draw(pipe: PFGMPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(2, 3, seeded(), output_type="pt").images


LOAD = """
import torch
from diffusers_pfgm import PFGMPipeline
pipe = PFGMPipeline.from_pretrained({arguments})
pipe.set_progress_bar_config(disable=True)
torch.save(pipe(2, 3, torch.Generator().manual_seed(0), output_type="pt").images, "images.pt")
"""


def test_a_model_survives_upload_and_download(
    hub: Hub, client: Client, plain_python: WarmPython, model: Path, tmp_path: Path
) -> None:
    client.run(
        f"""
from diffusers_pfgm import PFGMPipeline
pipe = PFGMPipeline.from_pretrained({str(model)!r})
pipe.push_to_hub("ada/digits", private=True, commit_message="first")
pipe.push_to_hub("ada/digits", variant="fp16")
"""
    )
    repository = hub.repositories["ada/digits"]
    files = repository.commits[-1][1]
    assert repository.private and len(repository.commits) == 3
    assert {"model_index.json", "pipeline.py", "README.md", "unet/config.json"} <= set(files)
    large = {name for name, (_, is_large) in files.items() if is_large}
    assert large == {f"unet/diffusion_pytorch_model{variant}.safetensors" for variant in ("", ".fp16")}
    assert b'PFGMPipeline.from_pretrained("ada/digits")' in files["README.md"][0]

    # The connection breaks in the middle of a file, and the client resumes the download.
    hub.cuts = {r"GET .*diffusion_pytorch_model.safetensors": 1}
    client.run(LOAD.format(arguments='"ada/digits"'))
    assert torch.equal(torch.load(tmp_path / "images.pt", weights_only=True), draw(PFGMPipeline.from_pretrained(model)))
    assert hub.cuts == {r"GET .*diffusion_pytorch_model.safetensors": 0}

    first = repository.commits[1][0]
    client.run(LOAD.format(arguments=f'"ada/digits", revision="{first}"'))
    client.run(LOAD.format(arguments='"ada/digits", variant="fp16"'))
    plain = "from diffusers import DiffusionPipeline\nprint(type(DiffusionPipeline.from_pretrained({}).scheduler))"
    # In a process that has not imported this package
    done = client.call(plain_python, "-c", plain.format('"ada/digits", trust_remote_code=True'))
    assert "PoissonFlowScheduler" in done.stdout, done.stderr

    elsewhere = Client(client.python, client.link, tmp_path / "elsewhere")
    for token, name in ((None, "ada/digits"), ("hf_other", "ada/digits"), (WRITES, "ada/nothing")):
        assert "RepositoryNotFound" in elsewhere.run(LOAD.format(arguments=f'"{name}"'), token, code=1)
    elsewhere.close()
    assert "RevisionNotFound" in client.run(LOAD.format(arguments='"ada/digits", revision="later"'), code=1)

    assert WRITES not in client.output + elsewhere.output
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and WRITES.encode() in path.read_bytes()]
    assert not [name for _, files in repository.commits for name, (data, _) in files.items() if WRITES.encode() in data]


def test_a_push_removes_weights_of_an_earlier_push(hub: Hub, client: Client, model: Path) -> None:
    client.run(
        f"""
from diffusers_pfgm import PFGMPipeline
pipe = PFGMPipeline.from_pretrained({str(model)!r})
pipe.push_to_hub("ada/digits")
pipe.push_to_hub("ada/digits", variant="fp16")
pipe.push_to_hub("ada/digits", subfolder="older")
pipe.push_to_hub("ada/digits", safe_serialization=False)
"""
    )
    before, after = (set(files) for _, files in hub.repositories["ada/digits"].commits[-2:])
    whole = "unet/diffusion_pytorch_model"
    assert after - before == {f"{whole}.bin"} and before - after == {f"{whole}.safetensors"}
    assert {f"{whole}.fp16.safetensors", f"older/{whole}.safetensors"} < after
    assert "README.md" in after and "older/README.md" not in after  # its code would load the other model


CHECK = "from diffusers_pfgm.hub.publishing import check_hub\nprint(check_hub({}, 'folder/my-model', private=True))"


def test_names_and_tokens_are_checked_before_training(hub: Hub, client: Client) -> None:
    assert client.run(CHECK.format("None")).strip() == "ada/my-model" and hub.repositories["ada/my-model"].private
    assert client.run(CHECK.format("'ada/my-model'")).strip() == "ada/my-model"  # it exists already
    client.run("from huggingface_hub import create_repo\ncreate_repo('ada/public')")
    for name, token, message in (
        ("'ada/public'", WRITES, "`--hub_private_repo`: the repository 'ada/public' exists and is public. Make it"),
        ("'a b'", WRITES, "`--hub_model_id` 'a b' is not allowed: "),
        ("'bob/model'", WRITES, "does not let the token of 'ada' write there (403)"),
        (
            "None",
            READS,
            "the token may only read. Log in by `hf auth login`, or set HF_TOKEN, with a token",
        ),
        ("None", "hf_unknown", "the Hub does not accept the token (401)"),
        ("None", None, "`--push_to_hub` needs a token. Log in by `hf auth login`"),
    ):
        output = client.run(CHECK.format(name), token, code=1)
        assert message in output and (token is None or token not in output)
    licensed = CHECK.replace("private=True", "license={!r}")
    assert client.run(licensed.format("None", "mit")).strip() == "ada/my-model"
    refused = client.run(licensed.format("None", "no-such-license"), code=1)
    assert "`--license` 'no-such-license' is not allowed by the Hub: " in refused and "must be one of" in refused
    hub.failures = {"GET /api/whoami-v2": 99}  # an error of the server, not of the token
    assert "cannot be reached (" in client.run(CHECK.format("None"), code=1)


class ConnectError(Exception):
    """An exception as of the HTTP library, of no class that huggingface_hub documents."""


def test_an_unreachable_hub_raises_a_message_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "get_token", lambda: WRITES)

    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectError("[Errno -2] Name or service\nnot known")

    for name in ("whoami", "create_repo"):
        monkeypatch.setattr(hub_module, "whoami", lambda: {"name": "ada"})
        monkeypatch.setattr(hub_module, name, fail)
        with pytest.raises(ValueError, match="cannot be reached") as caught:
            check_hub("my-model", "folder/run")
        message = str(caught.value)
        assert "`--push_to_hub`: the Hub (https://huggingface.co)" in message and "\n" not in message
        assert "ConnectError: [Errno -2] Name or service not known" in message and WRITES not in message
        assert "`PFGMPipeline.from_pretrained('folder/run').push_to_hub('my-model')`" in message


# It and the client of the Hub wait shorter than usually before they try again.
PUSH = """
import time
from diffusers_pfgm.hub.publishing import push
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 50)
push({!r}, 'ada/digits', 'a step', last={})
"""


OURS = {f"scheduler/{name}" for name in ("scheduler_config.json", "diffusers_pfgm.py")} | {"unet/config.json"}
OURS |= {"model_index.json", "pipeline.py", "README.md", "unet/diffusion_pytorch_model.safetensors"}


def test_uploads_are_repeated_and_do_not_end_the_training(hub: Hub, client: Client, model: Path) -> None:
    client.run("from huggingface_hub import create_repo\ncreate_repo('ada/digits')\ncreate_repo('ada/again')")
    for name in ("checkpoint-3/optimizer.bin", "me.png", "photos/me.png", "unet/notes.txt", "logs/events.host.1"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("mine")
    (model / "photos" / "more").symlink_to(client.home.parent)
    hub.failures = {"POST .*/preupload/": 2, "PUT /large": 1, "POST .*/commit/": 1}
    client.run(PUSH.format(str(model), True))
    assert set(hub.failures.values()) == {0}
    assert set(hub.repositories["ada/digits"].commits[-1][1]) == OURS

    output = client.run(PUSH.format(str(model), False), token=READS)
    assert "ada/digits was not updated" in output and "Training continues" in output
    output = client.run(PUSH.format(str(model), True), token=READS, code=1)
    assert "is complete, but was not uploaded" in output and "hf upload ada/digits" in output and READS not in output
    command = shlex.split(output.split("Upload it by `")[1].split("`")[0].replace("ada/digits", "ada/again"))
    done = client.call(client.python, Path(sys.executable).with_name("hf"), *command[1:])
    assert done.returncode == 0, done.stderr
    assert set(hub.repositories["ada/again"].commits[-1][1]) == OURS  # the command uploads the same files as the push
