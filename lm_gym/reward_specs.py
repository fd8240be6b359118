"""From what a user writes for `reward_model` to a callable.

| written | means |
|---|---|
| a callable | itself |
| `vader`, `length?target=40&unit=words` | a name of the entry-point group `lm_gym.reward_models`, and its arguments |
| `py:module:attribute`, `py:./file.py:attribute` | a function, class or factory of the user's |
| `hf:org/model?label=POSITIVE&output=logit` | a transformers sequence classifier, hub id or folder (entry point `hf`) |
| `http://host/score?dialect=classify` | a reward model behind HTTP (entry point `http`) |
| `combine:my_rewards.yaml` | reward models put together in a file (entry point `combine`) |

Behind `?` stand arguments as in a URL, percent-encoded where need be (`%26` is an ampersand; a plus sign is itself). A
class is made with them; a factory is called with them, and what it returns is the reward model (TRL's
`get_soft_overlong_punishment`); any other function is bound to them. A function is a factory if it is annotated to
return something that can be called, or, without an annotation of what it returns, if it takes nothing that a reward
model is given: none of the keywords of :data:`KEYWORDS`, and no `**kwargs`.

Names come from entry points, so that the core imports no reward model and other packages can add theirs.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from lm_gym.reward_errors import UnusableRewardModel, named_errors
from lm_gym.reward_identity import USER_FILE

GROUP = "lm_gym.reward_models"
FACTORY = (
    "it takes no completions, so it is taken for a factory, whose result is the reward model; a reward model that "
    "reads columns alone says so by `-> list[float]`"
)
KEYWORDS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What every call of a reward model sets; a column of a prompt set cannot have one of these names."""
PREFIXES = ("hf", "http", "combine")
"""Entry points that are reached by a prefix and not by their plain name."""


def load_reward_model(spec: Any) -> Callable[..., Any]:
    """The reward model that `spec` means (see the table of this module).

    Raises:
        TypeError: neither a callable nor a string, or a bare torch module, or a class.
        ValueError: no such name, module, attribute or argument; says the nearest known one.
        UnusableRewardModel: the user's file, function or class raises; it is a ValueError and a RewardModelError.
    """
    if not isinstance(spec, str):
        return _checked_callable(spec)
    if spec.startswith(("http://", "https://")):
        address, _, query = spec.partition("?")
        return _made(_entry_point("http").load(), query, spec, address)
    body, _, query = spec.partition("?")
    kind, colon, rest = body.partition(":")
    if colon and kind == "py":
        return _made(user_attribute(rest, spec), query, spec)
    if colon and kind == "hf":
        if not rest:
            raise ValueError(f"{spec!r}: expected hf:<hub id or folder>, such as hf:org/model?label=POSITIVE")
        return _made(_entry_point("hf").load(), query, spec, rest)
    if colon and kind == "combine":
        if not rest or query:
            raise ValueError(f"{spec!r}: expected combine:<file.yaml>, with all arguments inside the file")
        return typing.cast(Callable[..., Any], _entry_point("combine").load()(rest))
    return _made(_entry_point(body, spec).load(), query, spec)


def reward_model_names() -> list[str]:
    """The plain names that `load_reward_model` knows, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)} - set(PREFIXES))


def is_module(value: Any) -> bool:
    """Whether `value` is a torch module, without importing torch."""
    return hasattr(value, "forward") and hasattr(value, "state_dict")


def parameters_of(reward_model: Any) -> Mapping[str, inspect.Parameter] | None:
    """The parameters that a call of a reward model has, by name; None for builtins that do not say.

    The `__call__` of a torch module takes anything, its `forward` does not.
    """
    try:
        return inspect.signature(reward_model.forward if is_module(reward_model) else reward_model).parameters
    except (TypeError, ValueError):
        return None


def _checked_callable(spec: Any) -> Callable[..., Any]:
    if inspect.isclass(spec):
        raise TypeError(
            f"reward_model is the class {spec.__qualname__}; make an object of it: {spec.__qualname__}(...)"
        )
    if is_module(spec) and "completions" not in inspect.signature(spec.forward).parameters:
        raise TypeError(
            f"reward_model is a torch module ({type(spec).__qualname__}), which takes token ids and not texts; "
            "give lm_gym.reward_models.classifier.Classifier(model, tokenizer=...), or 'hf:<hub id or folder>'"
        )
    if not callable(spec):
        raise TypeError(
            f"reward_model is {spec!r}; expected a callable (prompts, completions, **columns) -> list of floats, or a "
            f"string: one of {', '.join(reward_model_names())}, 'py:module:attribute', 'hf:<model>', 'http://...'"
        )
    return typing.cast(Callable[..., Any], spec)


def _entry_point(name: str, spec: str = "") -> EntryPoint:
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name in found and (name not in PREFIXES or not spec):
        return found[name]
    if not found:
        raise ValueError(
            f"no reward model is registered, {name!r} neither: lm_gym is imported without being installed. Run "
            "'pip install -e .' in its folder"
        )
    names = sorted(set(found) - set(PREFIXES))
    hint = (
        "hf:<hub id or folder>, http://host/path, combine:<file.yaml> and py:module:attribute are the other forms"
        if ":" not in name
        else "prefixes are py:, hf:, combine:, http:// and https://"
    )
    raise ValueError(f"unknown reward model {name!r}.{_nearest(name, names)} Names: {', '.join(names)}; {hint}")


def user_attribute(rest: str, spec: str) -> Any:
    """What ``py:`` means: ``module:attribute`` or ``./file.py:attribute``, a function or a class.

    Args:
        rest: what stands behind ``py:``. spec: all that the user wrote, for errors.

    Raises:
        ValueError: no such file, module or attribute (with the nearest), or it cannot be called.
    """
    place, colon, path = rest.rpartition(":")
    if not colon or not place or not path:
        raise ValueError(f"{spec!r}: expected py:module:attribute or py:./file.py:attribute")
    found: Any = _module_from_file(place, spec) if place.endswith(".py") else _module_by_name(place, spec)
    for part in path.split("."):
        if not hasattr(found, part):
            known = [name for name in dir(found) if not name.startswith("_")]
            raise ValueError(f"{spec!r}: {place} has no {part!r}.{_nearest(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{spec!r} is {type(found).__qualname__}, not a function, a class or a callable object")
    return found


def _module_from_file(place: str, spec: str) -> types.ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"{spec!r}: there is no file {path}")
    _make_importable(path.parent)  # for what the file imports from beside it
    name = f"lm_gym_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    setattr(module, USER_FILE, path.name)
    sys.modules[name] = module  # dataclasses and pickle look the module up while it runs
    try:
        with _users_errors(spec):
            module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_by_name(name: str, spec: str) -> types.ModuleType:
    top = name.partition(".")[0]
    here = Path.cwd()
    # A console script has no "" on sys.path, and a user's file is mostly in the folder that the command runs in.
    if (here / f"{top}.py").is_file() or (here / top).is_dir():
        _make_importable(here)
    try:
        with _users_errors(spec):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there, something that it imports is not
        raise ValueError(f"{spec!r}: there is no module {error.name!r} (looked in {here} and on sys.path)") from error


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # at the end: it shadows nothing


@contextlib.contextmanager
def _users_errors(spec: str) -> Iterator[None]:
    """What a user's file or class raises, with its name; a module that is not installed says by itself what is missing.

    Reward models of packages say by themselves what is wrong with their arguments, by the exceptions of set-up.
    """
    try:
        with named_errors(repr(spec), UnusableRewardModel):
            yield
    except UnusableRewardModel as error:
        cause = error.__cause__
        if isinstance(cause, ImportError) or (
            isinstance(cause, (ValueError, TypeError, OSError)) and not spec.startswith("py:")
        ):
            raise cause from None
        raise


def _is_factory(target: Any, returned: Any) -> bool:
    """Whether calling a function gives a reward model, and not scores: see this module's docstring."""
    parameters = parameters_of(target)
    if not inspect.isroutine(target) or inspect.iscoroutinefunction(target) or parameters is None:
        return False
    if returned not in (None, Any):
        return _is_callable_type(returned)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return not takes_any and not set(parameters) & set(KEYWORDS)


