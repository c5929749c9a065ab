"""Blocks of a deep model: the rows that one repeated structure has together, such as encoder_0 or conv2_block1.

A block is found by its number in the names of its layers: "encoder_0_self_attention_query" is in encoder_0. Layers and
operations that Keras named itself ("add_3") go with the layers they follow or lead to. In a model where nothing is
numbered, a block is what lies between two places where a single tensor is handed on.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.parameter_ledger.ledger import LedgerRow

MIN_ROWS = 40  # a model of fewer layers is not folded
_MIN_BLOCKS = 6  # the outermost numbers that make as many blocks are taken: stages, or the blocks inside
_MAX_NUMBERS = 3  # numbers of a name that are tried
_MAX_SPREAD = 4  # a block's rows are near each other: as many places from first to last for each
BLOCK, BLOCKS = "Block", "Blocks"  # kinds of headings: one block; equal blocks that follow one another
_NUMBERED = re.compile(r"(?!.*(?:conv|pool|pooling|padding|cropping|sampling|dropout)[123]d$)[A-Za-z]*\d+[a-z]?")


def fold(rows: Sequence[LedgerRow]) -> tuple[LedgerRow, ...]:
    """Put the rows of each block together under a heading.

    Args:
        rows: `LedgerRow`s in call order.

    Returns:
        tuple of rows: the same, and before each block a heading of kind `BLOCK`, before equal blocks that follow one
        another also one of kind `BLOCKS`; both with `group=True`, what is in them deeper by one. The rows as they are
        if the model has few, or no blocks.
    """
    if sum(not row.group for row in rows) < MIN_ROWS:
        return tuple(rows)
    return tuple(_flatten(_fold_siblings(rows, _tree(rows, 0, len(rows), 0)), rows))


@dataclasses.dataclass
class _Node:
    """A row, or a heading with nodes inside."""

    index: int | None = None  # of the row; None for a heading of blocks
    inner: list = dataclasses.field(default_factory=list)
    kind: str = ""  # BLOCK or BLOCKS for a heading
    name: str = ""

    def indices(self):
        """Indices of its rows and of those inside."""
        return [*([] if self.index is None else [self.index]), *(i for node in self.inner for i in node.indices())]


def _tree(rows, start, stop, depth):
    nodes = []
    for index in range(start, stop):
        if rows[index].depth == depth:
            end = next((i for i in range(index + 1, stop) if rows[i].depth <= depth), stop)
            nodes.append(_Node(index, _tree(rows, index + 1, end, depth + 1), name=rows[index].name))
    return nodes


def _fold_siblings(rows, nodes):
    """The nodes of one model with its blocks as headings, each after those that feed it."""
    sources, best, most = _sources(rows, nodes), None, 1
    for number in range(1, _MAX_NUMBERS + 1):
        block_of = _numbered_blocks(rows, nodes, sources, number)
        if (count := len(set(block_of.values()))) > most and (folded := _under_headings(rows, nodes, block_of)):
            best, most = folded, count
        if most >= _MIN_BLOCKS:
            break
    if not best and len(nodes) >= MIN_ROWS:
        best = _under_headings(rows, nodes, _valid(rows, nodes, _between_cuts(nodes, sources)))
    best = best or nodes
    for node in best:
        if not node.kind:
            node.inner = _fold_siblings(rows, node.inner)
    return _join_equal(rows, best)


def _under_headings(rows, nodes, block_of):
    """The nodes, those of a block under its heading, in an order in which they can be called; None if there is none."""
    members, folded = collections.defaultdict(list), []
    for position in range(len(nodes)):
        members[block_of.get(position)].append(position)
    for position in members.pop(None, ()):
        folded.append((position, nodes[position]))
    for block, positions in members.items():
        own = [position for position in positions if rows[nodes[position].index].name.startswith(block)]
        inner = [nodes[position] for position in positions]
        if len(inner) == 1:  # a nested model: the heading stands for its row
            inner = inner[0].inner
        folded.append((max(own or positions), _Node(inner=inner, kind=BLOCK, name=block)))
    return _ordered(rows, [node for _, node in sorted(folded, key=lambda item: item[0])])


def _numbered_blocks(rows, nodes, sources, number):
    """{position of a node: name of its block}, by the n-th number of the names; by one before where that gives none."""
    block_of = {}
    for n in range(number, 0, -1):
        named = {position: _prefix(rows[node.index], n) for position, node in enumerate(nodes)}
        named = {position: name for position, name in named.items() if name} | block_of
        block_of = _valid(rows, nodes, _spread(rows, nodes, sources, named))
    return block_of


def _sources(rows, nodes):
    """For each node the positions of the nodes that feed it."""
    position_of = {index: position for position, node in enumerate(nodes) for index in node.indices()}
    return [
        sorted(
            {position_of[s] for index in node.indices() for s in rows[index].sources if s in position_of} - {position}
        )
        for position, node in enumerate(nodes)
    ]


def _prefix(row, number):
    """The name up to its n-th number, or its last if it has fewer; None without one."""
    if _is_automatic(row):
        return row.name if row.group else None
    tokens = row.name.split("_")
    ends = [end for end, token in enumerate(tokens, start=1) if _NUMBERED.fullmatch(token)]
    return "_".join(tokens[: ends[:number][-1]]) if ends else None


def _is_automatic(row):
    """Whether Keras chose the name: that of the class, and a number."""
    return re.sub(r"_\d+$", "", row.name).replace("_", "") == row.kind.lower()


def _spread(rows, nodes, sources, block_of):
    """Add the nodes that Keras named itself to the blocks they follow or lead to."""
    named, block_of, takers = dict(block_of), dict(block_of), collections.defaultdict(list)
    automatic = [_is_automatic(rows[node.index]) and position not in named for position, node in enumerate(nodes)]
    for position, feeding in enumerate(sources):
        for source in feeding:
            takers[source].append(position)
        known = [named[source] for source in feeding if source in named]
        if automatic[position] and known and not rows[nodes[position].index].parameters:
            block_of[position] = known[-1]
    cuts = _cuts(sources)
    for position in reversed(range(len(nodes))):
        blocks = {block_of.get(taker) for taker in takers[position]}
        if automatic[position] and position not in block_of and position not in cuts and len(blocks) == 1:
            block_of[position] = blocks.pop()
    block_of = {position: block for position, block in block_of.items() if block is not None}
    for block in set(block_of.values()):  # what lies on a way out of a block and back into it
        members = {position for position in block_of if block_of[position] == block}
        fed = _reach(members, takers, range(min(members), len(nodes)))
        feeds = _reach(members, dict(enumerate(sources)), reversed(range(max(members) + 1)))
        block_of |= {position: block for position in fed & feeds if automatic[position] and position not in block_of}
    for position, feeding in enumerate(sources):  # the sum at the end of a block
        blocks = {block_of.get(source) for source in feeding}
        if (
            automatic[position]
            and position not in block_of
            and len(feeding) > 1
            and len(blocks) == 1
            and None not in blocks
        ):
            block_of[position] = blocks.pop()
    return block_of


def _reach(start, edges, order):
    """The positions that edges lead to from `start`, which is part of them."""
    reached = set(start)
    for position in order:
        if position in reached:
            reached.update(edges.get(position, ()))
    return reached


def _cuts(sources):
    """Positions after which only that node's output is still needed."""
    last = {}
    for position, feeding in enumerate(sources):
        last |= dict.fromkeys(feeding, position)
    cuts, reach = set(), -1
    for position in range(len(sources)):
        if reach <= position:
            cuts.add(position)
        reach = max(reach, last.get(position, -1))
    return cuts


