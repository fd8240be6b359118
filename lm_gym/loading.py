"""How a name becomes a model: :func:`load_model`.

Of strangers' models no pickle is opened and no code is run, and damage is named by its file.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from lm_gym.adapters import adapter_base, with_adapter
from lm_gym.local_paths import refuse_missing_path
from lm_gym.models import CausalLM, EncoderDecoder, TransformersLM, refuse_encoder_decoder
from lm_gym.weight_shapes import oversized

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SAFE = {"use_safetensors": True, "trust_remote_code": False}
"""Arguments of every ``from_pretrained`` of weights. Code in a model's repository is never run: there is no option."""


BROKEN = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, StrictDataclassError, RecursionError)
"""What ``transformers`` raises of a config whose numbers cannot be (no heads, a text for a size)."""

LOADING = threading.RLock()
"""Held while anything is loaded: ``transformers`` changes globals of torch meanwhile and is imported piece by piece, so
two threads at once would leave a process in which nothing can be loaded any more."""


class Unloadable(ValueError):
    """A model that is there and must not, or cannot, be loaded."""


def resolve_dtype(dtype: Any) -> torch.dtype:
    """A torch dtype from its name ("float32", "bfloat16", "float16") or itself."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype expected one of {sorted(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def resolve_device(device: Any) -> torch.device:
    """A torch device that is there."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as e:
        raise ValueError(f"device expected 'cpu', 'cuda' or 'cuda:N', got {device!r}") from e
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: torch {torch.__version__} sees no CUDA device here; use device='cpu'")
    return found


def load_model(
    model: Any,
    *,
    tokenizer: Any = None,
    device: Any = "cpu",
    dtype: Any = "float32",
    what: str = "model",
    check: bool = True,
) -> CausalLM:
    """A :class:`CausalLM` from ``tiny``, a hub id, a local folder, a GGUF file or a live model.

    Args:
        model: str or Path; a live ``transformers`` model, used as it is and not copied (its device and dtype stay);
            or a :class:`CausalLM`.
        tokenizer: a live tokenizer or the name of one; by default the one found beside the model.
        device: "cpu", "cuda", …. dtype: "float32", "bfloat16" or "float16", for models that are loaded here.
        what: the argument's name, for errors.
        check: as for :class:`lm_gym.models.TransformersLM`.

    Raises:
        ValueError: if nothing can be loaded under that name, or what it is cannot be used.
    """
    if isinstance(model, CausalLM):
        return model
    with LOADING:
        return _load(model, tokenizer, device, dtype, what, check)


def _load(model: Any, tokenizer: Any, device: Any, dtype: Any, what: str, check: bool) -> CausalLM:
    if isinstance(tokenizer, (str, Path)):
        refuse_missing_path(str(tokenizer), "tokenizer")
    where, precision = resolve_device(device), resolve_dtype(dtype)
    if isinstance(model, nn.Module):
        if not hasattr(model, "get_output_embeddings"):
            raise ValueError(f"{what} expected a transformers causal LM or a name, got a {type(model).__name__}")
        name = str(getattr(model, "name_or_path", "") or type(model).__name__)
        refuse_encoder_decoder(model.config, name)
        return TransformersLM(model, load_tokenizer(tokenizer or name, what), name, check=check)
    if not isinstance(model, (str, Path)):
        raise ValueError(
            f"{what} expected 'tiny', a hub id, a folder, a GGUF file or a transformers model, got a "
            f"{type(model).__name__}"
        )
    from transformers import AutoConfig, AutoModelForCausalLM

    name, source, extra = str(model), str(model), {}
    if name == "tiny":
        from lm_gym.tiny import tiny_path

        source = str(tiny_path())
    elif name.endswith(".gguf"):
        if not Path(name).is_file():
            raise ValueError(f"{what} expected a GGUF file, got {name!r}, which does not exist")
        source, extra = str(Path(name).parent), {"gguf_file": Path(name).name}
    else:
        refuse_missing_path(name, what)
    base = None
    try:
        base = None if extra else adapter_base(source)
        weights = base or source
        if not extra:
            refuse_missing_path(weights, f"{what}'s base" if base else what)
            refuse_encoder_decoder(AutoConfig.from_pretrained(weights, trust_remote_code=False), name)
        refuse_pickles(source, what)
        loaded = pretrained(AutoModelForCausalLM, weights, what=what, dtype=precision, **extra)
        loaded = with_adapter(loaded, source) if base else loaded
    except (Unloadable, EncoderDecoder):
        raise
    except (OSError, RuntimeError, ValueError, ImportError, *BROKEN) as e:
        raise ValueError(
            f"{what} expected 'tiny', a hub id, a folder with config.json, an adapter's folder, or a GGUF file; could "
            f"not load {name!r}: {first_line(e)}"
        ) from e
    if base and Path(source).is_dir() and not any("token" in file.name for file in Path(source).iterdir()):
        source = base  # an adapter's folder need not have a tokenizer
    found = load_tokenizer(tokenizer or source, what, **({} if tokenizer else extra))
    return TransformersLM(loaded.to(where), found, name, check=check)


