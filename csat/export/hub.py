"""An exported folder to the hub: a model repository of huggingface.co, or of a server that speaks as it does (HF_ENDPOINT)."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from csat.errors import ConfigError

PREFIX = "hf-hub:"
PLACE = re.compile(r"^hf-hub:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)$")


def check_push(place: str) -> str:
    """The repository that a place names, once it is known that this user may write at all.

    Raises:
        ConfigError: not `hf-hub:owner/name`, or no token; asked of the machine, not of the hub.
    """
    found = PLACE.match(place)
    if not found:
        raise ConfigError(f"push is {PREFIX}OWNER/NAME, not {place!r}")
    if not huggingface_hub.get_token():
        raise ConfigError(
            f"push {place} needs a token with the right to write, and there is none: set HF_TOKEN, or run `hf auth login`"
        )
    return found[1]


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a local folder in one commit; the repository is made if there is none. Returns its address.

    Raises:
        ConfigError: the hub refuses; says what it said.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload of an exported model")
    except (HfHubHTTPError, OSError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ConfigError(
            f"{api.endpoint} did not take {repository}: {said}. The folder is written all the same; check the token's rights "
            "and the name, and push it again"
        ) from error
    return str(commit.repo_url)
