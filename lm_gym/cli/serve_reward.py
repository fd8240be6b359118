"""`lm-gym serve-reward`: a reward model for other processes and machines, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import ipaddress
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import tyro

from lm_gym.cli.errors import Failed, say
from lm_gym.terminal import printable


@dataclass
class ServeReward:
    """Serve a reward model over HTTP, at /get_reward (OpenRLHF) and /classify (vLLM), until Ctrl-C."""

    reward: tyro.conf.Positional[str]
    """A name that `lm-gym ls rewards` prints, with its arguments; hf:..., py:...; or the folder of a classifier."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 is every network of this machine."""
    port: int = 5000
    """0: a free one."""
    token_env: str | None = None
    """Name of the environment variable with the token that clients must send; None: everybody may ask."""
    batch_size: int = 64
    """Texts in one call of the reward model."""
    max_texts: int = 1024
    """Texts a request, at most."""
    max_bytes: int = 16 * 2**20
    """Bytes a request, at most."""
    whole_text: bool = False
    """Judge whole queries, also where a request says what their prompts are."""
    debug: bool = False
    """Show the traceback of an error."""


def serve_reward(options: ServeReward) -> int:
    """Serve until a signal comes; 0 once requests under way have been answered.

    Raises:
        ValueError: a reward model, token, limit or address that cannot be used.
        Failed: requests were still under way 30 s after the signal, and are cut off.
    """
    from lm_gym.reward_server import Limits, RewardServer
    from lm_gym.rewards import load_reward_model

    token = None
    if options.token_env is not None:
        token = os.environ.get(options.token_env)
        if not token:
            raise ValueError(f"token_env is {options.token_env!r}, and there is no such environment variable, or empty")
    limits = Limits(
        batch_size=options.batch_size,
        max_texts=options.max_texts,
        max_bytes=options.max_bytes,
        whole_text=options.whole_text,
    )
    reward_model = load_reward_model(reward_spec(options.reward))
    server = RewardServer(reward_model, host=options.host, port=options.port, token=token, limits=limits, on_error=say)
    if token is None and not _is_loopback(options.host):
        say(f"warning: everybody who reaches {options.host} may ask; --token-env NAME asks for a token")
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.start()
        routes = f"{server.url}/get_reward and {server.url}/classify"
        print(f"serving {printable(server.name)} at {routes} (Ctrl-C stops it)", flush=True)
        while not stopped.wait(0.5):  # in short waits: some platforms see no signal in the middle of one
            pass
        emptied = server.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"stopped: {server.texts} texts in {server.requests} requests", flush=True)
    if not emptied:
        raise Failed("requests were still under way 30 s after the signal, and are cut off")
    return 0


def reward_spec(reward: str) -> str:
    """What the command line calls a reward model, as `load_reward_model` takes it: a folder is a classifier's."""
    folder, mark, query = reward.partition("?")
    return f"hf:{folder}{mark}{query}" if Path(folder).is_dir() else reward


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
