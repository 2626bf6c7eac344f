"""Construction of an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np


class Graph:
    """An ONNX graph under construction: its nodes in the order of computation, and its constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *inputs: str | np.ndarray, named: str | None = None, **attributes: Any) -> str:
        """Add an operator on constants (arrays) and names of earlier results, and return the name of its result."""
        from onnx import helper

        name = named or f"{op}_{len(self.nodes)}"
        names = [each if isinstance(each, str) else self._add_constant(each) for each in inputs]
        self.nodes.append(helper.make_node(op, names, [name], **attributes))
        return name

    def add_first(self, op: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Add an operator with two results. Return the name of the first one; the second one is not used."""
        name = self.add(op, *inputs, **attributes)
        self.nodes[-1].output.append(f"{name}_unused")
        return name

    def _add_constant(self, array: np.ndarray) -> str:
        from onnx import numpy_helper

        constant = numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        self.constants.append(constant)
        return str(constant.name)
