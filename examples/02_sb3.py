"""Stable-Baselines3 on LM Gym, its code untouched and paid the exact KL reward: the language model, or a small agent.

`--small` is SB3's MlpPolicy: it reads the reference's hidden state and chooses among its 32 likeliest tokens. It starts
far from the reference, and first learns to pay less for that. Without it, SB3's PPO trains the language model.
"""

import argparse

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

from lm_gym.agents import ExactKL, LMActorCriticPolicy, SB3VecEnv, TextRolloutBuffer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--small", action="store_true", help="a small network on the reference's hidden states")
parser.add_argument("--steps", type=int, default=20_480, help="tokens to train on")
parser.add_argument("--rows", type=int, default=64)
parser.add_argument("--evaluate", type=int, default=256, help="fresh texts before and after")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

view = {"observation_mode": "hidden", "action_mode": "top_k", "top_k": 32} if args.small else {}
env = SB3VecEnv(gym.make_vec("LMAlign-v0", num_envs=args.rows, **view))
fresh = SB3VecEnv(gym.make_vec("LMAlign-v0", num_envs=args.rows, kl_mode="none", **view))  # pays the score alone

common = {"n_steps": 64, "batch_size": 512, "gamma": 1.0, "gae_lambda": 1.0, "seed": args.seed, "device": "cpu"}
if args.small:
    model = PPO("MlpPolicy", env, learning_rate=LinearSchedule(1e-3, 0, 1), **common)
else:
    model = PPO(
        LMActorCriticPolicy,
        env,
        policy_kwargs={"mdp": env.mdp},
        rollout_buffer_class=TextRolloutBuffer,
        learning_rate=LinearSchedule(3e-4, 0, 1),
        n_epochs=4,
        vf_coef=0.1,
        max_grad_norm=1.0,
        **common,
    )


def score() -> str:
    """Mean score of fresh texts and its standard error."""
    fresh.seed(10_000)
    scores, _ = evaluate_policy(
        model, fresh, n_eval_episodes=args.evaluate, deterministic=False, return_episode_rewards=True
    )
    return f"score {np.mean(scores):+.3f} ± {np.std(scores) / len(scores) ** 0.5:.3f}"


print(f"before: {score()}")
model.learn(args.steps, callback=ExactKL())
print(f"after:  {score()}")
