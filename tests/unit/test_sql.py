"""The loader of statements: what it replaces and what it leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhara.errors import ConfigError
from dhara.store.sql import check_schema, load, names, qualify


def test_every_object_is_qualified() -> None:
    text = "SELECT * FROM dhara.tasks AS t, dhara.queues WHERE nextval('dhara.task_history_seq') > 0"
    assert qualify(text, "q_1") == (
        'SELECT * FROM "q_1".tasks AS t, "q_1".queues WHERE nextval(\'"q_1".task_history_seq\') > 0'
    )


@pytest.mark.parametrize("text", ["xdhara.tasks", "dhara: task", "dhara.Tasks", "dhara. x", "mydhara.x"])
def test_what_is_no_object_is_left(text: str) -> None:
    assert qualify(text, "other") == text


@pytest.mark.parametrize("schema", ["", "A", "1a", "a-b", 'a"b', "a" * 41, "a.b", "a\n", "é"])
def test_other_names_are_refused(schema: str) -> None:
    with pytest.raises(ConfigError):
        check_schema(schema)
    with pytest.raises(ConfigError):
        load("tasks/get", schema)


@given(st.text(max_size=10))
def test_no_schema_can_break_out_of_its_quotes(schema: str) -> None:
    try:
        quoted = qualify("dhara.x", schema)
    except ConfigError:
        return
    assert quoted == f'"{schema}".x'
    assert '"' not in schema


def test_comments_are_left_out_and_texts_are_kept() -> None:
    text = load("tasks/get", "dhara")
    assert text == 'SELECT * FROM "dhara".tasks WHERE id = $1'
    assert load("tasks/get", "dhara") is text
    for name in names():
        assert "--" not in load(name, "dhara").splitlines()[0]


def test_names_cover_the_folders() -> None:
    assert {name.partition("/")[0] for name in names()} >= {"queues", "stats", "tasks", "workers"}
    assert {"tasks/claim", "tasks/settle", "workers/beat"} <= set(names())
