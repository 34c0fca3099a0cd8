"""Index maps between any two layouts as boxes: channel blocks of the output and of the source are walked block by block and lane by lane.

A channel axis is cut where a block begins, so that along each piece a step is always as far in memory. Where output and source have their
channels along the same axis, but not at the same place in a block, every block is two pieces. Channels in another order are cut where a block of the
output begins; blocks whose lanes come from the same places in later blocks are walked together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

from compiler.ir.graph import Region
from compiler.ir.intexpr import Dim, evaluate, floordiv, mod, substitute, sym
from compiler.ir.regions import phases
from compiler.ir.types import TensorType
from compiler.kernels.base import physical_strides
from compiler.kernels.boxes import Box
from compiler.kernels.loops import Axis


@dataclass(frozen=True)
class _Run:
    """Positions ``start + q * block + l`` of a region's axis, for q below ``count`` and l below ``width``."""

    start: int
    count: int
    width: int


def region_boxes(region: Region, source: TensorType | None, output: TensorType) -> list[Box] | None:
    """The boxes of a region of an output, whose elements come from a source (None: they are its fill).

    None where channels are not walked one by one, or begin at a place in a block that is not known: those go element by element.
    """
    block = max(output.block, 1 if source is None else source.block)
    firsts: list[tuple[int, Dim]] = [(1, region.offset[1])] if output.block != 1 else []
    walked: tuple[int, Dim] | None = None
    if source is not None and source.block != 1:
        walked = _walked(region, block)
        if walked is None and not isinstance(region.index[1], int):
            return _permuted_boxes(region, source, output)
        firsts += [walked] if walked is not None else []
    cuts: dict[int, set[int]] = {}
    for axis, first in firsts:
        lane = mod(-first, block)
        if not isinstance(lane, int) or not isinstance(region.extent[axis], int):
            return None
        cuts.setdefault(axis, set()).add(lane)
    if output.block != 1 and cuts[1] == {0} and (source is None or (walked is not None and walked[0] == 1)):
        region = _with_padding(region, output)
    runs = [_runs(region.extent[axis], sorted(places), block) for axis, places in cuts.items()]
    chosen = [dict(zip(cuts, choice, strict=True)) for choice in product(*runs)]
    return [_box(region, output, _index(region, source, walked, choice, block), choice, block) for choice in chosen]


