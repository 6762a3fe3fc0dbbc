"""Publication of a training run on the Hub. The repository is created before training, to find invalid names or tokens.

huggingface_hub reads the token: from `hf auth login`, or the environment variable HF_TOKEN.
"""

from __future__ import annotations

import json
import shlex
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    ModelCard,
    constants,
    create_commit,
    create_repo,
    get_token,
    repo_info,
    whoami,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..utils.messages import one_line
from .written_files import WrittenFiles

PAUSES = (2.0, 8.0)  # seconds before the second and the third attempt
TEMPORARY = (408, 429)  # client errors after which another attempt may succeed: timeout, too many requests
LOGIN = "Log in by `hf auth login`, or set HF_TOKEN, with a token of the role 'write'."


def check_hub(repo_id: str | None, output_dir: str | Path, private: bool = False, license: str | None = None) -> str:
    """Create the model's repository if it does not exist.

    Args:
        repo_id: `name` or `user/name`; by default the name of the output folder.
        output_dir: the output folder of the run.
        private: whether the repository must be private. Defaults to False.
        license: the license of the model card; None, the default, for none.

    Returns:
        The full name of the repository, `user/name`.

    Raises:
        ValueError: if the name is not allowed, there is no token with permission to write there, a public repository of
            this name exists although it must be private, the Hub does not know the license, or the Hub cannot
            be reached.
    """
    name = repo_id or Path(output_dir).resolve().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"`--hub_model_id` {name!r} is not allowed: {error}") from error
    if get_token() is None:
        raise ValueError(f"`--push_to_hub` needs a token. {LOGIN}")
    push_command = f"PFGMPipeline.from_pretrained({str(output_dir)!r}).push_to_hub({name!r})"

    def request(call: Callable[..., Any], refusal: str, *args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except Exception as error:  # each version of huggingface_hub has other exceptions for a broken connection
            status = _status(error)
            if 400 <= status < 500 and status not in TEMPORARY:
                raise ValueError(f"{refusal} ({status}). {LOGIN}") from error
            raise ValueError(
                f"`--push_to_hub`: the Hub ({constants.ENDPOINT}) cannot be reached ({one_line(error)}). Train without "
                f"`--push_to_hub`, and publish the model later by `{push_command}`."
            ) from error

    user = request(whoami, "`--push_to_hub`: the Hub does not accept the token")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"`--push_to_hub`: the token may only read. {LOGIN}")
    if license is not None:
        problem = request(_license_problem, f"`--license` {license!r}: the Hub does not allow it", license)
        if problem is not None:
            raise ValueError(
                f"`--license` {license!r} is not allowed by the Hub: {problem}. Use one of its identifiers, such as "
                "apache-2.0 or cc-by-4.0."
            )
    full_name = name if "/" in name else f"{user['name']}/{name}"
    refusal = (
        f"`--hub_model_id` {full_name!r}: use your own user name or your organization's, as the Hub does not let the "
        f"token of {user['name']!r} write there"
    )
    request(create_repo, refusal, full_name, private=private or None, exist_ok=True)
    # A repository that exists already keeps its visibility.
    if private and not request(repo_info, refusal, full_name).private:
        raise ValueError(
            f"`--hub_private_repo`: the repository {full_name!r} exists and is public. Make it private in its settings "
            "on the Hub, or choose another `--hub_model_id`."
        )
    return full_name


def push(output_dir: str | Path, repo_id: str, message: str, last: bool = False) -> None:
    """Upload the pipeline, its model card and the other files that the run has written: samples, curves and the log.

    Other files in the folder, and targets of symbolic links, are not published. If an upload during the run fails,
    there is only a warning, as the next one uploads all files.

    Args:
        output_dir: the output folder of the run.
        repo_id: the full name of the repository.
        message: the commit message.
        last: whether this is the last upload of the run.

    Raises:
        RuntimeError: if the last upload fails; the message has a command that uploads the files.
    """
    folder = Path(output_dir)
    names: list[str] = []
    for pause in (*PAUSES, None):
        try:
            names = WrittenFiles(folder).published()
            additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
            create_commit(repo_id, additions, commit_message=message)
            return
        except Exception as error:  # also exceptions of the HTTP library, which huggingface_hub does not convert
            is_refused = 400 <= _status(error) < 500 and _status(error) not in TEMPORARY
            if pause is not None and not is_refused:
                time.sleep(pause)
                continue
            if not last:
                warnings.warn(f"{repo_id} was not updated ({one_line(error)}). Training continues.", stacklevel=2)
                return
            include_options = [argument for name in names for argument in ("--include", name)]
            command = shlex.join(["hf", "upload", repo_id, str(folder), ".", *include_options])
            raise RuntimeError(
                f"The model in {output_dir} is complete, but was not uploaded ({one_line(error)}). Upload it by "
                f"`{command}`."
            ) from error


def _license_problem(license: str) -> str | None:
    """Return the Hub's objection to a license on a model card; None if there is none."""
    try:
        ModelCard(f"---\nlicense: {json.dumps(license)}\n---\n").validate()
    except ValueError as error:
        return one_line(error)
    return None


def _status(error: Exception) -> int:
    """Return the HTTP status of the Hub's response; 0 if there was none."""
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    return 0 if response is None else int(response.status_code)
