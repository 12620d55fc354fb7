"""``python -m sadi_lmeval``: the command, as ``torchrun`` and ``accelerate launch`` start it."""

import sys

from sadi_lmeval.cli import main

if __name__ == "__main__":
    sys.exit(main())
