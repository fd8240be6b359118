"""Where a run's numbers came from: versions, git revision, command, hashes, and the config.yaml that keeps them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

PACKAGES = (
    *("lm-gym", "torch", "transformers", "tokenizers", "gymnasium", "numpy"),
    *("stable-baselines3", "datasets", "safetensors", "peft"),
)
"""Distributions whose version can move a number; those not installed are left out."""

KEEP_CHECKPOINTS = 3
"""How many checkpoints of a run are kept, unless asked otherwise. (Here the command line finds it without torch.)"""

_CREDENTIALS_IN_URL = re.compile(r"://[^/@\s]+@")


def run_info(
    *, seed: int | None = None, hashes: Mapping[str, str] | None = None, command: str | None = None
) -> dict[str, Any]:
    """Collect what is needed to repeat a run: goes into config.yaml under the key ``run``.

    Args:
        seed: The run's seed, where the configuration does not already hold it.
        hashes: Name -> hash, such as ``{"reference": ..., "reward_model": ...}``.
        command: The shell command that started the run; default: this process's own.

    Returns:
        Plain data for YAML: started (UTC), command, seed, versions, git, hashes, platform.
    """
    import lm_gym

    source = Path(lm_gym.__file__).parent if lm_gym.__file__ else None
    revisions = {
        "lm_gym": git_revision(source) if source is not None else None,
        "working_directory": git_revision(Path.cwd(), tracked_file=None),
    }
    info: dict[str, Any] = {
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command if command is not None else current_command(),
        "seed": seed,
        "versions": {"python": platform.python_version(), **package_versions()},
        "git": {name: revision for name, revision in revisions.items() if revision},
        "hashes": dict(hashes or {}),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }
    return {key: value for key, value in info.items() if value not in (None, {})}


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of `names`, without importing any of them."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision(folder: Path, *, tracked_file: str | None = "__init__.py") -> str | None:
    """Commit of the git checkout that holds `folder`, with a note if tracked files differ from it.

    Args:
        folder: Any folder inside the checkout.
        tracked_file: A file in `folder` that git must know. Without this a package installed in a virtual environment
            would report the commit of whatever repository the environment lies in. None skips the question.

    Returns:
        ``"<40 hex digits>"``, the same with ``" with uncommitted changes"``, or None without git or a commit.
    """

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if tracked_file is not None and git("ls-files", "--error-unmatch", tracked_file) is None:
        return None
    revision = git("rev-parse", "HEAD")
    if not revision:
        return None
    return f"{revision} with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else revision


def current_command() -> str:
    """The shell command that started this process, ready to paste, without the credentials a URL may hold."""
    arguments = list(getattr(sys, "orig_argv", sys.argv))
    if sys.argv and Path(sys.argv[0]).name == "lm-gym":
        arguments = ["lm-gym", *sys.argv[1:]]
    elif arguments:
        arguments[0] = Path(arguments[0]).name
    return _CREDENTIALS_IN_URL.sub("://***@", shlex.join(arguments))


def weights_hash(weights: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a model's parameters and buffers.

    Args:
        weights: A ``torch.nn.Module`` or a state dict (name -> tensor of any shape).

    Returns:
        ``"sha256:<64 hex digits>"``. The same weights give the same hash on any device and in any order of names.
    """
    import torch

    state = weights.state_dict() if hasattr(weights, "state_dict") else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, or of all files of a folder (relative names and bytes, in sorted order)."""
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"cannot hash {root}: there is no such file or folder")
    digest = hashlib.sha256()
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    for file in files:
        if root.is_dir():
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(file.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def plain(value: Any) -> Any:
    """Turn a configuration value into what YAML and JSON can hold: dict, list, str, int, float, bool or None.

    Dataclasses become dicts, paths and enums strings, NumPy and 0-d torch numbers Python's; of a live object (a model,
    a function) the qualified name stays. User and password are cut out of URLs.
    """
    if value is None or isinstance(value, (bool, int, float)) and type(value) in (bool, int, float):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, (str, Path)):
        return _CREDENTIALS_IN_URL.sub("://***@", str(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, torch tensors
        return plain(value.tolist())
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give an OSError the name of the file that it came from: of a full disk, a write alone does not know it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.strerror is not None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` through a temporary name, so that a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            with open(temporary, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_config(path: str | Path, config: Mapping[str, Any]) -> None:
    """Write a resolved configuration as YAML, keys in the order given, through a temporary name."""
    import yaml

    write_atomically(Path(path), yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=120))


def read_config(path: str | Path) -> dict[str, Any]:
    """Read what `write_config` wrote. Raises ValueError naming the file where it is not a YAML mapping."""
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a YAML mapping, got {type(config).__name__}")
    return config
