"""The command line, `lm-gym`: imports everything, and is imported by nothing."""

from lm_gym.cli.commands import main as main
