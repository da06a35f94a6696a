"""Programs without a trace of the machine that made them."""

from __future__ import annotations

from torch.export import ExportedProgram

from seatrial.core.graph import Graph, to_program


def anonymous_program(graph: Graph) -> ExportedProgram:
    """Export `graph` again and drop stack traces, which hold paths of this machine."""
    program = to_program(graph)
    for node in program.graph.nodes:
        for key in ("stack_trace", "source_fn_stack", "from_node"):
            node.meta.pop(key, None)
    return program
