"""Models from strangers: no pickle is opened, no code of theirs is run, and damage is named by its file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SAFE = {"use_safetensors": True, "trust_remote_code": False}
"""Arguments of every ``from_pretrained`` of weights. Code in a model's repository is never run: there is no option."""


class Unloadable(ValueError):
    """A model that is there and must not, or cannot, be loaded."""


def pretrained(auto: Any, source: str, *, what: str, **options: Any) -> Any:
    """``auto.from_pretrained(source)``, strictly: safetensors (or GGUF) alone, and every weight of the model in it.

    Args:
        auto: a class of ``transformers`` such as ``AutoModelForCausalLM``. what: the argument's name, for errors.

    Raises:
        Unloadable: pickled weights; a file that is damaged; weights that are missing or of
            another shape than ``config.json`` says.
    """
    from safetensors import SafetensorError

    refuse_pickles(source, what)
    try:
        with quiet():
            model, info = auto.from_pretrained(source, output_loading_info=True, **SAFE, **options)
    except SafetensorError as e:
        raise Unloadable(f"{what} {source!r}: {_damaged(source) or 'a safetensors file'} is damaged: {e}") from e
    except RuntimeError as e:
        raise Unloadable(f"{what} {source!r}: its weights do not fit its config.json: {_first_line(e)}") from e
    absent = sorted(info.get("missing_keys") or ())
    odd = sorted(str(key) for key in info.get("mismatched_keys") or ())
    if absent or odd:
        raise Unloadable(
            f"{what} {source!r}: its files lack {len(absent)} weights that its config.json asks for, and have "
            f"{len(odd)} of another shape, such as {(absent + odd)[0]}: it is damaged, or of another kind of model"
        )
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars that transformers draws for every load and save."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def refuse_pickles(source: str, what: str) -> None:
    """Refuse a local folder whose weights are pickles: opening one may run what is in it.

    Raises:
        ValueError: names the file.
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    files = [path.name for path in folder.iterdir()]
    for stem in ("adapter_model", ""):  # an adapter is loaded beside whole weights, so each must be safe by itself
        mine = [name for name in files if name.startswith("adapter_model") == bool(stem)]
        pickled = [name for name in mine if name.endswith(PICKLES) and not name.startswith("training_args")]
        if pickled and not any(name.endswith((".safetensors", ".gguf")) for name in mine):
            raise Unloadable(
                f"{what} {source!r} has its weights in {sorted(pickled)[0]}, a pickle, which can run code when it is "
                "opened: convert it to safetensors where you trust it (model.save_pretrained(folder) of transformers)"
            )


def _damaged(source: str) -> str | None:
    """Which safetensors file of a local folder cannot be opened."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []:
        try:
            with safe_open(str(path), framework="pt") as f:
                f.keys()
        except (SafetensorError, OSError):
            return str(path)
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
