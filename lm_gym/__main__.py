"""`python -m lm_gym` is `lm-gym`."""

import sys

from lm_gym.cli import main

if __name__ == "__main__":
    sys.exit(main())
