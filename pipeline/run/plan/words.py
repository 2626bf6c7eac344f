"""A plan for people."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator

from pipeline.errors import counted, shown
from pipeline.run.plan.plan import Plan
from pipeline.text import duration, size

__all__ = ["in_words"]

_WIDTH = 100
_DECIMALS_BELOW = 10.0  # seconds


def in_words(plan: Plan, output: str) -> str:
    """A page about a plan; `output` is the directory's name."""
    blocks = [_what(plan, output), _stages(plan), _means(plan), _earlier(plan), _problems(plan)]
    return "\n\n".join("\n".join(lines) for block in blocks if (lines := list(block)))


def _what(plan: Plan, output: str) -> Iterator[str]:
    its = plan.input
    if its:
        rows = f"{counted(its['n_rows'], 'row')} x {its['n_inputs']} columns {its['dtype']} ({size(its['n_bytes'])})"
        yield f"{counted(its['n_shards'], 'shard')}, {rows} -> {plan.model['widths'][-1]} features in {shown(output)}"
        network = " x ".join(map(str, plan.model["widths"]))
        epochs = f", {plan.model['epochs']} epochs of {counted(plan.model['steps_per_epoch'], 'step')}"
        by = f" by {plan.model['replicas']} replicas" if plan.model["replicas"] > 1 else ""
        yield f"network {network}{epochs + by if plan.model['epochs'] else ', trained before'}"
        yield f"columns: {its['columns']}"
    if plan.device:
        yield f"device {plan.device}"


def _stages(plan: Plan) -> Iterator[str]:
    for stage in plan.stages:
        yield f"{stage.name:12} {duration(stage.seconds, _DECIMALS_BELOW):>12}   {stage.what}"
    if plan.stages:
        ends = time.strftime("%a %H:%M", time.localtime(time.time() + plan.seconds))
        yield f"{'in all':12} {duration(plan.seconds, _DECIMALS_BELOW):>12}   begun now it would end on {ends}"


def _means(plan: Plan) -> Iterator[str]:
    if plan.memory:
        on_device = plan.memory["device_bytes"]
        host = plan.memory["host_bytes"] or 0
        device = f", {size(on_device)} on the device" if on_device is not None else ""
        available = f"; {size(plan.memory['available'])} are available" if plan.memory["available"] else ""
        yield f"memory       {size(host)} at its peak{device}{available}"
    if plan.disk:
        free = plan.disk["free"]
        left = plan.disk["left"]
        room = "" if free is None or left is None else f"; {size(free)} are free, {size(left)} left then"
        yield f"disk         {size(plan.disk['n_bytes'] or 0)} to be written{room}"


def _earlier(plan: Plan) -> Iterator[str]:
    if not plan.earlier:
        return
    if len(set(plan.earlier.values())) == 1:
        yield from _filled("earlier run", next(iter(plan.earlier.values())))
        return
    for stage, words in plan.earlier.items():
        yield from _filled(f"{stage}:", words)


def _problems(plan: Plan) -> Iterator[str]:
    for problem in plan.problems:
        yield from _filled("PROBLEM", f"{problem['kind']} ({problem['exit_code']}): {problem['words']}")
    for words in plan.warnings:
        yield from _filled("warning", words)
    if not plan.problems:
        yield "no problem found"


def _filled(label: str, words: str) -> list[str]:
    indent = f"{label:13}"
    return textwrap.wrap(words, _WIDTH, initial_indent=indent, subsequent_indent=" " * 13, break_on_hyphens=False)
