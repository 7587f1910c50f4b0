"""Passwords of DSNs never survive redaction, whatever they are made of."""

from __future__ import annotations

import re
from urllib.parse import quote

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhara.errors import ConfigError, Unavailable
from dhara.store.pool import check_dsn, unavailable
from dhara.telemetry.redact import redact

# With a mark in front that occurs nowhere in the text around, and without what ends a word.
PASSWORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), max_size=20).map(
    "§9".__add__
)
FRAMES = ["{}", "cannot connect to {}", "tried {} and then\n{}", "<{}> (mail a@b.c)"]


def hidden(text: str, password: str) -> bool:
    return password not in redact(text)


@given(
    PASSWORDS,
    st.sampled_from(FRAMES),
    st.sampled_from(["postgresql", "postgres"]),
    st.sampled_from(["u", "", "a.b%40c"]),
)
def test_urls(password: str, frame: str, scheme: str, user: str) -> None:
    for written in (password, quote(password, safe="")):
        dsn = f"{scheme}://{user}:{written}@host:5432/db?x=1"
        assert hidden(frame.format(dsn, dsn), written)


@given(
    PASSWORDS, st.sampled_from(["password", "PASSWORD", "sslpassword", "passwd", "pwd"]), st.sampled_from(["=", " = "])
)
def test_keywords(password: str, word: str, equals: str) -> None:
    assert hidden(f"host=h {word}{equals}{password} user=u", password)
    assert hidden(f"postgresql://h/d?{word}={quote(password, safe='')}&x=1", quote(password, safe=""))


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20).map("§9".__add__))
def test_quoted_keywords(password: str) -> None:
    written = password.replace("\\", "\\\\").replace("'", "\\'")
    assert hidden(f"host=h password='{written}' user=u", written)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:p@ss@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("nothing to hide: mail a@b.c", "nothing to hide: mail a@b.c"),
        ("host=h password=x user=u", "host=h password=*** user=u"),
    ],
)
def test_the_rest_stays_readable(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(PASSWORDS)
def test_a_refused_dsn_does_not_show_its_password(password: str) -> None:
    for dsn in (f"mysql://u:{password}@h/d", f"postgresql://u:{password}@h:port/d", f"u:{password}@h"):
        try:
            check_dsn(dsn)
        except ConfigError as error:
            assert password not in str(error)  # noqa: PT017


def test_several_hosts_are_a_dsn() -> None:
    """A primary and its standby: the driver takes the one that can be written to."""
    dsn = "postgresql://u:p@one:5432,two:5433/d?target_session_attrs=read-write"
    assert check_dsn(dsn) == dsn
    with pytest.raises(ConfigError, match="cannot be read"):
        check_dsn("postgresql://u@one:5432,two:port/d")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("connect to postgresql://u:hush@h failed\nreally"), Unavailable),
        (asyncpg.InvalidPasswordError('password authentication failed for user "u"'), ConfigError),
        (asyncpg.InvalidCatalogNameError('database "x" does not exist'), ConfigError),
        (TimeoutError(), Unavailable),
    ],
)
def test_connection_errors_are_one_line_that_says_what_to_do(error: Exception, kind: type[Exception]) -> None:
    shown = unavailable(error)
    assert type(shown) is kind
    assert "hush" not in str(shown)
    assert "\n" not in str(shown)
    assert re.search(r"DHARA_DATABASE_URL", str(shown))
