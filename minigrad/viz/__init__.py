"""See the graph: `draw` makes a picture of any tape, `trace` runs the backward pass and prints what it did.

from minigrad import viz
viz.draw(loss, "graph.svg")     # operations, shapes, dtypes, modules; after backward the gradients' norms
viz.trace(loss)                 # loss.backward(), with a table of its steps: what was saved, how long it took
"""

from .draw import Drawing, GraphvizError, draw
from .trace import Row, Trace, trace

__all__ = ["Drawing", "GraphvizError", "Row", "Trace", "draw", "trace"]
