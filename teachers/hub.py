"""Whether the Hugging Face hub would give an encoder's weights, asked without downloading them."""

from collections.abc import Mapping
from typing import Any

from csat.errors import TeacherError
from teachers.timm_encoder import HUB

TERMS = "accept its terms on https://huggingface.co/{repo}, make a token there and set HF_TOKEN on every node"
OFFLINE = "check the internet and HF_ENDPOINT; or download the weights elsewhere and set teacher.weights"


def repository(teacher: str, options: Mapping[str, Any]) -> str | None:
    """The hub's repository that a teacher's weights would come from; None: from elsewhere."""
    model = str(options.get("model", ""))
    prefix = next((each for each in HUB if model.startswith(each)), None)
    return model.removeprefix(prefix) if teacher == "timm" and options.get("pretrained") and prefix else None


def check_access(repo: str) -> str:
    """Ask the hub. Returns what it said, in words.

    Raises:
        TeacherError: it would not give the weights, and what to do.
    """
    # Not above: whoever has a file of weights needs no hub.
    from huggingface_hub import auth_check, get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    token = "with a token" if get_token() else "without a token"
    try:
        auth_check(repo)
    except GatedRepoError as error:
        raise TeacherError(f"{repo} is gated, and the hub does not let you in {token}: {TERMS.format(repo=repo)}") from error
    except RepositoryNotFoundError as error:
        said = f"the hub knows no {repo}, or hides it from whoever asks {token}: check the name in teacher.options.model"
        raise TeacherError(f"{said}; where it is gated, {TERMS.format(repo=repo)}") from error
    except HfHubHTTPError as error:
        raise TeacherError(f"the hub refuses {repo} {token} ({_first_line(error)}): {OFFLINE}") from error
    except Exception as error:  # no network, offline mode: of whatever HTTP client the hub's library uses
        raise TeacherError(
            f"the hub does not answer about {repo} ({type(error).__name__}: {_first_line(error)}): {OFFLINE}"
        ) from error
    return f"the hub gives {repo} {token}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
