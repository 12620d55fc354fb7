"""SADI, ITI and CAA steering as models of lm-evaluation-harness.

Importing this package loads neither torch nor lm_eval, and does one thing: it makes the harness
know our names (``sadi_lmeval.registration``). Everything else is imported by its module's name.
"""

import os

from sadi_lmeval.registration import install

__version__ = "0.1.0"

# The harness finds our task configs as the package `sadi_lmeval.task_configs`. A wheel has that
# folder in here; in a checkout it lies one level up, so look there too.
if not os.path.isdir(os.path.join(__path__[0], "task_configs")):
    __path__.append(os.path.dirname(__path__[0]))

install()
