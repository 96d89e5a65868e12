"""Whether a model or dataset can be had from the Hub: asked once, in seconds, before hours are spent."""

from __future__ import annotations

import os
from pathlib import Path

from instruct_prune.errors import InputError

PATIENCE_SECONDS = 5.0


def check_on_hub(repo: str, revision: str | None, option: str, what: str = "model") -> None:
    """Refuse a model or dataset that cannot be loaded; nothing is asked where one file of it is in the cache.

    Args:
        repo: owner/name.
        revision: branch, tag or commit.
        option: where the name was written, for messages.
        what: "model" or "dataset".

    Raises:
        InputError: there is none of this name or revision, it is gated, or the Hub cannot be reached.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    file = "config.json" if what == "model" else "README.md"
    if isinstance(try_to_load_from_cache(repo, file, revision=revision, repo_type=what), str):
        return
    if what == "dataset" and _prepared(repo):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repo, file, revision=revision, repo_type=what), timeout=PATIENCE_SECONDS)
    except errors.GatedRepoError:
        why = "it is gated. Accept its terms on its page on the Hub, and log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        why = f"it has no revision {revision!r}"
    except errors.RepositoryNotFoundError:
        why = f"there is no such {what} on the Hub (or it is private: log in with `hf auth login`). Check the name"
    except errors.EntryNotFoundError:
        return  # there, with other files: loading it says what it lacks
    except errors.OfflineModeIsEnabled:
        why = "it is not in the cache, and HF_HUB_OFFLINE is set. Unset it, or name local files"
    except _network_errors() as error:
        why = (
            f"it is not in the cache, and the Hub cannot be reached ({' '.join(str(error).split())[:150]}). Check the network, "
            "or name local files"
        )
    else:
        return
    raise InputError(f"{option} {repo}: {why}. No other {what} is used in its place.")


def hub_commit(repo: str, revision: str | None) -> str:
    """The commit a Hub id stands for now, from the cache when the Hub is not reachable."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    return revision or "main"


def logged_in() -> bool:
    """Whether there is a token for the Hub."""
    from huggingface_hub import get_token

    return get_token() is not None


def _prepared(repo: str) -> bool:
    """Whether ``datasets`` may have this one ready, which it opens without the Hub (its folders spell names in other ways)."""
    from huggingface_hub import constants

    root = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return any(root.glob(f"{repo.partition('/')[0]}___*"))


def _network_errors() -> tuple[type[Exception], ...]:
    """Those of the HTTP library below, which is another one in each major version of huggingface_hub."""
    from huggingface_hub import errors

    return OSError, vars(errors)["HTTPError"]
