"""TRL and LM Gym on the same data: its datasets and reward functions here, our reward models in its GRPOTrainer."""

import math
import pickle

import gymnasium as gym
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from lm_gym import tiny
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


def test_the_trainer_state_is_read_as_trl_has_it():
    """By the names of transformers.TrainerState, as attributes; and by name, as before."""
    from ppo_runs import environment, ppo, problem
    from transformers import TrainerState

    seen = []

    def curriculum(completions, trainer_state):
        assert trainer_state["global_step"] == trainer_state.global_step
        seen.append((trainer_state.global_step, trainer_state.max_steps, trainer_state.epoch, dict(trainer_state)))
        return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

    agent = ppo(environment(problem(reward_model=curriculum, max_new_tokens=4)), batch_size=8, minibatch_size=8)
    agent.learn(100)
    steps = [step for step, *_ in seen]
    assert steps == list(range(agent.updates)) and agent.updates > 2
    assert seen[0][:3] == (0, math.ceil(100 / 32), 0.0)  # 8 texts of at most 4 tokens an update
    assert agent.state.max_steps == agent.state.global_step == agent.updates and agent.state.epoch == 1.0
    assert set(agent.state) <= set(vars(TrainerState()))
    assert pickle.loads(pickle.dumps(agent.state)).global_step == agent.updates
    with pytest.raises(AttributeError, match="no 'best_metric'; it has global_step"):
        _ = agent.state.best_metric
