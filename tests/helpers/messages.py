"""What a user is told."""

from __future__ import annotations

import pytest

from sadi_lmeval.errors import UserError


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message
