"""TRL and LM Gym on the same data: its datasets and reward functions here, our reward models in its GRPOTrainer."""

import math
import pickle

import gymnasium as gym
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from lm_gym import tiny
from lm_gym.agents.dpo import dpo_loss
from lm_gym.kl import estimate
from lm_gym.prompts import load_prompts
from lm_gym.reward_models import WeightedSum
from lm_gym.rewards import RewardModelError, load_reward_model, score_texts

trl = pytest.importorskip("trl", reason="TRL is a development dependency for Python 3.11 and newer")

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTION = [{"role": "user", "content": "What is two and two?"}]
ANSWER = [{"role": "assistant", "content": " It is four."}]
SMALL = {"vocab_size": 1000, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "num_labels": 1, "pad_token_id": 0, "initializer_range": 1.0}
DATASETS = {
    "prompt-only, standard": {"prompt": "The food was"},
    "prompt-only, conversational": {"prompt": QUESTION},
    "prompt-completion, standard": {"prompt": "The food was", "completion": " a joy."},
    "prompt-completion, conversational": {"prompt": QUESTION, "completion": ANSWER},
    "with another column": {"prompt": QUESTION, "solution": "$4$"},
}


@pytest.fixture(scope="module")
def tokenizer():
    made = AutoTokenizer.from_pretrained(tiny.tiny_path())
    made.chat_template = TEMPLATE
    return made


def write(env, tokenizer, text):
    """An episode that writes `text` and ends it: the return without KL, and the last info."""
    env.reset(seed=0)
    total = 0.0
    for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]:
        _, reward, ended, _, info = env.step(token)
        total += reward
    assert ended
    return total, info


# TRL's datasets


@pytest.mark.parametrize("kind", DATASETS)
def test_a_dataset_of_trl_gives_the_tokens_that_trl_makes(kind, tokenizer):
    row = DATASETS[kind]
    [prompt] = load_prompts(Dataset.from_list([row]), tokenizer)
    if isinstance(row["prompt"], str):
        expected = tokenizer(text=[row["prompt"]])["input_ids"][0]  # GRPOTrainer._tokenize_prompts
    else:
        text = trl.apply_chat_template({"prompt": row["prompt"]}, tokenizer)["prompt"]
        expected = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        assert prompt.text == text
    assert list(prompt.token_ids) == list(expected)
    assert prompt.columns == {key: value for key, value in row.items() if key != "prompt"}


@pytest.mark.parametrize("kind", DATASETS)
def test_a_dataset_of_trl_is_played(kind, tokenizer):
    asked = {}

    def judge(prompts, completions, **columns):
        asked.update(columns, prompts=prompts, completions=completions)
        return [1.0]

    dataset = Dataset.from_list([DATASETS[kind]])
    env = gym.make("LMAlign-v0", prompts=dataset, tokenizer=tokenizer, reward_model=judge, kl_mode="none")
    total, _ = write(env, tokenizer, " a joy.")
    written = " a joy." if isinstance(DATASETS[kind]["prompt"], str) else [{"role": "assistant", "content": " a joy."}]
    assert total == 1.0
    assert asked["prompts"] == dataset["prompt"][:] and asked["completions"] == [written]
    for key in set(DATASETS[kind]) - {"prompt"}:
        assert asked[key] == dataset[key][:]


# TRL's reward functions

THOUGHT = "<think>two and two</think>"


def think_format():
    from trl.rewards import think_format_reward

    return think_format_reward


def soft_overlong():
    from trl.rewards import get_soft_overlong_punishment

    return get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)


def repetition():
    from trl.rewards import get_repetition_penalty_reward

    return get_repetition_penalty_reward(ngram_size=2)


def accuracy():
    pytest.importorskip("math_verify", reason="TRL's accuracy_reward needs math-verify")
    from trl.rewards import accuracy_reward

    return accuracy_reward


def cosine():
    pytest.importorskip("math_verify", reason="TRL's cosine reward needs math-verify")
    from trl.rewards import get_cosine_scaled_reward

    return get_cosine_scaled_reward(max_len=32)


