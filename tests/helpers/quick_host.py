"""The harness's command without what takes it longest: the index of every task that it has, and a
description of the machine. In everything else it is the same."""

from __future__ import annotations

import functools


def hurry() -> None:
    """Take both away from this process."""
    import torch.utils.collect_env
    from lm_eval.tasks import TaskManager

    torch.utils.collect_env.get_pretty_env_info = lambda: ""
    TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    hurry()
    cli_evaluate()
