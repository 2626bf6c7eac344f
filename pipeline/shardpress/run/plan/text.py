"""Plans as text."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Mapping
from typing import Any

from shardpress.errors import printable, quantity
from shardpress.run.plan.plan import Plan
from shardpress.text import duration, size

_WIDTH = 100
_DECIMALS_BELOW = 10.0  # seconds


def plan_text(plan: Plan, output: str) -> str:
    """Return a plan as text; `output` is the name of the output directory."""
    blocks = [
        _summary(plan, output),
        _components(plan),
        _stages(plan),
        _resources(plan),
        _files(plan),
        _earlier(plan),
        _problems(plan),
    ]
    texts = ["\n".join(block) for block in blocks]
    return "\n\n".join(text for text in texts if text)


def _summary(plan: Plan, output: str) -> Iterator[str]:
    inputs = plan.input
    if inputs:
        n_rows = quantity(inputs["n_rows"], "row")
        rows = f"{n_rows} x {inputs['n_inputs']} columns {inputs['dtype']} ({size(inputs['n_bytes'])})"
        n_features = plan.model["n_features"]
        yield f"{quantity(inputs['n_shards'], 'shard')}, {rows} -> {n_features} features in {printable(output)}"
        yield f"network {' x '.join(map(str, plan.model['widths']))}, {_training(plan.model)}"
        yield f"columns: {inputs['columns']}"
        if inputs["preparation"]:
            yield f"rows are prepared with {inputs['preparation']}"
    if plan.device:
        yield f"device {plan.device}"


def _components(plan: Plan) -> Iterator[str]:
    """Yield the error of principal components by their number, from which a user can choose a number of features."""
    if plan.components:
        (_, mean), *others = plan.components
        errors = [f"{mean:.3g} with none (the mean)", *(f"{error:.3g} with {n:.0f}" for n, error in others)]
        words = f"mean squared error of a sample, in scaled units: {', '.join(errors)}"
        yield from _filled("components", words)


def _training(model: Mapping[str, Any]) -> str:
    if not model["epochs"]:
        return "already trained"
    text = f"{model['epochs']} epochs of {quantity(model['steps_per_epoch'], 'step')}"
    if model["replicas"] > 1:
        text += f" by {model['replicas']} replicas"
    return text


def _stages(plan: Plan) -> Iterator[str]:
    for stage in plan.stages:
        yield f"{stage.name:12} {duration(stage.seconds, _DECIMALS_BELOW):>12}   {stage.what}"
    if plan.stages:
        end = time.strftime("%a %H:%M", time.localtime(time.time() + plan.seconds))
        yield f"{'total':12} {duration(plan.seconds, _DECIMALS_BELOW):>12}   a run that starts now ends on {end}"


def _resources(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    if memory:
        text = f"memory       {size(memory['host_bytes'] or 0)} at the peak"
        if memory["device_bytes"] is not None:
            text += f", {size(memory['device_bytes'])} on the device"
        if memory["available"]:
            text += f"; {size(memory['available'])} available"
        yield text
    disk = plan.disk
    if disk:
        text = f"disk         {size(disk['n_bytes'] or 0)} to write"
        if disk["free"] is not None and disk["left"] is not None:
            text += f"; {size(disk['free'])} free, {size(disk['left'])} afterwards"
        yield text


def _files(plan: Plan) -> Iterator[str]:
    for words in plan.files:
        yield from _filled("input:", words)


def _earlier(plan: Plan) -> Iterator[str]:
    for stage, words in plan.earlier.items():
        yield from _filled(f"{stage}:", words)


def _problems(plan: Plan) -> Iterator[str]:
    for problem in plan.problems:
        yield from _filled("PROBLEM", f"{problem['kind']} ({problem['exit_code']}): {problem['words']}")
    for words in plan.warnings:
        yield from _filled("warning", words)
    if not plan.problems:
        yield "no problems found"


def _filled(label: str, words: str) -> list[str]:
    indent = f"{label:13}"
    return textwrap.wrap(words, _WIDTH, initial_indent=indent, subsequent_indent=" " * 13, break_on_hyphens=False)