@pytest.mark.parametrize(
    ("make", "text", "expected"),
    [
        (think_format, THOUGHT + "4", lambda length: 1.0),
        (think_format, "4", lambda length: 0.0),
        (soft_overlong, " a joy.", lambda length: 0.0 if length <= 6 else (6 - length) / 4),
        (soft_overlong, "abcdefgh" * 3, lambda length: -1.0),
        (repetition, "!!!!", lambda length: -(1 - 2 / 4)),  # pairs !! !! !! and ! with the end: 2 of 4 differ
        (accuracy, r"It is \boxed{4}", lambda length: 1.0),
        (accuracy, r"It is \boxed{5}", lambda length: 0.0),
        (cosine, r"It is \boxed{4}", lambda length: 0.75 + 0.25 * math.cos(math.pi * length / 32)),
    ],
)
def test_a_reward_function_of_trl_pays_its_own_score(make, text, expected, tokenizer):
    env = gym.make(
        "LMAlign-v0",
        prompts=Dataset.from_list([{"prompt": QUESTION, "solution": "$4$"}]),
        tokenizer=tokenizer,
        reward_model=make(),
        kl_mode="none",
    )
    total, info = write(env, tokenizer, text)
    assert total == info["score"] == pytest.approx(expected(info["episode_tokens"]))


def test_what_a_reward_function_of_trl_logs_reaches_the_info(tokenizer):
    dataset = Dataset.from_list([{"prompt": QUESTION, "solution": "$4$"}])
    env = gym.make("LMAlign-v0", prompts=dataset, tokenizer=tokenizer, reward_model=accuracy(), kl_mode="none")
    _, info = write(env, tokenizer, r"\boxed{4}")
    assert info["score/solution"] == "$4$" and info["score/gold_parsed"] == "[4, '4']"


def test_the_none_of_trl_is_refused_alone_and_left_out_of_a_sum(tokenizer):
    """GRPOTrainer leaves such a row without reward; an episode must have one."""
    options = {"prompts": [{"prompt": QUESTION, "solution": ""}], "tokenizer": tokenizer, "kl_mode": "none"}
    env = gym.make("LMAlign-v0", reward_model=accuracy(), **options)
    with pytest.raises(RewardModelError, match="accuracy_reward returned None"):
        write(env, tokenizer, r"\boxed{4}")
    both = WeightedSum({"accuracy": accuracy(), "format": think_format()}, weights={"format": 0.5})
    env = gym.make("LMAlign-v0", reward_model=both, **options)
    assert write(env, tokenizer, THOUGHT + r"\boxed{4}")[0] == 0.5


# Our reward models in TRL


def test_our_reward_models_have_names_and_can_be_sent_to_another_process():
    """TRL logs rewards/<__name__>, and pickles reward functions for its asynchronous rollouts."""
    for spec, name in (("vader", "vader"), ("length?target=20", "length"), ("tiny-sentiment", "sentiment")):
        model = pickle.loads(pickle.dumps(load_reward_model(spec)))
        assert model.__name__ == name
        assert len(model(prompts=["a"], completions=[" good"], completion_ids=[[5]], trainer_state=None)) == 1


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory, tokenizer):
    """Folders of two small classifiers: one more kind of ours, and two that TRL must tell apart."""
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = LlamaConfig(**SMALL)
        folders.append(str(tmp_path_factory.mktemp("judge")))
        LlamaForSequenceClassification(config).save_pretrained(folders[-1])
        tokenizer.save_pretrained(folders[-1])
    return folders


