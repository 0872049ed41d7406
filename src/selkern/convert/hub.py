"""The Hugging Face Hub: weights fetched from there and put there, only ever when it is asked for by name.

All of it goes through huggingface_hub, which is optional and imported within the functions. Its caches, its login and
its environment variables (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, ...) hold here too.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from selkern.errors import CheckpointError, ResourceError, SelkernError, UsageError
from selkern.models.weights import describes_itself

PREFIX = "hf-hub:"
WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_repository(source: str) -> bool:
    """Whether a text has the form of a repository's name, user/name or user/name@revision."""
    return _NAME.fullmatch(source.partition("@")[0]) is not None


def is_reference(source: str | Path) -> bool:
    """Whether weights are named as a repository of the Hub: hf-hub:user/name, hf-hub:user/name@revision."""
    return str(source).startswith(PREFIX)


def origin(path: Path) -> str:
    """Where a weights file comes from: its name, or for one in the Hub's cache its repository and commit."""
    result = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/([^/]+)/", path.as_posix())
    return f"{PREFIX}{result[1]}/{result[2]}@{result[3]}" if result else path.name


def fetch(reference: str) -> Path:
    """The weights file of a repository, from the Hub or, if they have not changed or it is offline, from its cache.

    A `config.json` is fetched beside weights that are not ours: that of timm says how to prepare images.

    Args:
        reference: hf-hub:user/name, with @revision (a branch, a tag or a commit) for another one than main.

    Raises:
        UsageError: huggingface_hub is not installed, or this is no repository's name.
        CheckpointError: no such repository, revision or file, no access, no connection, or a damaged file.
    """
    repository, _, revision = str(reference).removeprefix(PREFIX).partition("@")
    with _one_line_errors(repository, pushing=False):
        # Not its public from_pretrained: that asks for a config.json first, and offline fails where there is none.
        parcel = _parcel()._from_pretrained(
            model_id=repository,
            revision=revision or None,
            cache_dir=None,
            force_download=False,
            local_files_only=False,
            token=None,
        )
    return parcel.folder / WEIGHTS


def push(folder: Path, repository: str, *, private: bool | None, token: str | None, message: str) -> str:
    """Put the files of a folder into a repository, in one commit; the repository is made where there is none.

    Args:
        private: whether a repository that has to be made is private; None leaves it to the account's settings.
        token: None takes that of the login.

    Returns:
        The address of the commit.

    Raises:
        UsageError: huggingface_hub is not installed, this is no repository's name, not logged in, or not allowed.
        CheckpointError: no connection.
    """
    with _one_line_errors(repository, pushing=True):
        parcel = _parcel()(folder)
        return str(parcel.push_to_hub(repository, private=private, token=token, commit_message=message))


def _parcel() -> Any:
    """The class of what travels to and from the Hub: a folder of files."""
    from huggingface_hub import ModelHubMixin, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    class Parcel(ModelHubMixin):
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def _save_pretrained(self, save_directory: Path) -> None:
            for file in self.folder.iterdir():
                shutil.copy(file, save_directory)

        @classmethod
        def _from_pretrained(cls, *, model_id: str, revision: str | None, **options: Any) -> Parcel:
            download = partial(hf_hub_download, model_id, **options)
            weights = Path(download(WEIGHTS, revision=revision))
            try:
                ours = describes_itself(weights)
            except CheckpointError as error:  # the cache would give it again and again
                raise CheckpointError(error.what, str(weights.resolve()), "delete it and fetch it again") from error
            if not ours:
                # Of the same commit, whatever has been pushed since; few repositories have one.
                with suppress(EntryNotFoundError):
                    download(CONFIG, revision=weights.parent.name)
            return cls(weights.parent)

    return Parcel


@contextmanager
def _one_line_errors(repository: str, pushing: bool) -> Iterator[None]:
    """Within the block, what huggingface_hub and its HTTP client raise becomes an error of ours."""
    try:
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise UsageError("huggingface_hub is not installed", repository, "pip install 'selkern[hub]'") from error
    if not is_repository(repository):
        fix = "give user/name, as in timm/skresnet18.ra_in1k"
        raise UsageError("not the name of a repository", repository or "(empty name)", fix)
    # The base of its errors is that of the HTTP client, which has changed from requests to httpx and further.
    caught: tuple[type[BaseException], ...] = (OSError, ValueError, RuntimeError, *HfHubHTTPError.__bases__)
    try:
        yield
    except SelkernError:
        raise
    except caught as error:
        raise (_push_error if pushing else _fetch_error)(error, repository) from error


def _status(error: BaseException) -> int:
    """What the Hub answered, as an HTTP status; 0 where it did not answer."""
    # Of some answers huggingface_hub says only that the file is not in its cache, and keeps them as the cause.
    answers = [getattr(one, "response", None) for one in (error, error.__cause__)]
    return next((int(answer.status_code) for answer in answers if answer is not None), 0)


def _reason(error: BaseException) -> str:
    """What the Hub says in its own words, or the first line of an error."""
    lines = (getattr(error, "server_message", None) or str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _common_error(error: BaseException, repository: str) -> SelkernError | None:
    from huggingface_hub.errors import HFValidationError

    if isinstance(error, HFValidationError):
        return UsageError(f"not the name of a repository ({_reason(error)})", repository, "give user/name")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return ResourceError(f"cannot write ({error.strerror})", str(error.filename or ""), "free space or set HF_HOME")
    return None


def _fetch_error(error: BaseException, repository: str) -> SelkernError:
    from huggingface_hub import errors

    bring = f"bring its {WEIGHTS} and give the path: weights={WEIGHTS!r} or `selkern convert`"
    if (known := _common_error(error, repository)) is not None:
        return known
    status = _status(error)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return CheckpointError("access is not allowed", repository, f"ask for it on the Hub, then {LOG_IN}")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return CheckpointError("no such repository, or a private one", repository, f"check the name, or {LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError("no such revision", repository, "give a branch, a tag or a commit of it")
    if status == 404:
        return CheckpointError(f"the repository has no {WEIGHTS}", repository, "nothing else is loaded from the Hub")
    if status:
        return CheckpointError(f"the Hub answers {status}", repository, f"try again later, or {bring}")
    if isinstance(error, errors.EntryNotFoundError | ConnectionError):
        return CheckpointError("cannot reach the Hub", repository, bring)
    return CheckpointError(f"cannot be fetched ({_reason(error)})", repository, bring)


def _push_error(error: BaseException, repository: str) -> SelkernError:
    if (known := _common_error(error, repository)) is not None:
        return known
    status = _status(error)
    if status == 401:
        return UsageError("not logged in, or the token is not valid", repository, f"{LOG_IN}, or give token=")
    if status in (402, 403, 404):
        return UsageError(f"not allowed ({_reason(error)})", repository, "use a token that may write there")
    if 400 <= status < 500 or isinstance(error, ValueError):
        return UsageError(f"refused by the Hub ({_reason(error)})", repository, "mend what it names")
    what = f"the Hub answers {status}" if status else f"cannot reach the Hub ({_reason(error)})"
    return CheckpointError(what, repository, "push again later; `save_pretrained` writes the same files into a folder")
