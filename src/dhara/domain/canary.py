"""Canary retries: release a few DEAD tasks, watch what becomes of them, then the rest in growing waves. Pure.

A wave is judged by its tasks' own ends: those that fail again, even if they will be tried once more, speak against going
on. Nothing speaks for it but COMPLETED tasks, so a wave that nobody works on waits.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Plan(Struct, frozen=True, kw_only=True):
    """How to go about it: `first` tasks, then waves `factor` times as large up to `most`; stop if more than the share
    `max_failed` of a wave fails again; after `watch` seconds go on without those that still run."""

    first: int = 10
    factor: float = 4.0
    most: int = 500
    max_failed: float = 0.2
    watch: float = 60.0


class Wave(Struct, frozen=True):
    """What has become of the tasks released last. `age` is seconds since."""

    size: int
    completed: int
    failed: int
    age: float


class Verdict(StrEnum):
    """What to do next."""

    WAIT = "wait"
    GO = "go"
    STOP = "stop"


def judge(plan: Plan, wave: Wave) -> Verdict:
    """Whether the next wave may go."""
    if wave.failed > plan.max_failed * wave.size:
        return Verdict.STOP
    if wave.completed + wave.failed >= wave.size:
        return Verdict.GO
    return Verdict.GO if wave.completed and wave.age >= plan.watch else Verdict.WAIT


def next_size(plan: Plan, last: int) -> int:
    """How many tasks the wave after one of `last` tasks releases; 0: it is the first."""
    return min(plan.most, round(last * plan.factor)) if last else min(plan.most, plan.first)