def _permuted_boxes(region: Region, source: TensorType, output: TensorType) -> list[Box] | None:
    """The boxes of a region of a blocked output whose channels are its source's in another order.

    None where the order, or where the region begins, is not known.
    """
    found = phases(region) if output.block != 1 else None
    if found is None:
        return None
    boxes = []
    for phase in found:
        (batch, channels, *spatial), (first, offset, *place) = phase.region.extent, phase.region.offset
        if not isinstance(channels, int) or not isinstance(offset, int):
            return None
        image, number, *position = phase.region.index
        around = [Axis(extent, k, phase.steps[k], f"i{k}") for k, extent in enumerate(spatial, 2)]
        order = [evaluate(number, {"i1": channel}) for channel in range(channels)]
        cuts = sorted({0, *range(-offset % output.block, channels, output.block), channels})
        pieces = [range(a, b) for a, b in pairwise(cuts)]
        for alike, step in _alike([[order[channel] for channel in piece] for piece in pieces], source.block):
            start, width = pieces[alike.start].start, len(pieces[alike.start])
            channel = substitute(number, {"i1": sym(_lane(1)) + start})
            block = floordiv(channel, source.block) + sym("i1") * (step // source.block)
            index = _flat((image, block, *position, mod(channel, source.block)), source)
            along = Axis(batch, 0, phase.steps[0], "i0"), Axis(len(alike), 1, alike.step, "i1")
            corner = (first, *divmod(offset + start, output.block))
            ends = len(alike) == 1 and offset + start + width == output.shape[1]
            axes = (*along, *around, Axis(width, output.rank, symbol=_lane(1)))
            boxes.append(Box((*corner[:2], *place, corner[2]), axes, region.source, index, region.fill, ends=ends))
    return boxes


def _alike(pieces: Sequence[Sequence[int]], block: int) -> list[tuple[range, int]]:
    """Pieces of channels, as runs of every n-th whose channels are each time as many whole blocks further on, and how many channels that is.

    The last piece may be shorter than the others, and the first; these stand alone.
    """
    inner = [k for k, piece in enumerate(pieces) if len(piece) == len(pieces[len(pieces) // 2])]
    for apart in range(1, len(inner)):
        step = pieces[inner[apart]][0] - pieces[inner[0]][0]
        pairs = (zip(pieces[k], pieces[k + apart], strict=True) for k in inner[:-apart])
        if step >= 0 and step % block == 0 and all(b - a == step for pair in pairs for a, b in pair):
            runs = [(range(first, inner[-1] + 1, apart), step) for first in inner[:apart]]
            return [*runs, *((range(k, k + 1), 0) for k in range(len(pieces)) if k not in inner)]
    return [(range(k, k + 1), 0) for k in range(len(pieces))]


def _with_padding(region: Region, output: TensorType) -> Region:
    """A region that ends at the output's last channel with the padding lanes after it, which lie as in the source."""
    channels = region.extent[1]
    if region.offset[1] + channels != output.shape[1]:
        return region
    return replace(region, extent=(region.extent[0], channels + -channels % output.block, *region.extent[2:]))


def _walked(region: Region, block: int) -> tuple[int, Dim] | None:
    """The axis along which the source's channels are walked one by one, and the first of them, at a known place in its block."""
    found = ((axis, region.index[1] - sym(f"i{axis}")) for axis in range(len(region.extent)))
    return next(((axis, first) for axis, first in found if isinstance(mod(first, block), int)), None)


def _runs(extent: Dim, places: Sequence[int], block: int) -> list[_Run]:
    """An axis cut at every position that is one of ``places`` modulo block: single pieces, what repeats with every block, single pieces."""
    if not isinstance(extent, int):
        return []
    first = places[0]
    whole = max(0, (extent - first) // block)
    end = first + whole * block
    head = [0, first] if 0 < first < extent else [0, extent] if first >= extent > 0 else []
    tail = [end, *(place + whole * block for place in places[1:] if place + whole * block < extent), extent] if first <= end < extent else []
    body = [_Run(a, whole, b - a) for a, b in pairwise((*places, first + block))] if whole else []
    single = [[_Run(a, 1, b - a) for a, b in pairwise(cuts)] for cuts in (head, tail)]
    return [*single[0], *body, *single[1]]


def _box(region: Region, output: TensorType, index: Dim, runs: Mapping[int, _Run], block: int) -> Box:
    """A region along whose cut axes one run each is walked."""
    offset, axes, lanes = list(region.offset), [], []
    blocked, ends = output.block != 1, False
    for k, extent in enumerate(region.extent):
        run = runs.get(k)
        if run is None:
            axes.append(Axis(extent, k, symbol=f"i{k}"))
            continue
        first = offset[k] + run.start
        if blocked and k == 1:
            number, lane = first // block, first % block
            axes.append(Axis(run.count, 1, symbol=f"i{k}"))
            lanes.append(Axis(run.width, len(offset), symbol=_lane(k)))
            offset[1] = number
            ends = run.count == 1 and first + run.width == output.shape[1]
        else:
            axes += [Axis(run.count, k, block, f"i{k}"), Axis(run.width, k, symbol=_lane(k))]
            offset[k] = first
    place = (*offset, lane) if blocked else tuple(offset)
    return Box(place, (*axes, *lanes), region.source, index, region.fill, ends=ends)


def _index(region: Region, source: TensorType | None, walked: tuple[int, Dim] | None, runs: Mapping[int, _Run], block: int) -> Dim:
    """Where the source's element lies; a run of its channels stays in one block, and its next step in the next."""
    if source is None:
        return 0
    positions = {f"i{k}": sym(f"i{k}") * block + sym(_lane(k)) + run.start for k, run in runs.items()}
    index = [substitute(x, positions) for x in region.index]
    if source.block != 1 and walked is not None:
        axis, channel = walked
        first = runs[axis].start + substitute(channel, positions)
        number, lane = floordiv(first, block), mod(first, block)
        index = [index[0], sym(f"i{axis}") + number, *index[2:], sym(_lane(axis)) + lane]
    elif source.block != 1:
        index = [index[0], index[1] // block, *index[2:], index[1] % block]
    return _flat(index, source)


def _flat(index: Sequence[Dim], source: TensorType) -> Dim:
    """Physical coordinates of a source as an element number."""
    flat: Dim = 0
    for coordinate, stride in zip(index, physical_strides(source), strict=True):
        flat = flat + coordinate * stride
    return flat


def _lane(axis: int) -> str:
    """The symbol of the position in a block of a cut axis."""
    return f"i{axis}.lane"
