"""`draw`: the tape as a picture. The graph is written here in Graphviz's language DOT; Graphviz lays it out."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..autograd import Context, Variable
from ..modes import Scope
from ..nn import Module, Parameter
from ..serialization import write_atomically
from .tape import Kept, Tape, norm, short_bytes, short_number

FORMATS = (".svg", ".png", ".pdf")  # drawn by Graphviz; .dot and .gv do not need it

STYLES = {  # kind of box: (fill, line, style)
    "operation": ("#ffffff", "#8b96a5", "filled,rounded"),
    "group": ("#e9eef5", "#7d8fa8", "filled,rounded"),
    "parameter": ("#e6efe3", "#7f9f78", "filled"),
    "leaf": ("#faf0d9", "#c3a158", "filled"),
    "loss": ("#f5dfdb", "#b5655a", "filled,rounded"),
}
RUNS = 20  # about how many boxes the summary of a tape without modules has
CLUSTER_FILLS = ("#f6f8fa", "#eef1f5")  # alternating with the depth of the module
INK, GREY, RUST = "#24292f", "#66707c", "#a2492f"  # titles; what the forward did; gradients

HEADER = f"""digraph tape {{
  graph [rankdir=TB, nodesep=0.25, ranksep=0.35, fontname="Helvetica", fontsize=11, fontcolor="{GREY}", \
labelloc=t, bgcolor="white", pad=0.2]
  node [shape=box, fontname="Helvetica", fontsize=11, fontcolor="{INK}", margin="0.1,0.06", height=0.3]
  edge [fontname="Helvetica", fontsize=9, fontcolor="{GREY}", color="#7a8491", arrowsize=0.6]"""


class GraphvizError(RuntimeError):
    """Graphviz is not installed, or could not draw the graph."""


class Drawing:
    """The picture of a tape. `dot` is its source in Graphviz's language DOT; Jupyter shows it as SVG."""

    def __init__(self, dot: str, caption: str) -> None:
        self.dot, self.caption = dot, caption

    def render(self, format: str = "svg") -> bytes:
        """Draw the picture with Graphviz's program `dot`, in any format that it supports."""
        program = shutil.which("dot")
        if program is None:
            raise GraphvizError(
                f'a picture ({format}) needs Graphviz\'s program "dot", which is not on the PATH. Install it with apt '
                f"install graphviz, brew install graphviz or conda install graphviz, or from graphviz.org/download. "
                f"A .dot file does not need it"
            )
        done = subprocess.run([program, f"-T{format}"], input=self.dot.encode(), capture_output=True)
        if done.returncode:
            raise GraphvizError(f"dot -T{format}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the DOT source (.dot, .gv) or the picture (.svg, .png, .pdf), atomically."""
        suffix = Path(path).suffix.lower()
        if suffix in (".dot", ".gv"):
            write_atomically(path, self.dot.encode())
        elif suffix in FORMATS:
            write_atomically(path, self.render(suffix[1:]))
        else:
            raise ValueError(f"{path}: expected a file name that ends in one of .dot, .gv, {', '.join(FORMATS)}")

    def _repr_svg_(self) -> str | None:
        return self.render().decode() if shutil.which("dot") else None

    def __str__(self) -> str:
        return self.dot

    def __repr__(self) -> str:
        return f'<Drawing of {self.caption}; str() gives it as DOT, .save("graph.svg") as a picture>'


def draw(
    tensor: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    limit: int = 200,
    depth: int | None = None,
    model: Module | None = None,
    names: Mapping[str, Any] | None = None,
) -> Drawing:
    """Draw the tape that ends in `tensor`: operations with the shapes and dtypes of their outputs, in their modules.

        viz.draw(loss)                  # in Jupyter: the picture
        viz.draw(loss, "graph.svg")     # or .png, .pdf; these need Graphviz's program dot, a .dot file does not
        viz.draw(loss, names={"x": x, "w": w})

    Leaves show the norm of their `grad`. Operations show the norm of the gradient that they received if `viz.trace` ran
    the backward.
    limit: a tape with more operations and leaves than this is summarized: one box for each module call, at the greatest
        depth that needs at most a quarter of `limit` boxes, and one for each run of operations outside these calls.
    depth: summarize, with one box for each module call at this depth. 0 is the outermost modules.
    model: name modules and parameters by their paths in it. Default: in the outermost modules that were called.
    names: names for other tensors, leaves or not.

    Raises AutogradError for a tensor without a tape, GraphvizError if Graphviz is needed and not installed.
    """
    if limit < 4:
        raise ValueError(f"viz.draw: expected a limit of at least 4, got {limit}")
    if depth is not None and depth < 0:
        raise ValueError(f"viz.draw: expected a depth of at least 0, got {depth}")
    tape = Tape("viz.draw", tensor, model)
    picture = _Picture(tape, tape.names("viz.draw", names))
    if not tape.nodes or (depth is None and len(tape.nodes) + len(tape.uses) <= limit):
        _draw_all(picture)
    else:
        _draw_groups(picture, _groups(tape, limit // 4) if depth is None else _groups_at(tape, depth))
    drawing = Drawing(picture.text(), picture.caption)
    if path is not None:
        drawing.save(path)
    return drawing


def escape(text: str) -> str:
    """Escape a text for a label in Graphviz's HTML-like syntax."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text) or " "
    for character, written in ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\\", r"\\"):
        text = text.replace(character, written)
    return text


class _Picture:
    """The boxes, each in its module's cluster, and the edges, as lines of DOT."""

    def __init__(self, tape: Tape, names: dict[Any, str]) -> None:
        self.tape, self.names = tape, names
        self.kept = tape.kept()
        for node in tape.nodes:  # freed by a backward, but recorded if viz.trace ran it
            if node.freed and (traced := getattr(node, "traced", None)):
                self.kept[node] = Kept(traced.saved, traced.saved_bytes)
        self.inside: dict[int | None, list[str | Scope]] = {None: []}  # what is in each scope, in order
        self.edges: list[str] = []
        self.clusters = itertools.count()
        self.ordinal = self._number_calls()
        numbers = sum(leaf.data.size for leaf in tape.uses)
        saved = sum(self.kept[node].bytes for node in tape.nodes)
        self.caption = f"{_count(len(tape.nodes), 'operation')}, {_count(len(tape.uses), 'leaf')} of "
        self.caption += _count(numbers, "number") + (f", {short_bytes(saved)} saved for backward" if saved else "")

    def _number_calls(self) -> dict[int, int]:
        """Number the calls of each module that is called more than once in this tape."""
        calls: dict[int, list[Scope]] = {}
        seen = set()
        for node in self.tape.nodes:
            for scope in self.tape.calls(node.scope):
                if id(scope) not in seen:
                    seen.add(id(scope))
                    calls.setdefault(id(scope.module), []).append(scope)  # one weak reference per module
        return {id(scope): i + 1 for same in calls.values() if len(same) > 1 for i, scope in enumerate(same)}

    def title(self, scope: Scope) -> str:
        ordinal = self.ordinal.get(id(scope))
        return self.tape.title(scope) + (f", call {ordinal}" if ordinal else "")

    def box(self, scope: Scope | None, name: str, kind: str, title: str, *lines: str) -> None:
        """Add a box to the cluster of `scope`: a title and lines in small print."""
        rows = [f"<b>{escape(title)}</b>"]
        for line in filter(None, lines):
            ink = RUST if line.startswith("grad") else GREY
            rows.append(f'<font point-size="9" color="{ink}">{escape(line)}</font>')
        table = "".join(f"<tr><td>{row}</td></tr>" for row in rows)
        fill, color, style = STYLES[kind]
        attributes = (
            f'label=<<table border="0" cellspacing="0" cellpadding="1">{table}</table>>, '
            f'style="{style}", fillcolor="{fill}", color="{color}"'
        )
        outer: Scope | None = None
        for call in self.tape.calls(scope):
            if id(call) not in self.inside:
                self.inside[id(call)] = []
                self.inside[id(outer) if outer else None].append(call)
            outer = call
        self.inside[id(scope) if scope else None].append(f"{name} [{attributes}]")

    def edge(self, start: str, end: str, label: str = "") -> None:
        self.edges.append(f"{start} -> {end}" + (f" [label=<{escape(' ' + label)}>]" if label else ""))

    def loss(self, source: str) -> None:
        """Add the box for the result, which follows the last operation (or the leaf)."""
        root = self.tape.root
        value = short_number(root.data.item()) if root.data.size == 1 else ""
        title = f"loss = {value}" if value else "result"
        self.box(None, "loss", "loss", title, _describe(root.data.shape, root.data.dtype))
        self.edge(source, "loss")

    def text(self) -> str:
        lines = [HEADER, f"  label=<{escape(self.caption)}<br/> >", *self._inside(None, 0)]
        return "\n".join([*lines, *(f"  {edge}" for edge in self.edges), "}\n"])

    def _inside(self, scope: Scope | None, level: int) -> Iterator[str]:
        indent = "  " * (level + 1)
        for item in self.inside[id(scope) if scope else None]:
            if isinstance(item, str):
                yield indent + item
                continue
            yield f"{indent}subgraph cluster_{next(self.clusters)} {{"
            yield (
                f"{indent}  label=<{escape(self.title(item))}>; labeljust=l; margin=10; "
                f'style="filled,rounded"; fillcolor="{CLUSTER_FILLS[level % 2]}"; color="#d3d9e0"'
            )
            yield from self._inside(item, level + 1)
            yield f"{indent}}}"


def _count(n: int, noun: str) -> str:
    plural = {"leaf": "leaves", "box": "boxes"}.get(noun, noun + "s")
    return f"{n:,} {noun if n == 1 else plural}"


def _describe(shape: tuple[int, ...], dtype: Any) -> str:
    return f"{shape if shape else 'scalar'} {dtype}"


def _gradient_of(leaf: Variable) -> str:
    return "" if leaf.grad is None else f"grad norm {short_number(norm(leaf.grad))}"


def _gradient_at(node: Context) -> str:
    traced = getattr(node, "traced", None)
    return f"grad norm {short_number(traced.grad_norm)}" if traced else ""


def _common(tape: Tape, nodes: list[Context]) -> Scope | None:
    """The innermost module call that contains all the nodes."""
    common = tape.calls(nodes[0].scope) if nodes else ()
    for node in nodes:
        pairs = zip(common, tape.calls(node.scope), strict=False)
        common = tuple(one for one, other in pairs if one is other)
    return common[-1] if common else None


# Every operation and every leaf


def _draw_all(picture: _Picture) -> None:
    tape = picture.tape
    names: dict[Any, str] = {node: f"n{i}" for i, node in enumerate(tape.nodes)}
    names.update({leaf: f"leaf{i}" for i, leaf in enumerate(tape.uses)})
    waiting = dict(tape.uses)
    for node in tape.nodes:
        for leaf in node.parents:
            if isinstance(leaf, Variable) and leaf in waiting:  # written beside its first use, to be drawn there
                _draw_leaf(picture, names[leaf], leaf, waiting.pop(leaf))
        _draw_operation(picture, names[node], node)
        for parent in node.parents:
            if isinstance(parent, Variable):
                picture.edge(names[parent], names[node])
            elif parent is not None:
                maker, number = parent
                several = len(maker.outputs) > 1
                picture.edge(names[maker], names[node], f"output {number}" if several else "")
    for leaf in waiting:  # a tape of one leaf
        _draw_leaf(picture, names[leaf], leaf, [])
    picture.loss(names[tape.root.origin[0] if tape.root.origin else tape.root])


def _draw_leaf(picture: _Picture, name: str, leaf: Variable, uses: list[Context]) -> None:
    kind = "parameter" if isinstance(leaf, Parameter) else "leaf"
    lines = _describe(leaf.data.shape, leaf.data.dtype), _gradient_of(leaf)
    scope = _common(picture.tape, uses) if kind == "parameter" else None
    picture.box(scope, name, kind, picture.names.get(leaf, kind), *lines)


def _draw_operation(picture: _Picture, name: str, node: Context) -> None:
    made = Counter(_describe(*output) for output in node.outputs)
    lines = [f"{times} × {what}" if times > 1 else what for what, times in made.items()]
    kept = picture.kept[node]
    if kept.shapes:
        arrays = _count(len(kept.shapes), "array")
        lines.append(f"saves {arrays}" + (f", {short_bytes(kept.bytes)}" if kept.bytes else ""))
    named = [picture.names[node, i] for i in range(len(node.outputs)) if (node, i) in picture.names]
    title = (f"{', '.join(named)} = " if named else "") + node.function.__name__
    picture.box(node.scope, name, "operation", title, *lines, _gradient_at(node))


# The summary


class _Group:
    """Operations that share a box: those of one module call, or a run of operations outside such calls."""

    def __init__(self, scope: Scope | None, calls: list[Scope], nodes: list[Context]) -> None:
        self.scope = scope  # the call whose cluster contains the box
        self.calls = calls  # the calls that the box represents
        self.nodes = nodes


def _groups_at(tape: Tape, depth: int, longest: int | None = None) -> list[_Group]:
    """One group for the nodes of each module call at `depth`, and groups for runs of other nodes in forward order."""
    longest = longest or len(tape.nodes)
    groups: list[_Group] = []
    of_call: dict[int, _Group] = {}
    for node in tape.nodes:
        calls = tape.calls(node.scope)
        if len(calls) > depth:
            group = of_call.get(id(calls[depth]))
            if group is None:
                group = of_call[id(calls[depth])] = _Group(calls[depth].outer, [calls[depth]], [])
                groups.append(group)
        else:
            group = groups[-1] if groups else None
            if group is None or group.calls or group.scope is not node.scope or len(group.nodes) >= longest:
                group = _Group(node.scope, [], [])
                groups.append(group)
        group.nodes.append(node)
    return groups


def _groups(tape: Tape, most: int) -> list[_Group]:
    """At most `most` groups, at the greatest depth where that many are enough."""
    longest = -(-len(tape.nodes) // min(most, RUNS))
    deepest = max(len(tape.calls(node.scope)) for node in tape.nodes) - 1
    too_many: list[_Group] = []
    for depth in range(max(deepest, 0), -1, -1):
        groups = _groups_at(tape, depth, longest)
        if len(groups) > most:
            too_many = groups
        elif not too_many or len(groups) >= most // 8:
            return groups
    return _merged(tape, too_many, most)  # one depth has too many groups, the next too few to be useful


def _merged(tape: Tape, groups: list[_Group], most: int) -> list[_Group]:
    """At most `most` groups: neighbors are merged."""
    size = -(-len(groups) // most)
    merged = []
    for i in range(0, len(groups), size):
        some = groups[i : i + size]
        nodes = [node for group in some for node in group.nodes]
        calls = [call for group in some for call in group.calls]
        merged.append(some[0] if len(some) == 1 else _Group(_common(tape, nodes), calls, nodes))
    return merged


def _draw_groups(picture: _Picture, groups: list[_Group]) -> None:
    tape = picture.tape
    of_node = {node: i for i, group in enumerate(groups) for node in group.nodes}
    shared = {leaf for leaf, nodes in tape.uses.items() if len({of_node[node] for node in nodes}) > 1}
    flows: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for i, group in enumerate(groups):
        _draw_group(picture, f"g{i}", group, shared)
        for node in group.nodes:
            for parent in node.parents:
                if isinstance(parent, tuple) and of_node[parent[0]] != i:
                    maker, number = parent
                    flows.setdefault((of_node[maker], i), []).append(maker.outputs[number][0])
    for (start, end), shapes in flows.items():
        shape = f"{shapes[0] or 'scalar'}" if len(set(shapes)) == 1 else ""
        picture.edge(f"g{start}", f"g{end}", " ".join(filter(None, [f"{len(shapes):,} ×" * (len(shapes) > 1), shape])))
    picture.loss(f"g{of_node[tape.root.origin[0]]}")  # type: ignore[index]
    picture.caption += f", in {_count(len(groups), 'box')}"


def _draw_group(picture: _Picture, name: str, group: _Group, shared: set[Variable]) -> None:
    if len(group.nodes) == 1 and not group.calls:
        _draw_operation(picture, name, group.nodes[0])
        return
    lines = []
    if group.calls:
        lines.append(_count(len(group.nodes), "operation"))
    if len(group.calls) != 1:
        counted = Counter([call.kind for call in group.calls] or [node.function.__name__ for node in group.nodes])
        kinds = [f"{kind} ×{n:,}" if n > 1 else kind for kind, n in counted.most_common()]
        lines.append(", ".join(kinds[:3]) + ", …" * (len(kinds) > 3))
    leaves = list(dict.fromkeys(p for node in group.nodes for p in node.parents if isinstance(p, Variable)))
    only_parameters = all(isinstance(leaf, Parameter) for leaf in leaves)
    if leaves:
        size = sum(leaf.data.size for leaf in leaves)
        held = _count(size, "parameter" if only_parameters else "number")
        held = held if only_parameters else f"{_count(len(leaves), 'leaf')} of {held}"
        lines.append(held + " (shared)" * any(leaf in shared for leaf in leaves))
    saved = sum(picture.kept[node].bytes for node in group.nodes)
    lines.append(f"saves {short_bytes(saved)}" if saved else "")
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    at_end = "" if group.calls else _gradient_at(group.nodes[-1])
    if gradients and not at_end:
        whose = "parameters" if only_parameters else "leaves"
        lines.append(f"grad norm of {whose} {short_number(norm(*gradients))}")
    picture.box(group.scope, name, "group", _title(picture, group), *lines, at_end and f"{at_end} at the end")


def _title(picture: _Picture, group: _Group) -> str:
    if not group.calls:
        return _count(len(group.nodes), "operation")
    if len(group.calls) == 1:
        return picture.title(group.calls[0])
    first, last = picture.tape.path(group.calls[0]), picture.tape.path(group.calls[-1])
    return f"{first}, {len(group.calls):,} calls" if first == last else f"{first} … {last}"
