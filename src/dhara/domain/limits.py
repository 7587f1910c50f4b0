"""The bounds of what a task may be: one table for the wire, the library, the SQL function and the docs."""

from __future__ import annotations

import re

TYPE_LENGTH = 100
PAYLOAD_BYTES = 256 * 1024
RESULT_BYTES = 256 * 1024
JSON_DEPTH = 64
NUMBER_DIGITS = 1_000
EXPONENT = 400
PRIORITY = (0, 100)
MAX_RETRIES = (0, 20)
BATCH = (1, 1_000)
QUEUE_LIMIT = (0, 10**12)
WAIT_OBJECTIVE_SECONDS = (1.0, 365 * 86_400.0)
IDEMPOTENCY_KEY_LENGTH = 255
TIMEOUT_SECONDS = (0.001, 7 * 86_400.0)
DELAY_SECONDS = (0.0, 365 * 86_400.0)
RUN_AT_PAST_SECONDS = 300.0
RUN_AT_AHEAD_SECONDS = 365 * 86_400.0
UNIQUE_FOR_SECONDS = (1.0, 365 * 86_400.0)
RETENTION_SECONDS = (0.0, 10 * 365 * 86_400.0)
TAGS = 32
TAG_LENGTH = 100
LIST_LIMIT = (1, 500)
SNOOZES = 1_000
CRASHES = 3
ERROR_BYTES = 8 * 1024
LAST_ERROR_LENGTH = 2_000
LOG_LINES = 200
LOG_LINE_LENGTH = 2_000

NAME_PATTERN = r"[a-z0-9][a-z0-9._:-]{0,99}"
NAME = re.compile(NAME_PATTERN)
NAME_HINT = "1 to 100 characters: a-z, 0-9, and . _ : - after the first"
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
