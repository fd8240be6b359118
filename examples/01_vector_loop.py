"""A training loop of your own over `gym.make_vec`, with the exact KL reward and nothing of `lm_gym.agents`.

Actor-critic with a clipped ratio: 64 rows are stepped by a cached policy that reports the log-prob of every action, so
that `step()` pays −β·(log π − log π_ref) and the judge's score at the end. Whole texts are put together from the steps,
so that an update costs one forward a text. Change anything: it is all here.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch

import lm_gym
from lm_gym.advantages import gae, masked_mean, returns_to_go, whiten
from lm_gym.forward import response_hidden, token_logprobs
from lm_gym.loading import load_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tokens", type=int, default=60_000, help="tokens to train on")
parser.add_argument("--rows", type=int, default=64)
parser.add_argument("--steps", type=int, default=64, help="steps of every row in a rollout")
parser.add_argument("--lr", type=float, default=3e-4)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--minibatch", type=int, default=32, help="texts an optimizer step")
parser.add_argument("--evaluate", type=int, default=512, help="fresh texts before and after")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.manual_seed(args.seed)

envs = gym.make_vec("LMAlign-v0", num_envs=args.rows, kl_mode="reported")
policy = load_model("tiny")  # the environment has its own copy, the frozen reference
value_head = torch.nn.Linear(policy.hidden_size, 1)
torch.nn.init.zeros_(value_head.weight)
actor = lm_gym.CachedLM(policy, value_head=value_head, seed=args.seed)
params = [*policy.parameters(), *value_head.parameters()]
optimizer = torch.optim.AdamW(params, lr=args.lr, weight_decay=0.0)


def evaluate(n: int) -> tuple[float, float]:
    """Mean score of n fresh texts and its standard error; every row writes the same number of texts."""
    count = -(-n // args.rows)
    scores: list[list[float]] = [[] for _ in range(args.rows)]
    obs, info = envs.reset(seed=10_000)
    while min(map(len, scores)) < count:
        actions, logprobs, _ = actor.act(obs, action_mask=info["action_mask"])
        envs.unwrapped.report_logprob(logprobs)
        obs, _, ended, _, info = envs.step(actions)
        for row in np.flatnonzero(ended):
            scores[row].append(info["final_info"]["score"][row])
    kept = np.array([row[:count] for row in scores]).ravel()[:n]
    return float(kept.mean()), float(kept.std() / np.sqrt(n))


def collect(obs, info):
    """One rollout: `args.steps` steps of every row, as whole texts."""
    seen, steps = [], []
    for _ in range(args.steps):
        actions, logprobs, values = actor.act(obs, action_mask=info["action_mask"])
        envs.unwrapped.report_logprob(logprobs)
        seen.append(obs)
        obs, rewards, ended, _, info = envs.step(actions)
        steps.append((actions, rewards, ended, logprobs, values))
    _, hidden = actor.logits(obs)  # what a text that is cut off at the edge goes on to be worth
    last = value_head(hidden).squeeze(-1).detach().numpy()
    actions, rewards, ended, logprobs, values = map(np.stack, zip(*steps, strict=True))
    rollout = lm_gym.Rollout.from_steps(
        seen, actions, rewards, ended, logprobs, values=values, last_values=last, pad_id=policy.pad_id
    )
    return rollout, obs, info


@torch.no_grad()
def centre_values(rollout) -> None:
    """Move the value head's bias, and what it has said, by its mean error on the texts that ended.

    Adam would move it by .01 a rollout while returns rise by .05, and what a text that is cut off at the edge goes on
    to be worth is the value head's word alone: behind one that lags, three texts of ten seem worth less than they are.
    """
    ended = torch.tensor([reason != "cut" for reason in rollout.finish_reasons])
    error = returns_to_go(rollout.rewards, rollout.response_mask) - rollout.values
    by = masked_mean(error, rollout.response_mask & ended[:, None]).nan_to_num()  # no text has ended: none is known
    value_head.bias += by
    rollout.values += by
    rollout.bootstrap[~ended] += by


def update(rollout) -> None:
    centre_values(rollout)
    advantages, returns = gae(
        rollout.rewards, rollout.values, rollout.response_mask, lam=1.0, bootstrap=rollout.bootstrap
    )
    advantages = whiten(advantages, rollout.response_mask)
    for _ in range(args.epochs):
        for index in torch.randperm(len(rollout)).split(args.minibatch):
            part = rollout.select(index)
            t, mask = part.response_mask.shape[1], part.response_mask
            hidden = response_hidden(policy, part.input_ids, part.attention_mask, t)
            logp = token_logprobs(torch.log_softmax(policy.head(hidden), -1), part.tokens)
            ratio = (logp - part.logprobs).masked_fill(~mask, 0.0).exp()
            adv, ret = advantages[index, :t], returns[index, :t]
            surrogate = -torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv)
            value_loss = 0.5 * (value_head(hidden).squeeze(-1) - ret).square()
            loss = ((surrogate + 0.1 * value_loss) * mask).sum() / mask.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()


before = evaluate(args.evaluate)
print(f"before: score {before[0]:+.3f} ± {before[1]:.3f}")
obs, info = envs.reset(seed=args.seed)
tokens = 0
while tokens < args.tokens:
    for group in optimizer.param_groups:
        group["lr"] = args.lr * (1 - tokens / args.tokens)
    rollout, obs, info = collect(obs, info)
    update(rollout)
    tokens += int(rollout.response_mask.sum())
    print(f"{tokens:7d} tokens: return {float(rollout.rewards.sum() / len(rollout)):+.3f} a text", flush=True)
after = evaluate(args.evaluate)
print(f"after:  score {after[0]:+.3f} ± {after[1]:.3f}")
envs.close()
