"""Publishing a run: its repository is made before training, so that a name or token that will not do is known at once.

Tokens are huggingface_hub's own matter: `hf auth login`, or the variable HF_TOKEN.
"""

from __future__ import annotations

import shlex
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, constants, create_commit, create_repo, get_token, whoami
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..utils.messages import one_line
from .written_files import WrittenFiles

PAUSES = (2.0, 8.0)  # seconds before the second and the third attempt
TEMPORARY = (408, 429)  # refusals that another attempt may overcome: too slow, too many requests
LOGIN = "Log in by `hf auth login`, or set HF_TOKEN, with a token of the role 'write'."


def check_hub(repo_id: str | None, output_dir: str | Path, private: bool = False) -> str:
    """Make the model's repository, or find it, and tell its whole name.

    Args:
        repo_id: `name` or `user/name`; the output folder's name by default.
        output_dir: of the run.
        private: make a private one.

    Raises:
        ValueError: if the name is not allowed, there is no token that may write there, or the Hub cannot be reached.
    """
    name = repo_id or Path(output_dir).resolve().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"`--hub_model_id` {name!r} is not allowed: {error}") from error
    if get_token() is None:
        raise ValueError(f"`--push_to_hub` needs a token. {LOGIN}")
    later = f"PFGMPipeline.from_pretrained({str(output_dir)!r}).push_to_hub({name!r})"

    def ask(call: Callable[..., Any], refusal: str, *args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except Exception as error:  # each version of huggingface_hub has other ones for a broken connection
            status = _status(error)
            if 400 <= status < 500 and status not in TEMPORARY:
                raise ValueError(f"{refusal} ({status}). {LOGIN}") from error
            raise ValueError(
                f"`--push_to_hub`: the Hub ({constants.ENDPOINT}) cannot be reached ({one_line(error)}). Train without "
                f"`--push_to_hub`, and publish the model later by `{later}`."
            ) from error

    user = ask(whoami, "`--push_to_hub`: the Hub does not accept the token")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"`--push_to_hub`: the token may only read. {LOGIN}")
    full = name if "/" in name else f"{user['name']}/{name}"
    refusal = (
        f"`--hub_model_id` {full!r}: choose a name under your own or your organisation's, for the Hub does not let the "
        f"token of {user['name']!r} write there"
    )
    ask(create_repo, refusal, full, private=private or None, exist_ok=True)
    return full


def push(output_dir: str | Path, repo_id: str, message: str, last: bool = False) -> None:
    """Upload the pipeline, its card and what else the run itself has written: samples, curves and the log.

    Nothing else in the folder is published, nor what a symbolic link leads to. In the middle of a run a failure is a
    warning: the next push takes everything along.

    Args:
        output_dir: of the run.
        repo_id: the repository's whole name.
        message: of the commit.
        last: whether no other push follows.

    Raises:
        RuntimeError: if the last push fails, with the command that makes up for it.
    """
    folder, names = Path(output_dir), list[str]()
    for pause in (*PAUSES, None):
        try:
            names = WrittenFiles(folder).published()
            additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
            create_commit(repo_id, additions, commit_message=message)
            return
        except Exception as error:  # of the network below it, too, which huggingface_hub hands on
            refused = 400 <= _status(error) < 500 and _status(error) not in TEMPORARY
            if pause is not None and not refused:
                time.sleep(pause)
                continue
            if not last:
                warnings.warn(f"{repo_id} was not updated ({one_line(error)}). Training goes on.", stacklevel=2)
                return
            raise RuntimeError(
                f"The model is whole in {output_dir}, but was not uploaded ({one_line(error)}). Do so by "
                f"`{_command(folder, repo_id, names)}`."
            ) from error


def _command(folder: Path, repo_id: str, names: list[str]) -> str:
    """What uploads these files and no others."""
    included = [word for name in names for word in ("--include", name)]
    return shlex.join(["hf", "upload", repo_id, str(folder), ".", *included])


def _status(error: Exception) -> int:
    """Of the Hub's answer; 0 if there was none."""
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    return 0 if response is None else int(response.status_code)
