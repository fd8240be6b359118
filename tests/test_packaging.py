"""What is installed, what it weighs to import, and what happens where a checkout hides it."""

import importlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "stable_baselines3", "datasets", "pandas", "peft", "matplotlib", "tensorboard")


def run_python(code: str, cwd: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter started in `cwd` (which is on its path, as for `python -c`)."""
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def package_folders(root: Path, name: str) -> dict[str, Path]:
    """Every Python package from `root` down, by the dotted name that it is installed under."""
    inits = (path.parent for path in root.rglob("__init__.py"))
    return {".".join((name, *folder.relative_to(root).parts)): folder for folder in inits}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from build_wheel import build_wheel

    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_files(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_claims_no_top_level_name_but_lm_gym(wheel_files: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel_files} == {"lm_gym", "lm_gym-0.1.0.dist-info"}


def test_wheel_holds_every_module_under_its_installed_name(wheel_files: set[str]) -> None:
    roots = {"lm_gym": "lm_gym", "agents": "lm_gym.agents", "reward_models": "lm_gym.reward_models"}
    expected = {
        f"{package.replace('.', '/')}/{module.name}"
        for root, name in roots.items()
        for package, folder in package_folders(REPOSITORY / root, name).items()
        for module in folder.glob("*.py")
    }
    assert {name for name in wheel_files if name.endswith(".py")} == expected


def test_wheel_holds_the_data_and_the_type_marker(wheel_files: set[str]) -> None:
    on_disk = {
        path for path in (REPOSITORY / "lm_gym").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    data = {path.relative_to(REPOSITORY).as_posix() for path in on_disk}
    assert data == {name for name in wheel_files if name.startswith("lm_gym/") and not name.endswith(".py")}


def test_version_is_the_same_everywhere() -> None:
    import lm_gym

    assert lm_gym.__version__ == importlib.metadata.version("lm-gym")


@pytest.mark.parametrize("group", ["console_scripts", "lm_gym.agents", "lm_gym.reward_models"])
def test_entry_points_lead_to_something_callable(group: str) -> None:
    entry_points = importlib.metadata.distribution("lm-gym").entry_points.select(group=group)
    assert entry_points
    for entry_point in entry_points:
        assert callable(entry_point.load()), entry_point


def test_import_is_light(tmp_path: Path) -> None:
    code = (
        "import sys, time, json, gymnasium; start = time.perf_counter(); import lm_gym\n"
        "seconds = time.perf_counter() - start\n"
        "lm_gym.__version__; dir(lm_gym); gymnasium.spec('LMAlign-v0')\n"
        "print(json.dumps([seconds, sorted(sys.modules)]))"
    )
    # Three tries: the machine may be busy. Measured 0.003 s beyond gymnasium's own 0.2 s.
    for _ in range(3):
        result = run_python(code, tmp_path)
        assert result.returncode == 0, result.stderr
        seconds, modules = json.loads(result.stdout)
        assert not set(HEAVY) & set(modules)
        if seconds < 0.1:
            break
    assert seconds < 0.1


def test_every_module_imports_without_the_extras(tmp_path: Path) -> None:
    extras = "peft vllm matplotlib fastapi uvicorn tensorboard trackio wandb scipy accelerate sb3_contrib pytest"
    roots = {"lm_gym": "lm_gym", "agents": "lm_gym.agents", "reward_models": "lm_gym.reward_models"}
    modules = sorted(
        f"{package}.{module.stem}"
        for root, name in roots.items()
        for package, folder in package_folders(REPOSITORY / root, name).items()
        for module in folder.glob("*.py")
        if module.stem
        not in ("__init__", "__main__", "sb3", "sb3_policy", "drawing", "figures")  # these say which extra they need
    )
    code = (
        "import importlib, importlib.machinery, json, sys\n"
        "class CoreOnly(importlib.machinery.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {extras.split()!r}: return None\n"
        "        return super().find_spec(name, path, target)\n"
        "sys.meta_path = [CoreOnly if f is importlib.machinery.PathFinder else f for f in sys.meta_path]\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "stable_baselines3" not in json.loads(result.stdout.splitlines()[-1])


def test_every_public_name_loads_and_a_wrong_one_is_named() -> None:
    import lm_gym

    for name in lm_gym.__all__:
        assert getattr(lm_gym, name) is not None
    assert set(lm_gym.__all__) <= set(dir(lm_gym))
    with pytest.raises(AttributeError, match=r"no attribute 'AlignmentMPD'.*did you mean 'AlignmentMDP'"):
        _ = lm_gym.AlignmentMPD


@pytest.mark.parametrize("folder", ["agents", "reward_models"])
def test_every_agent_and_reward_model_loads_by_name(folder: str) -> None:
    package = importlib.import_module(f"lm_gym.{folder}")
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    assert dir(package) == sorted(package.__all__)
    with pytest.raises(AttributeError, match=f"it has {package.__all__[0]}"):
        _ = package.NoSuchName


def test_environments_are_registered_with_string_entry_points() -> None:
    import gymnasium

    import lm_gym  # noqa: F401  (registers)

    exact = ("LMAlignExact-v0", "LMAlignExactLong-v0", "LMAlignExactScales-v0", "LMAlignExactRare-v0")
    for env_id in ("LMAlign-v0", "LMAlignTopK-v0", *exact):
        spec = gymnasium.spec(env_id)
        for entry_point in (spec.entry_point, spec.vector_entry_point):
            assert isinstance(entry_point, str)
            module, _, attribute = entry_point.partition(":")
            assert callable(getattr(importlib.import_module(module), attribute))


def test_reload_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import importlib, sys, lm_gym; before = len(sys.meta_path); importlib.reload(lm_gym); import lm_gym.agents\n"
        "assert len(sys.meta_path) == before"
    )
    result = run_python(code, tmp_path, "-W", "error")  # gymnasium would warn of an id registered twice
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["agents", "reward_models"])
def test_folder_imported_by_its_own_name_says_what_to_import(name: str) -> None:
    result = run_python(f"import {name}", REPOSITORY)
    assert result.returncode != 0
    assert f"import lm_gym.{name}" in result.stderr


@pytest.mark.parametrize("name", ["agents", "reward_models"])
@pytest.mark.parametrize("where", ["repository", "elsewhere"])
def test_installed_checkout_imports_from_everywhere(name: str, where: str, tmp_path: Path) -> None:
    result = run_python(
        f"import lm_gym.{name} as it; print(it.__file__)", REPOSITORY if where == "repository" else tmp_path
    )
    assert result.stdout.strip() == str(REPOSITORY / name / "__init__.py"), result.stderr


@pytest.fixture
def stray_checkout(tmp_path: Path) -> Path:
    """A folder with lm_gym/, agents/ and reward_models/ in it that is not what is installed."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for folder in ("lm_gym", "agents", "reward_models"):
        shutil.copytree(REPOSITORY / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__", "tiny"))
    return checkout.resolve()


@pytest.mark.parametrize("name", ["agents", "reward_models"])
def test_checkout_that_hides_an_installed_wheel_says_what_to_do(
    name: str, wheel: Path, stray_checkout: Path, tmp_path: Path
) -> None:
    site = (tmp_path / "site").resolve()
    zipfile.ZipFile(wheel).extractall(site)
    # What an interpreter with the wheel installed, and no editable install, looks like.
    prepare = (
        "import sys; sys.meta_path = [finder for finder in sys.meta_path if '__editable__' not in finder.__module__]\n"
        f"sys.path.append({str(site)!r})\n"
    )
    for statement in (f"import lm_gym.{name}", f"from lm_gym import {name}", f"import lm_gym; lm_gym.{name}"):
        hidden = run_python(prepare + statement, stray_checkout)
        assert hidden.returncode != 0
        assert f"ModuleNotFoundError: No module named 'lm_gym.{name}'" in hidden.stderr
        assert f"pip install -e {stray_checkout}" in hidden.stderr
    installed = run_python(prepare + f"import lm_gym.{name} as it; print(it.__file__)", tmp_path)
    assert installed.stdout.strip() == str(site / "lm_gym" / name / "__init__.py"), installed.stderr


def test_two_checkouts_are_not_mixed(stray_checkout: Path) -> None:
    result = run_python("import lm_gym.agents", stray_checkout)  # lm_gym of one, agents of the installed one
    assert result.returncode != 0
    assert f"the installed one is {REPOSITORY}" in result.stderr
    assert f"pip install -e {stray_checkout}" in result.stderr
