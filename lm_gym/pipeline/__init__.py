"""The three stages of RLHF in one run: fine-tuning, preferences and a reward model, reinforcement learning; a report.

    from lm_gym.pipeline import Pipeline, RLStage, run_pipeline
    run_pipeline(Pipeline(rl=RLStage(total_tokens=40_000)), "runs/pipeline")

`lm-gym pipeline` is the same from the shell. The package stands on top: it imports agents and reward models, and only
the command line imports it.
"""

from lm_gym.pipeline.config import (
    STAGES,
    EvaluationStage,
    Pipeline,
    PreferenceStage,
    RewardModelStage,
    RLStage,
    SFTStage,
)
from lm_gym.pipeline.run import run_pipeline

__all__ = [
    "STAGES",
    "EvaluationStage",
    "Pipeline",
    "PreferenceStage",
    "RLStage",
    "RewardModelStage",
    "SFTStage",
    "run_pipeline",
]
