"""Files of transformers loaded, and what is wrong with them told in words: no foreign code, no pickle, no weight missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instruct_prune.errors import InputError
from instruct_prune.models.sources import EMBEDDED

if TYPE_CHECKING:
    from instruct_prune.models.names import ModelSource

NO_SDPA = "scaled_dot_product_attention"
PICKLED = (
    "{what}: its weights are a pickle with more in it than tensors, which is never opened (it could run code). Have them as "
    "safetensors."
)


def loaded(factory: Any, source: ModelSource, **options: Any) -> Any:
    """What ``from_pretrained`` makes of a model's files.

    Args:
        factory: class of transformers.
        source: which model.
        options: further arguments.

    Raises:
        InputError: they cannot be read, or are what is never read.
        ValueError: the architecture has no implementation for NO_SDPA.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # transformers would show a bar for each file in each process
    try:
        return factory.from_pretrained(source.location, revision=source.revision, trust_remote_code=False, **options)
    except Exception as error:  # files that others wrote can fail in any way
        if NO_SDPA in str(error):
            raise
        raise InputError(_not_loaded(source, error)) from error


def _not_loaded(source: ModelSource, error: Exception) -> str:
    """Why a model's files could not be read, and what to do."""
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, OSError):
        where = f"folder {source.location}" if source.is_local else "Hugging Face Hub"
        return (
            f"model {source.name!r} could not be loaded from the {where}: {reason} Check the name and the network, "
            f"log in if the model is gated (`hf auth login`), or name a local folder.{_wheel_of(source)} No other model was "
            "used in its place."
        )
    if "trust_remote_code" in reason or "custom code" in reason:
        return (
            f"model {source.name!r} needs code from its own repository, which this tool never runs. Use a model whose "
            "architecture transformers knows."
        )
    if "Unrecognized" in reason or "does not recognize" in reason:
        return f"model {source.name!r}: {reason}"
    if isinstance(error, ImportError) and "torchvision" in reason.lower():
        import transformers

        return (
            f"transformers {transformers.__version__} needs torchvision for the pictures of model {source.name!r}. Install it, "
            "or take another version of transformers (4.57 and 5.24 do without)."
        )
    if type(error).__name__ == "UnpicklingError":
        return PICKLED.format(what=f"model {source.name!r}")
    return (
        f"model {source.name!r} could not be loaded ({type(error).__name__}): {reason} If its files are damaged or were cut "
        "off, copy or download them again. No other model was used in its place."
    )


def whole(factory: Any, source: ModelSource, may_lack: tuple[str, ...] = (), **options: Any) -> Any:
    """A model all of whose weights are in its files: transformers would fill others with random numbers.

    Args:
        factory: class of transformers.
        source: which model.
        may_lack: parts of names of weights that are not used here.
        options: of ``from_pretrained``.

    Raises:
        InputError: some are not there.
    """
    model, found = loaded(factory, source, output_loading_info=True, **options)
    lacking = [name for name in sorted(found["missing_keys"]) if not any(part in name for part in may_lack)]
    if lacking:
        raise InputError(
            f"model {source.name!r}: {len(lacking)} of its weights are not in its files ({', '.join(lacking[:3])}"
            f"{', ...' if len(lacking) > 3 else ''}) and would be random numbers. The files may be incomplete, or those of a "
            f"model of another kind than {type(model).__name__}."
        )
    return model


def _wheel_of(source: ModelSource) -> str:
    entry = EMBEDDED.get(source.name.lower())
    return f" Its weights can be installed: `{entry.install}`." if entry is not None else ""