@pytest.mark.parametrize("conversational", [False, True])
def test_grpo_trainer_logs_our_rewards_of_the_same_texts(conversational, classifiers, tokenizer, tmp_path):
    from trl.rewards import get_soft_overlong_punishment

    rows = [{"prompt": row["prompt"], "kind": row["kind"]} for row in tiny.prompts("reviews")[:16]]
    if conversational:
        rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    batches = []

    def recorder(prompts, completions, completion_ids, kind, **_):
        batches.append(
            {
                "prompts": prompts,
                "completions": completions,
                "completion_ids": completion_ids,
                "columns": {"kind": kind},
            }
        )
        return [0.0] * len(prompts)

    rewards = {
        "vader": load_reward_model("vader"),
        "length": load_reward_model("length?target=12"),
        "sentiment": load_reward_model("tiny-sentiment"),
        "soft_overlong_punishment_reward": get_soft_overlong_punishment(16, 8),
        "sum(vader, length)": WeightedSum(["vader", "length?target=12"], weights={"vader": 2.0}),
    }
    rewards |= {f"hf:{folder}": load_reward_model(f"hf:{folder}") for folder in classifiers}
    trainer = trl.GRPOTrainer(
        model=str(tiny.tiny_path()),
        processing_class=tokenizer,
        reward_funcs=[*rewards.values(), recorder],
        train_dataset=Dataset.from_list(rows),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=16,
            max_steps=2,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            seed=0,
        ),
    )
    trainer.train()
    prompts = [prompt for batch in batches for prompt in load_prompts(batch["prompts"], tokenizer)]
    written = sum(len(ids) for batch in batches for ids in batch["completion_ids"])
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == len(batches) == 2
    assert logged[-1]["num_tokens"] == sum(len(prompt.token_ids) for prompt in prompts) + written
    for row, batch in zip(logged, batches, strict=True):
        ours = {name: score_texts(reward, **batch).scores for name, reward in rewards.items()}
        assert len(set(ours["vader"])) > 2  # texts that say something
        for name, scores in ours.items():
            assert row[f"rewards/{name}/mean"] == pytest.approx(scores.mean(), rel=1e-5, abs=1e-6)
            assert row[f"rewards/{name}/std"] == pytest.approx(scores.std(ddof=1), rel=1e-4, abs=1e-5)
        assert row["reward"] == pytest.approx(sum(ours.values()).mean(), rel=1e-5, abs=1e-6)


# TRL's own reward functions, by name


def test_factories_of_trl_can_be_named():
    def scores(spec, lengths):
        ids = [[1] * length for length in lengths]
        texts = ["a"] * len(ids)
        return score_texts(
            load_reward_model(spec), prompts=texts, completions=texts, completion_ids=ids
        ).scores.tolist()

    # DAPO (arXiv:2503.14476), eq. 13: 0 up to L_max - L_cache = 80, then (80 - n)/20, and -1 above 100
    overlong = "py:trl.rewards:get_soft_overlong_punishment?max_completion_len=100&soft_punish_cache=20"
    assert scores(overlong, [80, 90, 95, 100, 101]) == [0, -0.5, -0.75, -1, -1]
    # arXiv:2502.03373, C.2: (1 - distinct n-grams / n-grams)·penalty, here 1 of n - 1 bigrams
    assert scores("py:trl.rewards:get_repetition_penalty_reward?ngram_size=2", [2, 5]) == [0, -0.75]
    with pytest.raises(ValueError, match="lacks soft_punish_cache"):
        load_reward_model("py:trl.rewards:get_soft_overlong_punishment?max_completion_len=100")


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_trainer_state_is_read_as_trl_has_it(wrapped):
    """By the names of transformers.TrainerState, as attributes; and by name, as before."""
    from ppo_runs import environment, ppo, problem
    from transformers import TrainerState

    seen = []

    def curriculum(completions, trainer_state):
        assert trainer_state["global_step"] == trainer_state.global_step
        seen.append((trainer_state.global_step, trainer_state.max_steps, trainer_state.epoch, dict(trainer_state)))
        return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

    env = environment(problem(reward_model=curriculum, max_new_tokens=4))
    agent = ppo(gym.wrappers.RecordEpisodeStatistics(env) if wrapped else env, batch_size=8, minibatch_size=8)
    agent.learn(100)
    steps = list(dict.fromkeys(step for step, *_ in seen))
    assert steps == list(range(agent.updates)) and agent.updates > 2
    assert seen[0][:3] == (0, math.ceil(100 / 32), 0.0)  # 8 texts of at most 4 tokens an update
    assert agent.state.max_steps == agent.state.global_step == agent.updates and agent.state.epoch == 1.0
    assert set(agent.state) <= set(vars(TrainerState()))
    assert pickle.loads(pickle.dumps(agent.state)).global_step == agent.updates
    with pytest.raises(AttributeError, match="no 'best_metric'; it has global_step"):
        _ = agent.state.best_metric


