"""Build the wheel and unpack it: what an installed LM Gym looks like, for mypy, the import contract and the tests.

    python tests/build_wheel.py FOLDER

FOLDER is emptied first. The build happens in a temporary folder (a build/ left in the checkout would carry deleted
modules into the next wheel) and needs no network: setuptools comes from the environment.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def build_wheel(folder: Path) -> Path:
    """Build the checkout's wheel into `folder` and return its path; RuntimeError with pip's output if that fails."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch, "distutils.cfg")
        config.write_text(f"[build]\nbuild_base={scratch}/build\n[egg_info]\negg_base={scratch}\n")
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        result = subprocess.run(
            [*command, "--wheel-dir", str(folder), str(REPOSITORY)],
            env={**os.environ, "DIST_EXTRA_CONFIG": str(config)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    wheels = sorted(folder.glob("lm_gym-*.whl"))
    if result.returncode or len(wheels) != 1:
        raise RuntimeError(f"pip wheel made {len(wheels)} wheels in {folder}:\n{result.stdout}{result.stderr}")
    return wheels[0]


def unpack_wheel(site: Path) -> None:
    """Replace `site` by the contents of a freshly built wheel."""
    shutil.rmtree(site, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(build_wheel(Path(folder))).extractall(site)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    unpack_wheel(Path(sys.argv[1]))
