"""Publishing a run: its repository is made before training, so that a name or token that will not do is known at once.

Tokens are huggingface_hub's own matter: `hf auth login`, or the variable HF_TOKEN.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from huggingface_hub import create_repo, get_token, upload_folder, whoami
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

PUBLISHED = ["model_index.json", "pipeline.py", "README.md", "unet/*", "scheduler/*", "*.png", "log.jsonl", "logs/*"]
PRIVATE = ["checkpoint-*", "best/*", ".*"]
PAUSES = (2.0, 8.0)  # seconds before the second and the third attempt


def check_hub(repo_id: str | None, output_dir: str | Path, private: bool = False) -> str:
    """Make the model's repository, or find it, and tell its whole name.

    Args:
        repo_id: `name` or `user/name`; the output folder's name by default.
        output_dir: of the run.
        private: make a private one.

    Raises:
        ValueError: if the name is not allowed, or there is no token that may write there.
    """
    name = repo_id or Path(output_dir).resolve().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"`--hub_model_id` {name!r} is not allowed: {error}") from error
    login = "Log in by `hf auth login`, or set HF_TOKEN, with a token of the role 'write'."
    if get_token() is None:
        raise ValueError(f"`--push_to_hub` needs a token. {login}")
    try:
        user = whoami()
    except HfHubHTTPError as error:
        raise ValueError(f"`--push_to_hub`: the Hub does not accept the token ({_status(error)}). {login}") from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"`--push_to_hub`: the token may only read. {login}")
    full = name if "/" in name else f"{user['name']}/{name}"
    try:
        create_repo(full, private=private or None, exist_ok=True)
    except HfHubHTTPError as error:
        raise ValueError(
            f"`--hub_model_id` {full!r}: the Hub does not let the token of {user['name']!r} write there "
            f"({_status(error)}). Choose a name under your own or your organisation's. {login}"
        ) from error
    return full


def push(output_dir: str | Path, repo_id: str, message: str, last: bool = False) -> None:
    """Upload the pipeline, its card, samples, curves and logs; no checkpoints.

    In the middle of a run a failure is a warning: the next push takes everything along.

    Raises:
        RuntimeError: if the last push fails, with the command that makes up for it.
    """
    for pause in (*PAUSES, None):
        try:
            upload_folder(
                repo_id=repo_id,
                folder_path=output_dir,
                commit_message=message,
                allow_patterns=PUBLISHED,
                ignore_patterns=PRIVATE,
            )
            return
        except Exception as error:  # of the network below it, too, which huggingface_hub hands on
            refused = isinstance(error, HfHubHTTPError) and 400 <= _status(error) < 500
            if pause is not None and not refused:
                time.sleep(pause)
                continue
            told = f"{type(error).__name__}: {error}"
            if not last:
                warnings.warn(f"{repo_id} was not updated ({told}). Training goes on.", stacklevel=2)
                return
            raise RuntimeError(
                f"The model is whole in {output_dir}, but was not uploaded ({told}). Do so by "
                f"`hf upload {repo_id} {output_dir} --exclude 'checkpoint-*' 'best/*' '.*'`."
            ) from error


def _status(error: HfHubHTTPError) -> int:
    return error.response.status_code if error.response is not None else 0