# What docs/interop.md and docs/algorithms.md say of TRL's losses


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory, tokenizer):
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("small"))
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PLAIN = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}


@pytest.mark.parametrize(
    ("config", "estimator", "ratio"), [({}, "k2", True), ({"use_bias_correction_kl": False}, "k3", False)]
)
def test_the_gradient_of_trls_beta(config, estimator, ratio, small_folder, tmp_path):
    """By default that of our k2 times π/π_old, off-policy too: ∇(ρ·k3) = ρ·(k3 + 1 − e^−k1)·∇log π = ρ·k1·∇log π."""
    args = trl.GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4, beta=0.5, **PLAIN, **config
    )
    trainer = trl.GRPOTrainer(
        model=small_folder,
        reward_funcs=load_reward_model("vader"),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        args=args,
    )
    model, noise = trainer.model.train(), torch.Generator().manual_seed(1)
    trainer.current_gradient_accumulation_steps = 1
    ids, mask = torch.randint(3, 64, (4, 9), generator=noise), torch.ones(4, 6).long()
    mask[1, 4:] = 0

    def logprobs():
        whole = torch.log_softmax(model(input_ids=ids).logits[:, 2:-1], -1)
        return whole.gather(-1, ids[:, 3:, None])[..., 0]

    drawn_with, ref = (logprobs().detach() + by * torch.randn(4, 6, generator=noise) for by in (0.3, 0.7))
    inputs = {"prompt_ids": ids[:, :3], "prompt_mask": torch.ones(4, 3).long(), "completion_ids": ids[:, 3:]}
    inputs |= {"completion_mask": mask, "advantages": torch.zeros(4), "num_items_in_batch": mask.sum()}
    theirs = trainer._compute_loss(model, inputs | {"old_per_token_logps": drawn_with, "ref_per_token_logps": ref})
    theirs = torch.autograd.grad(theirs, list(model.parameters()))

    def relative_error(estimator, ratio):
        now = logprobs()
        per_token = estimate(now, ref, estimator) * ((now - drawn_with).exp().detach() if ratio else 1.0)
        ours = torch.autograd.grad(0.5 * (per_token * mask).sum() / mask.sum(), list(model.parameters()))
        largest = max(float(g.abs().max()) for g in theirs)
        return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) / largest

    assert relative_error(estimator, ratio) < 1e-5
    assert min(relative_error(e, r) for e in ("k2", "k3") for r in (True, False) if (e, r) != (estimator, ratio)) > 0.05


def test_trls_default_dpo_loss_does_not_read_its_label_smoothing(small_folder, tokenizer, tmp_path):
    """And its "robust" reads it as other arithmetic than ours: (−(1 − ε)·log σ(h) + ε·log σ(−h))/(1 − 2ε)."""

    def loss(**config):
        trainer = trl.DPOTrainer(
            model=small_folder,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " good day", "rejected": " bad"}]),
            args=trl.DPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=1, beta=0.5, **PLAIN, **config),
        )
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
            [batch] = trainer.get_train_dataloader()
            return float(trainer.compute_loss(trainer.model, batch))

    plain = loss()
    h = -math.log(math.expm1(plain))  # −log σ(h) = plain
    flipped = plain + h  # −log σ(−h)
    assert abs(h) > 0.1
    assert loss(label_smoothing=0.3) == plain
    assert loss(label_smoothing=0.3, loss_type=["robust"]) == pytest.approx(
        (0.7 * plain - 0.3 * flipped) / 0.4, rel=1e-4
    )
    ours = float(dpo_loss(torch.tensor([h]), torch.ones(1), 1.0, 0.3))
    assert ours == pytest.approx(0.7 * plain + 0.3 * flipped, rel=1e-4)
