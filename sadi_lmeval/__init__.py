"""SADI, ITI and CAA steering as models of lm-evaluation-harness.

Importing this package loads neither torch nor lm_eval, and does one thing: it makes the harness
know our names (``sadi_lmeval.registration``). Everything else is imported by its module's name.

Data goes one way through the folders: the pairs of a task (``pairs``) are read, and requests
scored, in forward passes (``passes``) at the sites of a model (``architecture``); what was read is
kept (``storage``) and becomes an edit (``interventions``), chosen for each task (``steering``);
many of them are tried side by side (``comparison``), and tables are made of what came
(``reports``). ``harness`` is the host, as all of them see it.
"""

import os

from sadi_lmeval.registration import install

__version__ = "0.1.0"

# The harness finds our task configs as the package `sadi_lmeval.task_configs`. A wheel has that
# folder in here; in a checkout it lies one level up, so look there too.
if not os.path.isdir(os.path.join(__path__[0], "task_configs")):
    __path__.append(os.path.dirname(__path__[0]))

install()
