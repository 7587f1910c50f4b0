"""Fuzzers: long runs, outside the suite, which runs a few seconds of each.

    python -m fuzz.frames --frames 100000     HTTP framing, mutated, over raw sockets
    python -m fuzz.api --cases 20000          the OpenAPI document, by schemathesis, with its links
    python -m fuzz.fires --fires 1000         the process that fires schedules, killed and stopped at each fire time
    python -m fuzz.parsers --seconds 600      small parsers, by atheris (`pip install atheris`)

All but the parsers need DHARA_DATABASE_URL, where they make a schema of their own and drop it.
"""