def tokenizer_of(model: Any) -> Any:
    """The tokenizer that is found beside a model (see :func:`load_model`), or None."""
    name, extra = str(getattr(model, "name_or_path", "") if isinstance(model, nn.Module) else model), {}
    if name == "tiny":
        from lm_gym.tiny import tiny_path

        name = str(tiny_path())
    elif name.endswith(".gguf"):
        name, extra = str(Path(name).parent), {"gguf_file": Path(name).name}
    try:
        return load_tokenizer(name, "model", **extra) if name else None
    except ValueError:
        return None


def load_tokenizer(tokenizer: Any, what: str, **extra: Any) -> Any:
    """A tokenizer from a hub id or a folder; a live one is what it is. ``what`` it belongs to, for errors.

    Raises:
        ValueError: there is none under that name.
    """
    if not isinstance(tokenizer, (str, Path)):
        return tokenizer
    from transformers import AutoTokenizer

    refuse_missing_path(str(tokenizer), what)
    try:
        with LOADING:
            found = AutoTokenizer.from_pretrained(str(tokenizer), trust_remote_code=False, **extra)
    except Exception as e:  # the tokenizers library raises plain Exception where a file is damaged
        raise ValueError(f"{what}: no tokenizer found at {str(tokenizer)!r} ({first_line(e)}); pass tokenizer=") from e
    # where a folder has no tokenizer's files, transformers makes one of special tokens alone (for T5 with one word)
    words = len(set(found.get_vocab()) - set(found.all_special_tokens)) if len(found) < 1000 else 1000
    folder = Path(tokenizer)
    if words == 0 or (words == 1 and folder.is_dir() and not any("token" in file.name for file in folder.iterdir())):
        raise ValueError(
            f"{what}: the tokenizer at {str(tokenizer)!r} has no vocabulary, only special tokens: there are no files "
            "of one, or they are empty; pass tokenizer="
        )
    return found


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
        with LOADING, quiet():
            refuse_oversized(auto, source, what, **{k: v for k, v in options.items() if k == "gguf_file"})
            model, info = auto.from_pretrained(source, output_loading_info=True, **SAFE, **options)
    except SafetensorError as e:
        raise Unloadable(f"{what} {source!r}: {_damaged(source) or 'a safetensors file'} is damaged: {e}") from e
    except (RuntimeError, *BROKEN) as e:
        if isinstance(e, BROKEN):
            raise Unloadable(f"{what} {source!r}: its config cannot be used: {first_line(e)}") from e
        raise Unloadable(f"{what} {source!r}: its weights do not fit its config.json: {first_line(e)}") from e
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
        try:
            refuse_missing_path(source, what)
        except ValueError as e:
            raise Unloadable(str(e)) from None
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


def refuse_oversized(auto: Any, source: str, what: str, **options: Any) -> None:
    """Refuse a local folder whose config claims far more weights than it has, before memory is taken for them.

    Raises:
        ValueError: names what the config claims and what there is.
    """
    found = None if options.get("gguf_file") else oversized(auto, source)
    if found:
        raise Unloadable(f"{what} {source!r}: {found}: it is damaged, or of another kind of model")


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


def first_line(error: Exception) -> str:
    """What an error of ``transformers`` says, on a line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if isinstance(error, StrictDataclassError):
        return " ".join(lines)  # the reason is on the second
    kind = f"{type(error).__name__}: " if isinstance(error, BROKEN) else ""  # they say little by themselves
    return kind + (lines[0] if lines else "no message")
