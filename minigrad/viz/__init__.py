"""See the graph and its backward pass.

from minigrad import viz
viz.draw(loss, "graph.svg")         # operations, shapes, dtypes, modules; after backward the gradients' norms
viz.trace(loss)                     # loss.backward(), with a table of its steps: what was saved, how long it took
viz.animate(loss, "steps.html")     # loss.backward(), as a page that plays it: the rule and the numbers of every step
"""

from .animate import animate
from .draw import Drawing, GraphvizError, draw
from .trace import Row, Trace, trace

__all__ = ["Drawing", "GraphvizError", "Row", "Trace", "animate", "draw", "trace"]
