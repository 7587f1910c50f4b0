"""Stands for `rich` in the processes that tests start: where only dhara is installed there is none.

structlog loads it if it can, for a renderer that dhara does not use: an eighth of a second of a processor in each of the hundreds
of processes.
"""

raise ImportError("tests/lean: no rich, as where only dhara is installed")
