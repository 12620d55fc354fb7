"""Every row of docs/speed.md on a GPU, with its equality checks: bench/speed.py on ``cuda``.

    python bench/gpu.py [ROW ...] [--rounds 3] [--model FOLDER] [--data FOLDER]

Ends with exit code 1 where what is compared is not equal, and with 2 where there is no GPU.
"""

from __future__ import annotations

import sys


def main() -> int:
    import speed
    import torch

    if not torch.cuda.is_available():
        print(
            "no GPU that torch can use: run bench/speed.py, which measures on the CPU",
            file=sys.stderr,
        )
        return 2
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}", flush=True)
    return speed.main([*sys.argv[1:], "--device", "cuda"])


if __name__ == "__main__":
    sys.exit(main())
