"""Write constraints.txt: the exact versions in this environment, which are those that the tests ran with.

    .venv/bin/python tests/pin_constraints.py > constraints.txt

Packages that lm-gym[dev] does not need are left out; a version that has no build for the oldest supported Python is
pinned from its own oldest on.
"""

import importlib.metadata as metadata
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name


def needed(name: str, extras: frozenset[str], seen: dict[str, set[str]]) -> Iterator[str]:
    """Yield canonical names of `name` and of what it needs here, each once for every new extra."""
    key = canonicalize_name(name)
    if key in seen and extras <= seen[key]:
        return
    seen.setdefault(key, set()).update(extras)
    yield key
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in (extras or frozenset({""}))
        ):
            yield from needed(requirement.name, frozenset(requirement.extras), seen)


def main() -> None:
    print("# Exact versions that the tests ran with (Python 3.11). Made by tests/pin_constraints.py; do not edit.")
    for name in sorted(set(needed("lm-gym", frozenset({"dev"}), {})) - {"lm-gym"}):
        distribution = metadata.distribution(name)
        # A local label such as +cpu names a build of the same version: it is not part of the pin.
        pin = f"{name}=={distribution.version.partition('+')[0]}"
        pythons = SpecifierSet(distribution.metadata.get("Requires-Python") or "")
        oldest = next(minor for minor in range(10, 30) if f"3.{minor}.0" in pythons)
        print(pin if oldest == 10 else f'{pin} ; python_version >= "3.{oldest}"')


if __name__ == "__main__":
    main()
