"""`lm-gym doctor`: what this installation is made of, what is broken, and what to do about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lm_gym.extras import install_command

OK, NOTE, BROKEN = "ok", "note", "BROKEN"
LEAST_FREE = 100e6
WANTED_FREE = 2e9
OLDEST_PYTHON = (3, 10)

EXTRAS = {
    "peft": (("peft",), "LoRA (--lora-rank)"),
    "vllm": (("vllm",), "decoding with vLLM"),
    "report": (("matplotlib",), "plots"),
    "annotate": (("fastapi", "uvicorn", "jinja2", "markdown_it", "nh3"), "the annotation page"),
    "track": (("tensorboard", "trackio", "wandb"), "trackers beside CSV and JSONL"),
}
"""Extra -> modules that it brings, and what for."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: str
    """OK, NOTE (works, worth knowing) or BROKEN."""
    what: str
    detail: str
    todo: str = ""


def doctor() -> int:
    """Print every finding; 1 if something is broken, 0 otherwise."""
    broken = 0
    for check in CHECKS:
        try:
            findings = list(check())
        except Exception as error:  # a doctor that dies of the illness helps nobody
            name = check.__name__.removeprefix("check_")
            text = " ".join(str(error).split())
            findings = [Finding(BROKEN, name, f"{type(error).__name__}: {text}", "reinstall: pip install -e .")]
        for found in findings:
            broken += found.state == BROKEN
            print(f"{found.state:<7} {found.what:<18} {found.detail}")
            if found.todo:
                print(f"{'':<27}-> {found.todo}")
    print(f"\n{broken} broken" if broken else "\nnothing is broken")
    return 1 if broken else 0


def check_python() -> Iterator[Finding]:
    detail = f"{platform.python_version()} ({sys.executable}) on {platform.system()} {platform.machine()}"
    good = sys.version_info >= OLDEST_PYTHON
    yield Finding(OK if good else BROKEN, "python", detail, "" if good else "LM Gym needs Python 3.10 or newer")


def check_install() -> Iterator[Finding]:
    import lm_gym

    here = Path(str(lm_gym.__file__)).resolve().parent
    try:
        distribution = importlib.metadata.distribution("lm-gym")
    except importlib.metadata.PackageNotFoundError:
        todo = f"pip install -e {here.parent}"
        yield Finding(BROKEN, "lm-gym", f"imported from {here}, which is not installed", todo)
        return
    kind = "editable" if _is_editable(distribution) else "installed"
    if distribution.version == lm_gym.__version__:
        yield Finding(OK, "lm-gym", f"{lm_gym.__version__}, {kind}, {here}")
    else:
        detail = f"{here} is {lm_gym.__version__}, and what is installed is {distribution.version}"
        yield Finding(BROKEN, "lm-gym", detail, "install it again: pip install -e . (or make venv)")
    for name in ("agents", "reward_models"):
        try:
            importlib.import_module(f"lm_gym.{name}")
        except ImportError as error:  # a checkout that hides an installed one: the message says what to do
            yield Finding(BROKEN, f"lm_gym.{name}", " ".join(str(error).split()))
    for group in ("lm_gym.agents", "lm_gym.reward_models"):
        names = sorted({point.name for point in importlib.metadata.entry_points(group=group)})
        todo = "" if names else "no name is registered: pip install -e ."
        yield Finding(OK if names else BROKEN, group.removeprefix("lm_gym."), ", ".join(names), todo)


def _is_editable(distribution: importlib.metadata.Distribution) -> bool:
    text = distribution.read_text("direct_url.json")
    return bool(text and json.loads(text).get("dir_info", {}).get("editable"))


def check_packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    tested = _constraints()
    for line in importlib.metadata.requires("lm-gym") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        name = wanted.name
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(BROKEN, name, f"not installed, and {wanted.specifier} is needed", f"pip install '{line}'")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            yield Finding(BROKEN, name, f"{version}, and {wanted.specifier} is needed", f"pip install -U '{line}'")
        elif name in tested and tested[name] != version.partition("+")[0]:
            yield Finding(NOTE, name, f"{version}; the tests ran with {tested[name]} (constraints.txt)")
        else:
            yield Finding(OK, name, version)


def _constraints() -> dict[str, str]:
    """Package -> version that the tests ran with, where this is a checkout."""
    import lm_gym

    path = Path(str(lm_gym.__file__)).resolve().parent.parent / "constraints.txt"
    if not path.is_file():
        return {}
    lines = (line.partition(";")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {name: version for name, _, version in (line.partition("==") for line in lines) if version}


def check_torch() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"{torch.get_num_threads()} threads on {cores} cores"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding(OK, "compute", f"{detail}; CUDA {torch.version.cuda}: {names} (--device cuda)")
    else:
        yield Finding(OK, "compute", f"{detail}; no CUDA device, so --device cpu")


def check_tiny() -> Iterator[Finding]:
    from lm_gym import tiny
    from lm_gym.runinfo import file_hash

    root = Path(str(tiny.__file__)).parent
    odd = [
        name
        for name, expected in tiny.SHA256.items()
        if not (root / name).is_file() or file_hash(root / name).removeprefix("sha256:") != expected
    ]
    if odd:
        detail = f"missing or changed: {', '.join(odd)}"
        yield Finding(BROKEN, "tiny", detail, "put the files back: git checkout lm_gym/tiny, or install again")
        return
    import transformers  # noqa: F401  (its import is not tiny's loading time)

    from lm_gym.loading import load_model

    load_model("tiny")
    started = time.perf_counter()
    lm = load_model("tiny")
    seconds = time.perf_counter() - started
    count = sum(p.numel() for p in lm.parameters())
    hashed = f"{len(tiny.SHA256)} files as released, " if tiny.SHA256 else ""
    yield Finding(OK, "tiny", f"{count:,} parameters, {hashed}loads in {seconds:.2f} s, {lm.fingerprint()[:12]}")


def check_disk() -> Iterator[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    detail = f"{free / 1e9:.1f} GB free in {here}"
    if not os.access(here, os.W_OK):
        yield Finding(BROKEN, "disk", f"{here} cannot be written", "go to another folder, or give --out")
    elif free < LEAST_FREE:
        yield Finding(BROKEN, "disk", detail, "make room: a run writes checkpoints")
    else:
        yield Finding(OK if free > WANTED_FREE else NOTE, "disk", detail)


def check_extras() -> Iterator[Finding]:
    for extra, (modules, purpose) in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if not missing:
            yield Finding(OK, extra, f"{purpose}: {', '.join(modules)}")
        else:
            detail = f"{purpose}: without {', '.join(missing)}"
            yield Finding(NOTE, extra, detail, f"if you want it: {install_command(extra)}")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_install,
    check_packages,
    check_torch,
    check_tiny,
    check_disk,
    check_extras,
)
