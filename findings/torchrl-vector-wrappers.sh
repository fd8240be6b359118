#!/usr/bin/env bash
# torchrl 0.14.1 with gymnasium 1.4.0: GymWrapper takes a Gymnasium vector environment, and none in a vector wrapper.
#
# GymWrapper asks the outermost object for `autoreset_mode`, an attribute. Gymnasium's own vector environments have it;
# gymnasium.vector.VectorWrapper forwards neither unknown attributes nor this one (the documented place is
# metadata["autoreset_mode"]). So every wrapper of gymnasium.wrappers.vector, RecordEpisodeStatistics among them, ends in
#
#   AttributeError: 'RecordEpisodeStatistics' object has no attribute 'autoreset_mode'
#
# and works once the attribute is set on the wrapper by hand. Output seen:
#
#   bare: torch.Size([2, 3])
#   wrapped: AttributeError: 'RecordEpisodeStatistics' object has no attribute 'autoreset_mode'
#   wrapped, attribute set by hand: torch.Size([2, 3])
#
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gymnasium==1.4.0 torchrl==0.14.1 tensordict==0.14.3 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PY'
import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torchrl.envs import GymWrapper


def envs():
    return SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.DISABLED)


def outcome(env):
    try:
        return str(GymWrapper(env).rollout(3, break_when_any_done=False).shape)
    except AttributeError as error:
        return f"AttributeError: {error}"


by_hand = RecordEpisodeStatistics(envs())
by_hand.autoreset_mode = by_hand.metadata["autoreset_mode"]
found = {
    "bare": outcome(envs()),
    "wrapped": outcome(RecordEpisodeStatistics(envs())),
    "wrapped, attribute set by hand": outcome(by_hand),
}
for name, said in found.items():
    print(f"{name}: {said}")
assert found == {
    "bare": "torch.Size([2, 3])",
    "wrapped": "AttributeError: 'RecordEpisodeStatistics' object has no attribute 'autoreset_mode'",
    "wrapped, attribute set by hand": "torch.Size([2, 3])",
}, found
PY
