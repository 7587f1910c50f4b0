"""Settings: precedence, units, refusals that help, secrets that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhara import settings as module
from dhara.errors import ConfigError
from dhara.settings import BY_NAME, TABLE, Settings, check, duration, load


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "dhara.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_table_and_struct_hold_the_same_names() -> None:
    assert [setting.name for setting in TABLE] == list(Settings.__struct_fields__)
    assert all(setting.about and setting.variable == "DHARA_" + setting.name.upper() for setting in TABLE)


def test_defaults() -> None:
    assert load(environ={}) == Settings()
    check(Settings())


def test_arguments_then_environment_then_file_then_defaults(tmp_path: Path) -> None:
    written(tmp_path, 'port = 1\nhost = "file"\nschema = "file"\n')
    found = load({"port": 3, "host": None}, {"DHARA_PORT": "2", "DHARA_HOST": "env"})
    assert (found.port, found.host, found.schema, found.log_level) == (3, "env", "file", "info")


def test_a_value_equal_to_the_default_still_beats_the_file(tmp_path: Path) -> None:
    written(tmp_path, "port = 1\n")
    assert load({}, {"DHARA_PORT": "8080"}).port == 8080
    assert load({"port": 8080}, {}).port == 8080


def test_a_file_of_another_name(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("port = 5")
    assert load({}, {}, other).port == 5
    with pytest.raises(ConfigError, match="cannot be read"):
        load({}, {}, tmp_path / "missing.toml")


def test_other_variables_are_left_alone() -> None:
    assert load({}, {"PORT": "1", "DHARA_TEST_X": "1", "DHARA_POSTGRES_BIN": "/x", "PATH": "x"}) == Settings()


def test_an_empty_variable_is_not_given(tmp_path: Path) -> None:
    written(tmp_path, "port = 1\n")
    assert load({}, {"DHARA_PORT": "", "DHARA_DATABASE_URL": ""}) == Settings(port=1)


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("DHARA_PROT", "DHARA_PORT"),
        ("DHARA_HEARTBEAT", "DHARA_HEARTBEAT_INTERVAL"),
        ("DHARA_DATABASE", "DHARA_DATABASE_URL"),
    ],
)
def test_unknown_settings_are_refused_with_the_nearest(variable: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}: unknown setting; did you mean {hint}"):
        load({}, {variable: "1"})


def test_unknown_in_file_and_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--prot: unknown setting; did you mean port\?"):
        load({"prot": 1}, {})
    written(tmp_path, "prot = 1")
    with pytest.raises(ConfigError, match=r"dhara\.toml: prot: unknown setting"):
        load({}, {})


BAD: list[tuple[str, str]] = [
    ("PORT", "-1"), ("PORT", "65536"), ("PORT", "x"), ("PORT", "1.5"), ("PORT", "9" * 5000),
    ("AUTO_MIGRATE", "maybe"), ("WORKER_COUNT", "0"), ("PROCESSES", "65"),
    ("POLL_INTERVAL", "0"), ("POLL_INTERVAL", "-1s"), ("POLL_INTERVAL", "1 parsec"), ("POLL_INTERVAL", "nan"),
    ("POLL_INTERVAL", "11000d"), ("POLL_INTERVAL", "1e3"), ("POLL_INTERVAL", "٣s"), ("LOG_LEVEL", "loud"),
    ("LOG_FORMAT", "xml"), ("SCHEMA", "Dhara"), ("SCHEMA", "a" * 41), ("SCHEMA", "1a"), ("SCHEMA", 'x"; DROP'),
    ("DATABASE_URL", "a\nb"), ("API_KEYS", "a\x00"), ("HOST", "\x1b[0m"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_name_the_variable_and_what_would_do(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({}, {"DHARA_" + name: value})
    message = str(caught.value)
    assert message.startswith(f"DHARA_{name}: must be ")
    assert "\n" not in message


GOOD: list[tuple[str, str, Any]] = [
    ("port", "0", 0),
    ("port", " 80 ", 80),
    ("auto_migrate", "No", False),
    ("pooler", "on", True),
    ("poll_interval", "250ms", 0.25),
    ("log_level", "WARNING", "warning"),
    ("schema", "a_1", "a_1"),
    ("api_keys", "a, b,,", ("a", "b")),
    ("allowed_hosts", "example.com", ("example.com",)),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_good_values(name: str, text: str, value: Any) -> None:
    assert getattr(load({}, {BY_NAME[name].variable: text}), name) == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("port = \nhost = 1", "line 1"),
        ("port = 99999", "port: must be an integer from 0 to 65535"),
        ("port = true", "port: must be"),
        ('port = "x"', "port: must be"),
        ("poll_interval = 1979-05-27", "poll_interval: must be"),
        ("poll_interval = " + "9" * 400, "poll_interval: must be"),
        ("api_keys = [1]", "api_keys: must be"),
        ("[port]\nx = 1", "port: must be"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, fault: str) -> None:
    written(tmp_path, text)
    with pytest.raises(ConfigError, match=fault):
        load({}, {})


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "dhara.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load({}, {})


def test_types_of_toml(tmp_path: Path) -> None:
    written(tmp_path, 'port = 1\npoll_interval = 2\nstale_after = "1m"\npooler = true\napi_keys = ["a", "b"]\n')
    found = load({}, {})
    assert (found.port, found.poll_interval, found.stale_after, found.pooler, found.api_keys) == (
        1,
        2,
        60,
        True,
        ("a", "b"),
    )


def test_a_readable_file_with_secrets_is_warned_of(tmp_path: Path) -> None:
    path = written(tmp_path, 'api_keys = ["hush-hush"]')
    path.chmod(0o644)
    with pytest.warns(UserWarning, match="readable by others") as caught:
        load({}, {})
    assert "hush-hush" not in str(caught[0].message)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"heartbeat_interval": 10.0, "stale_after": 30.0}, "HEARTBEAT_INTERVAL .* less than a third of STALE_AFTER"),
        ({"pool_min": 9, "pool_max": 8}, "POOL_MIN .* POOL_MAX"),
        ({"base_backoff": 10.0, "max_backoff": 5.0}, "BASE_BACKOFF"),
    ],
)
def test_contradictions(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load(values, {})


SECRET = "s3cr3t-canary"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DHARA_DATABASE_URL", f"postgresql://u:{SECRET}@h\n/d"),
        ("DHARA_API_KEYS", f"{SECRET}\x00"),
        ("DHARA_API_KEY", SECRET),
        ("DHARA_DATABASE_URI", f"postgresql://u:{SECRET}@h/d"),
    ],
)
def test_secrets_never_show_in_messages(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({}, {variable: value})
    assert SECRET not in str(caught.value)
    name = variable.removeprefix("DHARA_").lower()
    with pytest.raises(ConfigError) as caught:
        load({name: value}, {})
    assert SECRET not in str(caught.value)


UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@given(st.integers(1, 300), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_durations_with_units(number: int, unit: str, gap: str) -> None:
    assert duration(f"{number}{gap}{unit}") == number * UNITS[unit]


@given(st.floats(0.001, 1e8))
def test_durations_round_trip(seconds: float) -> None:
    assert duration(seconds) == seconds
    assert duration(f"{seconds:.3f}s") == float(f"{seconds:.3f}")


@given(
    st.text(max_size=12) | st.floats() | st.integers() | st.booleans() | st.none() | st.lists(st.integers(), max_size=2)
)
def test_durations_refuse_with_a_value_error_only(value: Any) -> None:
    try:
        found = duration(value)
    except ValueError:
        pass
    else:
        assert 0 < found <= 10 * 365 * 86_400


@given(st.sampled_from(TABLE), st.text(max_size=20))
def test_whatever_the_environment_says_only_config_errors_come(setting: module.Setting, text: str) -> None:
    try:
        load({}, {setting.variable: text})
    except ConfigError as error:
        assert str(error)  # noqa: PT017
