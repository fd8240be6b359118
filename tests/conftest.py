"""What holds for every test: offline, one thread, and no warning of ours goes unseen."""

import os

# Before anything imports transformers or datasets, which read them at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from lm_gym import kl_mode_notice

torch.set_num_threads(1)

# Most tests step an environment without naming its kl_mode; tests/test_kl_mode_notice.py tests the warning about it.
kl_mode_notice.given = True
