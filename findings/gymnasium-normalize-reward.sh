#!/usr/bin/env bash
# gymnasium 1.4.0: what vector.NormalizeReward takes for the running return of an episode depends on the autoreset mode.
#
# The same environment (rewards 1, 1, 10, then the end; gamma 1, so that the true running returns are 1, 2, 12 in every
# episode) under the three modes, and without vectorization:
#
#   single      1 2 10 11 12 10   the return before the last step is dropped at the end, and the last reward is then
#                                 carried into the next episode
#   NEXT_STEP   1 2 10 10 11 12   the same
#   SAME_STEP   1 2 0 1 2 0       the statistics see the 10, and the next episode begins at 0
#   DISABLED    1 2 10 1 2 10     the next episode begins at 0, since every reset does this:
#
# Under DISABLED a reset of some rows (options={"reset_mask": ...}) clears the running return of all rows, also of those
# whose episodes go on: beside a row that ends every 2 steps a row whose return should read 1 2 3 4 5 6 reads 1 2 1 2 1 2.
# RecordEpisodeStatistics of the same release does look at the mask. So the scale that rewards are divided by, and with it
# the size of a KL or an entropy coefficient beside them, depends on the mode and on the lengths of the other rows.
#
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gymnasium==1.4.0 numpy
"$folder/venv/bin/python" - <<'PY'
import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeReward as SingleNormalizeReward
from gymnasium.wrappers.vector import NormalizeReward


class Pays(gym.Env):
    observation_space = gym.spaces.Box(0, 100, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, rewards):
        self.rewards = rewards

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        reward = float(self.rewards[self.t - 1])
        return np.full(1, self.t, np.float32), reward, self.t == len(self.rewards), False, {}


def returns(mode, *rows, steps=6):
    env = NormalizeReward(SyncVectorEnv([lambda r=r: Pays(r) for r in rows], autoreset_mode=mode), gamma=1.0)
    env.reset(seed=0)
    done, seen = np.zeros(len(rows), bool), []
    for _ in range(steps):
        if mode is AutoresetMode.DISABLED and done.any():
            env.reset(options={"reset_mask": done})
        *_, terminated, truncated, _ = env.step(np.zeros(len(rows), int))
        done = terminated | truncated
        seen.append(int(env.accumulated_reward[-1]))
    return seen


def single(rewards, steps=6):
    env = SingleNormalizeReward(Pays(rewards), gamma=1.0)
    env.reset(seed=0)
    seen = []
    for _ in range(steps):
        *_, terminated, _, _ = env.step(0)
        seen.append(int(np.sum(env.discounted_reward)))
        if terminated:
            env.reset()
    return seen


end = [1, 1, 10]
found = {"single": single(end)} | {mode.name: returns(mode, end) for mode in AutoresetMode}
found["DISABLED, beside a row that ends every 2 steps"] = returns(AutoresetMode.DISABLED, [1, 1], [1] * 50)
for name, seen in found.items():
    print(f"{name:<46}", *seen)
assert found == {
    "single": [1, 2, 10, 11, 12, 10],
    "NEXT_STEP": [1, 2, 10, 10, 11, 12],
    "SAME_STEP": [1, 2, 0, 1, 2, 0],
    "DISABLED": [1, 2, 10, 1, 2, 10],
    "DISABLED, beside a row that ends every 2 steps": [1, 2, 1, 2, 1, 2],
}, found
PY
