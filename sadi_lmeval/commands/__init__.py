"""The subcommands of ``sadi-lmeval``, one a file.

Each has ``add``, which describes its options, and ``run``. Neither ``add`` nor the import of one
loads torch, so that ``--help`` and a faulty line cost nothing.
"""