def _between_cuts(nodes, sources):
    """Blocks of a model without numbers: more than one node between two cuts."""
    block_of, start = {}, 0
    for cut in sorted(_cuts(sources)):
        if cut > start:
            block_of |= dict.fromkeys(range(start, cut + 1), nodes[cut].name)
        start = cut + 1
    return block_of


def _valid(rows, nodes, block_of):
    """The blocks that have several layers with parameters, near each other, or are a nested model."""
    members = collections.defaultdict(list)
    for position, block in block_of.items():
        members[block].append(position)
    valid = set()
    for block, positions in members.items():
        weighted = sum(bool(rows[i].parameters and not rows[i].group) for p in positions for i in nodes[p].indices())
        if weighted > 1 and max(positions) - min(positions) < _MAX_SPREAD * len(positions):
            valid.add(block)
    return {position: block for position, block in block_of.items() if block in valid}


def _ordered(rows, nodes):
    """The nodes, each after those that feed it, else in the given order; None if some are fed by one another."""
    waits_for = [set(feeding) for feeding in _sources(rows, nodes)]
    takers = collections.defaultdict(list)
    for position, feeding in enumerate(waits_for):
        for source in feeding:
            takers[source].append(position)
    ready, ordered = [position for position, feeding in enumerate(waits_for) if not feeding], []
    while ready:
        position = heapq.heappop(ready)
        ordered.append(nodes[position])
        for taker in takers[position]:
            waits_for[taker].discard(position)
            if not waits_for[taker]:
                heapq.heappush(ready, taker)
    return ordered if len(ordered) == len(nodes) else None


