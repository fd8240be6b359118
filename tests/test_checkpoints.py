"""Checkpoints: whole or not at all, no pickle, and back to the bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lm_gym import checkpoints

GROUPS = {"policy": {"w": torch.randn(3, 2), "half": torch.ones(2, dtype=torch.bfloat16)}, "empty": {}}


def test_round_trip(tmp_path: Path) -> None:
    at = checkpoints.save(tmp_path / "a" / "step-1", GROUPS, {"n": 1, "name": "é"})
    groups, state = checkpoints.load(at)
    assert state == {"n": 1, "name": "é"} and set(groups) == set(GROUPS) and groups["empty"] == {}
    for key, value in GROUPS["policy"].items():
        assert torch.equal(groups["policy"][key], value) and groups["policy"][key].dtype == value.dtype
    assert {p.suffix for p in at.iterdir()} == {".json", ".safetensors"}
    assert [p.name for p in at.parent.iterdir()] == ["step-1"], "nothing is left beside it"


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path) -> None:
    w = torch.randn(4)
    groups, _ = checkpoints.load(checkpoints.save(tmp_path / "a", {"g": {"x": w, "y": w, "z": w[1:]}}, {}))
    assert torch.equal(groups["g"]["x"], w) and torch.equal(groups["g"]["z"], w[1:])


def test_a_save_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    at = checkpoints.save(tmp_path / "a", GROUPS, {"n": 1})
    with pytest.raises(TypeError):
        checkpoints.save(at, GROUPS, {"n": object()})
    assert checkpoints.load(at)[1] == {"n": 1}
    checkpoints.save(at, {"policy": GROUPS["policy"]}, {"n": 2})
    groups, state = checkpoints.load(at)
    assert state == {"n": 2} and set(groups) == {"policy"}, "no file of the old one stays"


def test_the_newest_is_found_by_number(tmp_path: Path) -> None:
    for n in (2, 10, 9):
        checkpoints.save(tmp_path / "checkpoints" / f"step-{n}", {}, {"n": n})
    (tmp_path / "checkpoints" / "step-11").mkdir()  # not finished
    with pytest.warns(UserWarning, match="step-11 has no state.json .*step-10 is taken"):
        assert checkpoints.latest(tmp_path).name == "step-10"
    assert checkpoints.latest(tmp_path / "checkpoints" / "step-2").name == "step-2"


def test_damage_names_the_file(tmp_path: Path) -> None:
    at = checkpoints.save(tmp_path / "a", GROUPS, {})
    (at / "policy.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"policy\.safetensors is damaged"):
        checkpoints.load(at)
    (at / "state.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected an object, got a list"):
        checkpoints.load(at)
    with pytest.raises(ValueError, match=r"expected a checkpoint folder with state\.json"):
        checkpoints.load(tmp_path)


def test_generators_and_optimizers_go_on(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(3)
    torch.rand(5, generator=g)
    state, want = checkpoints.generator_state(g), torch.rand(4, generator=g)
    other = torch.Generator()
    checkpoints.set_generator_state(other, state)
    assert torch.equal(torch.rand(4, generator=other), want)

    def step(p: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        (p * torch.tensor([1.0, 2.0])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([p], lr=0.1)
    step(p, optimizer)
    save_file(checkpoints.optimizer_tensors(optimizer, ["p"]), str(tmp_path / "o.safetensors"))
    q = torch.nn.Parameter(p.detach().clone())
    twin = torch.optim.AdamW([q], lr=0.1)
    checkpoints.set_optimizer_tensors(twin, ["p"], checkpoints.optimizer_tensors(optimizer, ["p"]))
    step(p, optimizer)
    step(q, twin)
    assert torch.equal(p, q)
    with pytest.raises(ValueError, match="optimizer state for 'p', which this agent does not train"):
        checkpoints.set_optimizer_tensors(twin, ["q"], checkpoints.optimizer_tensors(optimizer, ["p"]))