def _is_callable_type(annotation: Any) -> bool:
    if isinstance(annotation, str):  # its names are not there at run time
        return "Callable" in annotation
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType):
        return any(map(_is_callable_type, typing.get_args(annotation)))
    return origin is Callable or (inspect.isclass(origin) and "__call__" in dir(origin))


def _made(target: Any, query: str, spec: str, *arguments: str) -> Callable[..., Any]:
    """A class made with the arguments of the query, a factory called with them, another function bound to them."""
    try:
        # A plus sign stands for a space in forms only: in regex?pattern=a+ it is a plus sign.
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ValueError(f"{spec!r}: expected name=value behind the question mark, joined by &") from error
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError(f"{spec!r}: an argument is given twice")
    is_class = inspect.isclass(target)
    parameters = parameters_of(target) or {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = known[len(arguments) :]
    try:
        hints = typing.get_type_hints(target.__init__ if is_class else target)
    except Exception:  # an annotation that cannot be resolved is no reason to refuse the reward model
        hints = dict(getattr(target, "__annotations__", {}))
    makes = is_class or _is_factory(target, hints.get("return"))
    keywords = {}
    for key, text in pairs:
        if key not in known and not (takes_any and makes):
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"{spec!r}: unknown argument {key!r}.{_nearest(key, known)} ({takes})")
        try:
            keywords[key] = _value(text, hints.get(key))
        except ValueError as error:
            raise ValueError(f"{spec!r}: {key} {error}") from error
    if not makes:
        return functools.partial(target, *arguments, **keywords) if arguments or keywords else target
    factory = "" if is_class else f" ({FACTORY})"
    missing = [
        p.name for p in parameters.values() if p.name in known and p.default is p.empty and p.name not in keywords
    ]
    if missing:
        example = "&".join(f"{name}=..." for name in missing)
        raise ValueError(f"{spec!r} lacks {', '.join(missing)}: write {spec}{'&' if query else '?'}{example}{factory}")
    with _users_errors(spec):
        made = target(*arguments, **keywords)
    if not callable(made):
        raise ValueError(f"{spec!r} makes a {type(made).__qualname__}, which cannot be called{factory}")
    return typing.cast(Callable[..., Any], made)


def _value(text: str, hint: Any) -> Any:
    """The value of `key=text`: as the annotation says, or the number, truth value or None that it looks like.

    Raises:
        ValueError: the annotation says a number or a truth value, and the text is none.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = set(typing.get_args(hint)) if union else {hint}
    numbers = kinds & {int, float}
    strict = kinds <= {int, float, bool, type(None)}
    if "none" == text.lower() and type(None) in kinds:
        return None
    if str in kinds and not numbers and bool not in kinds:
        return text
    if text.lower() in ("true", "false") and (bool in kinds or hint is None):
        return text.lower() == "true"
    if numbers or not strict:
        if re.fullmatch(r"[+-]?\d+", text) and float not in kinds:
            return int(text)
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) and (float in kinds or not strict):
            return float(text)
    if strict:
        names = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
        raise ValueError(f"expected {' or '.join(name for kind, name in names.items() if kind in kinds)}, got {text!r}")
    return text


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
