"""A language model writes, a reward model judges, and every token pays for its KL: the loop of Gymnasium, nothing else.

The agent here is the reference itself, which is what a newcomer compares with: its texts have the mean score that
training starts from. An agent of your own takes its place. `--episodes 3 --render` shows texts as they grow.
"""

import argparse

import gymnasium as gym
import numpy as np

import lm_gym

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--episodes", type=int, default=32, help="texts to write")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--render", action="store_true", help="show every text as it grows")
args = parser.parse_args()

env = gym.make("LMAlign-v0", kl_mode="reference", render_mode="human" if args.render else None)
agent = lm_gym.reference_agent(env, seed=args.seed)
scores, lengths = [], []
for episode in range(args.episodes):
    obs, info = env.reset(seed=args.seed if episode == 0 else None)
    prompt, done = info["prompt"], False
    while not done:
        action, _ = agent.predict(obs)
        obs, reward, done, _, info = env.step(action)
    scores.append(info["score"])
    lengths.append(info["episode_tokens"])
    if episode < 3 and not args.render:
        print(f"{info['score']:+.2f}  {prompt} |{info['text']}  [{info['finish_reason']}]")

error = np.std(scores) / np.sqrt(len(scores))
print(f"{len(scores)} texts: score {np.mean(scores):+.3f} ± {error:.3f}, {np.mean(lengths):.1f} tokens")
env.close()
