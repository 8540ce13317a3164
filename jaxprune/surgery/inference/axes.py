"""The algebra of axes: what an axis of an array consists of, and which axes are the same axis.

An axis is a row-major product of factors, written as a tuple of atoms: the features of an attention output
are (heads, head_dim). An atom is a node of a union-find. It is a leaf (a set of units that are kept or removed
together everywhere), a product (it was reshaped), or a sum of parts (it was concatenated or sliced). The
equations of a model are equalities between axes, so `unify` only ever refines: an axis may have more factors when
it is read later. Always read an axis through `normal`.

If an equality has no exact form in this algebra, both sides are frozen: their units are never removed.

A size may be symbolic (a batch of any size). Such an atom is frozen. Symbolic sizes are only compared for
equality and divided, never ordered, since the order of two symbolic sizes is often not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Reason(NamedTuple):
    """Why an axis is frozen: what happened, and the source line where it happened."""

    text: str
    where: object = ""  # converted to a string only when it is printed: source lines are slow to find

    def __str__(self) -> str:
        where = str(self.where)
        return f"{self.text} at {where}" if where else self.text


class Atom:
    """A union-find node: a leaf, a product (`factors`) or a sum (`parts`) of `size` units."""

    __slots__ = ("factors", "frozen", "link", "parts", "reached", "size")

    def __init__(self, size: int, frozen: Reason | None = None, reached: Reason | None = None):
        self.size = size
        self.frozen = frozen if isinstance(size, int) else frozen or _SYMBOLIC
        self.reached = reached  # the first contraction or reduction over these units
        self.link: Atom | None = None
        self.factors: Axis | None = None
        self.parts: list[Axis] | None = None


Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]

_SYMBOLIC = Reason("its size is symbolic")
_UNIT_PARTS = Reason("its entries are used one by one")


def fresh(size: int, frozen: Reason | None = None) -> Axis:
    """A new axis, which equals no other axis yet."""
    return (Atom(size, frozen),)


def size_of(axis: Axis) -> int:
    return math.prod(atom.size for atom in axis)


def normal(axis: Axis) -> Axis:
    """The axis as a product of root leaves and sums; factors of size 1 are left out."""
    out: list[Atom] = []
    for atom in axis:
        root = _find(atom)
        if root.size == 1:
            continue
        if root.factors is not None:
            root.factors = normal(root.factors)
            out.extend(root.factors)
        else:
            out.append(root)
    return tuple(out)


def leaves_of(axis: Axis) -> Iterator[Atom]:
    """The root leaves of an axis, each of them as often as it occurs."""
    for atom in normal(axis):
        if atom.parts is None:
            yield atom
        else:
            for part in parts_of(atom):
                yield from leaves_of(part)


def parts_of(atom: Atom) -> list[Axis]:
    """The parts of a sum without nesting: (a + b) * c inside it becomes a * c + b * c."""
    if atom.parts is None:
        raise ValueError("an atom without parts")
    flat: list[Axis] = []
    for part in atom.parts:
        part = normal(part)
        if size_of(part) == 0:
            continue
        if part and part[0].parts is not None:
            flat.extend(inner + part[1:] for inner in parts_of(part[0]))
        else:
            flat.append(part)
    atom.parts = flat
    return flat


def freeze(axis: Axis, reason: Reason) -> None:
    for leaf in leaves_of(axis):
        if leaf.frozen is None:
            leaf.frozen = reason


def is_frozen(axis: Axis) -> bool:
    """Whether no unit of an axis can be removed."""
    return all(leaf.frozen is not None for leaf in leaves_of(axis))


def reach(axis: Axis, reason: Reason) -> None:
    """Notes that a contraction or reduction runs over the axis."""
    for leaf in leaves_of(axis):
        if leaf.reached is None:
            leaf.reached = reason


def concatenated(parts: Sequence[Axis]) -> Axis:
    """The axis of a concatenation."""
    parts = [part for part in parts if size_of(part)] or [fresh(0)]
    if len(parts) == 1:
        return parts[0]
    total = sum(map(size_of, parts))
    leaves = [leaf for part in parts for leaf in leaves_of(part)]
    if all(leaf.frozen for leaf in leaves):
        return fresh(total, leaves[0].frozen if leaves else _UNIT_PARTS)
    atom = Atom(total)
    atom.parts = list(parts)
    return (atom,)


def cut(axis: Axis, at: int, reason: Reason) -> tuple[Axis, Axis]:
    """The two pieces of an axis cut after its first `at` units; a cut through a factor freezes all of it."""
    axis = normal(axis)
    first, rest = axis[0], axis[1:]
    if at % size_of(rest):
        freeze(axis, reason)
        return fresh(at, reason), fresh(size_of(axis) - at, reason)
    at //= size_of(rest)
    if first.parts is None:
        left, right = (Atom(n, first.frozen, first.reached) for n in (at, first.size - at))
        if first.frozen is None:
            first.parts = [(left,), (right,)]
        return (left, *rest), (right, *rest)
    lefts, rights, position = [], [], 0
    for part in parts_of(first):
        end = position + size_of(part)
        if end <= at:
            lefts.append(part)
        elif position >= at:
            rights.append(part)
        else:
            left, right = cut(part, at - position, reason)
            lefts.append(left)
            rights.append(right)
        position = end
    return concatenated(lefts) + rest, concatenated(rights) + rest


def unify(a: Axis, b: Axis, reason: Reason) -> None:
    """Makes two axes of the same size equal; freezes the parts of them that have no common factors."""
    a, b = normal(a), normal(b)
    while a or b:
        if a[0] is b[0]:
            a, b = a[1:], b[1:]
        elif a[-1] is b[-1]:
            a, b = a[:-1], b[:-1]
        elif a[0].size == b[0].size:
            _merge(a[0], b[0], reason)
            a, b = normal(a[1:]), normal(b[1:])
        elif a[-1].size == b[-1].size:
            _merge(a[-1], b[-1], reason)
            a, b = normal(a[:-1]), normal(b[:-1])
        elif _split_common(a, b, reason):
            a, b = normal(a), normal(b)
        else:
            freeze(a, reason)
            freeze(b, reason)
            return


def reshaped(axes: Axes, sizes: Sequence[int], reason: Reason) -> Axes:
    """The axes of an array reshaped to `sizes`."""
    out: list[Axis] = []
    for axes_in, sizes_out in _blocks(axes, sizes):
        flat = normal(tuple(atom for axis in axes_in for atom in axis))
        taken: list[Axis] = []
        for size in sizes_out:
            piece, flat = _take(flat, size, reason)
            if piece is None:
                break
            taken.append(piece)
        if len(taken) < len(sizes_out):
            for axis in axes_in:
                freeze(axis, reason)
            taken = [fresh(size, reason) for size in sizes_out]
        out.extend(taken)
    return tuple(out)


def split(axis: Axis, inner: int, reason: Reason) -> tuple[Axis, Axis] | None:
    """The axis as (outer, inner) with `inner` of the given size, or None if it has no such form."""
    head, tail = normal(axis), ()
    while inner != 1:
        if not head:
            return None
        last = head[-1]
        if inner % last.size == 0:
            head, tail, inner = head[:-1], (last, *tail), inner // last.size
        elif last.size % inner == 0 and _factor(last, last.size // inner, reason):
            head = normal(head)
        else:
            return None
    return head, tail


def _find(atom: Atom) -> Atom:
    root = atom
    while root.link is not None:
        root = root.link
    while atom.link is not None:
        atom.link, atom = root, atom.link
    return root


def _merge(a: Atom, b: Atom, reason: Reason) -> None:
    """Links two roots of one size, each a leaf or a sum."""
    if a.parts is not None and b.parts is not None:
        _merge_sums(a, b, reason)
    if b.parts is not None:
        a, b = b, a
    b.link = a
    if b.reached is not None:
        reach((a,), b.reached)
    if b.frozen is not None:
        freeze((a,), b.frozen)


def _merge_sums(a: Atom, b: Atom, reason: Reason) -> None:
    left, right = list(parts_of(a)), list(parts_of(b))
    while left and right:
        p, q = left.pop(0), right.pop(0)
        if size_of(p) > size_of(q):
            p, more = cut(p, size_of(q), reason)
            left.insert(0, more)
        elif size_of(q) > size_of(p):
            q, more = cut(q, size_of(p), reason)
            right.insert(0, more)
        unify(p, q, reason)


def _split_common(a: Axis, b: Axis, reason: Reason) -> bool:
    """Splits a first or last factor so that the two axes share a factor; False if no factor divides."""
    for x, y in ((a[0], b[0]), (b[0], a[0])):
        if y.size % x.size == 0 and _factor(y, x.size, reason):
            return True
    for x, y in ((a[-1], b[-1]), (b[-1], a[-1])):
        if y.size % x.size == 0 and _factor(y, y.size // x.size, reason):
            return True
    x, y = a[0], b[0]
    if not (isinstance(x.size, int) and isinstance(y.size, int)):
        return False
    common = math.gcd(x.size, y.size)
    return (
        common not in (1, x.size, y.size)
        and x.parts is None
        and y.parts is None
        and _factor(x, common, reason)
        and _factor(y, common, reason)
    )


def _factor(atom: Atom, outer: int, reason: Reason) -> bool:
    """Makes a root the product (outer, size / outer) if its parts allow it."""
    inner = atom.size // outer
    if atom.parts is None:
        atom.factors = tuple(Atom(n, atom.frozen, atom.reached) for n in (outer, inner))
        return True
    pieces = []
    for part in parts_of(atom):
        if size_of(part) % inner:
            return False
        piece = split(part, inner, reason)
        if piece is None:
            return False
        pieces.append(piece)
    tail = pieces[0][1]
    for _, other in pieces[1:]:
        unify(tail, other, reason)
    atom.factors = concatenated([head for head, _ in pieces]) + tail
    atom.parts = None
    return True


def _take(flat: Axis, size: int, reason: Reason) -> tuple[Axis | None, Axis]:
    """The leading factors of a product whose sizes multiply to `size`, and the rest."""
    taken: list[Atom] = []
    while size != 1:
        if not flat:
            return None, flat
        first = flat[0]
        if size % first.size == 0:
            taken.append(first)
            flat, size = flat[1:], size // first.size
        elif first.size % size == 0 and _factor(first, size, reason):
            flat = normal(flat)
        else:
            return None, flat
    return tuple(taken), flat


def _blocks(axes: Axes, sizes: Sequence[int]) -> Iterator[tuple[list[Axis], list[int]]]:
    """Pairs the shortest runs of input axes and output sizes that hold the same number of elements."""
    i = j = 0
    while i < len(axes) or j < len(sizes):
        run_in, run_out = list(axes[i : i + 1]), list(sizes[j : j + 1])
        i, j = i + 1, j + 1
        n_in, n_out = math.prod(map(size_of, run_in)), math.prod(run_out)
        while n_in != n_out:
            if (_is_smaller(n_in, n_out) and i < len(axes)) or j >= len(sizes):
                run_in.append(axes[i])
                n_in, i = n_in * size_of(axes[i]), i + 1
            else:
                run_out.append(sizes[j])
                n_out, j = n_out * sizes[j], j + 1
        yield run_in, run_out


def _is_smaller(a: int, b: int) -> bool:
    """Whether a product of sizes is smaller than another, or for symbolic ones a divisor of it."""
    return a < b if isinstance(a, int) and isinstance(b, int) else b % a == 0
