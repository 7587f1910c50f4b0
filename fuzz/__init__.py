"""Fuzzers: long runs, outside the suite, which runs a few seconds of each.

    python -m fuzz.frames --frames 100000     HTTP framing, mutated, over raw sockets
    python -m fuzz.api --cases 20000          the OpenAPI document, by schemathesis, with its links
    python -m fuzz.fires --fires 1000         the process that fires schedules, killed and stopped at each fire time
    python -m fuzz.parsers --seconds 600      small parsers, by atheris (`pip install atheris`)
    python -m fuzz.injection                  every parameter, by sqlmap (`pip install sqlmap`)
    python -m fuzz.scan                       the code, by semgrep and bandit (`pip install semgrep bandit`)
    python -m fuzz.timings                    whether refusals of API keys take the same time
    python -m fuzz.files                      which files a server writes, by strace

All but parsers and scan need DHARA_DATABASE_URL, where they make a schema of their own and drop it.
"""