def _join_equal(rows, nodes):
    """Equal blocks that follow one another under one heading; what they do not feed goes before them."""
    joined, run, inside = [], [], set()

    def close():
        joined.extend([_Node(inner=list(run), kind=BLOCKS, name=_span(run))] if len(run) > 1 else run)
        run.clear()
        inside.clear()

    for node in nodes:
        if node.kind != BLOCK and not inside & {s for index in node.indices() for s in rows[index].sources}:
            joined.append(node)
            continue
        if node.kind != BLOCK or (run and _signature(rows, node) != _signature(rows, run[0])):
            close()
        if node.kind == BLOCK:
            run.append(node)
            inside.update(node.indices())
        else:
            joined.append(node)
    close()
    return joined


def _signature(rows, node):
    """What makes blocks equal: their name but for the numbers, and the kinds, sizes and work of their layers."""
    weighty = [rows[index] for index in node.indices() if rows[index].parameters or rows[index].macs != 0]
    family = re.sub(r"_?\d+[a-z]?(?=_|$)", "", node.name)
    return family, sorted(
        (row.kind, row.parameters, row.counted_parameters, str(row.macs), str(row.outputs)) for row in weighty
    )


def _span(run):
    """ "encoder_0…5" for the blocks encoder_0 to encoder_5."""
    first, last = (re.findall(r"(.*?)(\d*[a-z]?)$", run[place].name)[0] for place in (0, -1))
    return f"{run[0].name}…{last[1] if first[0] == last[0] and first[1] else run[-1].name}"


def _flatten(nodes, rows):
    """The rows of a tree in its order, with headings; sources are their new places."""
    flat = []  # (node, its depth)

    def visit(node, depth):
        flat.append((node, depth))
        for inner in node.inner:
            visit(inner, depth + 1)

    for node in nodes:
        visit(node, 0)
    place = {node.index: place for place, (node, _) in enumerate(flat) if node.index is not None}
    for node, depth in flat:
        if node.index is None:
            yield _heading(node, depth, rows)
        else:
            row = rows[node.index]
            yield dataclasses.replace(row, depth=depth, sources=tuple(place[source] for source in row.sources))


def _heading(node, depth, rows):
    """The row of a block: its output is what later rows take last."""
    indices = node.indices()
    shared = all(rows[index].counted_parameters == 0 for index in indices)
    inside, model = set(indices), rows[indices[0]].path.rpartition("/")[0]
    taken = {source for index, row in enumerate(rows) if index not in inside for source in row.sources}
    last = max(inside & taken or inside)
    return dataclasses.replace(
        type(rows[0])(path=f"{model}/{node.name}" if model else node.name, kind=node.kind),
        depth=depth,
        group=True,
        outputs=rows[last].outputs,
        parameters=sum(rows[index].counted_parameters for index in indices),
        note=f"×{len(node.inner)}" if node.kind == BLOCKS else "shared: its parameters are counted above" * shared,
    )
