"""Groups: the units of a model that must be removed together, and the axes that can't lose units, with the reason."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxprune.params import PyTree
from jaxprune.patterns import names_of
from jaxprune.surgery.inference.axes import Atom, Axis, leaves_of, normal, parts_of
from jaxprune.surgery.inference.made import made_units
from jaxprune.surgery.inference.model import Model, State, analyse
from jaxprune.surgery.orders.find import Pattern, found_orders
from jaxprune.surgery.orders.orders import Orders
from jaxprune.tables import Row, folded, listed, table_text, times


class Member(NamedTuple):
    """An axis of a parameter that has units of a group; `layout` shows their place in a composed axis."""

    path: str
    axis: int
    layout: str = ""

    def __str__(self) -> str:
        return f"{self.path}[{self.axis}{': ' + self.layout if self.layout else ''}]"


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are kept or pruned together: unit i is slice i of every member.

    A group equals its name and has the same hash, so it can be used wherever the name of a group is expected:
    `scores[group]`, `group in groups`, `plan_units(groups, {group: mask})`.

    Attributes:
      name, size, members: its name, the number of its units, and where they are.
      chosen: if an argmax or `top_k` chooses among the units (the experts of a router), how many of them: the group
        never loses so many that fewer are left. 0 if none does.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    atom: Atom = field(repr=False)
    chosen: int = 0

    @property
    def minimum(self) -> int:
        """The number of units that the group keeps at least."""
        return max(self.chosen, min(self.size, 1))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Group):
            return (self.name, self.size, self.members) == (other.name, other.size, other.members)
        return self.name == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def source(self) -> str:
        """The source line of the first matrix product, convolution or reduction over the units."""
        return str(self.atom.reached.where) if self.atom.reached else ""


class Frozen(NamedTuple):
    """Axes of parameters that can't lose units, and the reason."""

    reason: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Groups:
    """The groups of a model, as a mapping from their names to the groups; printing it shows a table.

    Iteration gives the groups, each of which equals its name: `list(groups) == list(groups.keys())`.

    Attributes:
      groups: the groups.
      frozen: the axes that can't lose units, by reason.
      model, state, fn: the model, the state function and the function that were analysed.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    model: Model = field(repr=False, compare=False)
    state: State | None = field(default=None, repr=False, compare=False)
    fn: Callable | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __contains__(self, name: object) -> bool:
        return any(group == name for group in self.groups)

    def __getitem__(self, name: str | Group) -> Group:
        for group in self.groups:
            if group == name:
                return group
        raise KeyError(f"no group {name!r}. There are: {', '.join(map(repr, self.keys()))}.")

    def get(self, name: str | Group, default: Any = None) -> Any:
        """The group of this name, or `default`."""
        return next((group for group in self.groups if group == name), default)

    def keys(self) -> KeysView[str]:
        """The names of the groups."""
        return self._by_name().keys()

    def values(self) -> ValuesView[Group]:
        """The groups."""
        return self._by_name().values()

    def items(self) -> ItemsView[str, Group]:
        """Names and groups."""
        return self._by_name().items()

    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def of(self, path: str, axis: int) -> tuple[Group, ...]:
        """The groups on one axis of a parameter, outermost first."""
        atoms = list(dict.fromkeys(leaves_of(self.model.axes[path][axis])))
        return tuple(group for atom in atoms for group in self.groups if group.atom is atom)

    def named(self, patterns: str | Iterable[str], argument: str) -> list[str]:
        """Names of the groups that have one of these names, or a member whose path one of these patterns matches.

        Args:
          patterns: names of groups, or regular expressions. An expression must match a whole path, or a leading
            part of it that ends before a slash. Names, members (`layers/3/up[1]`) and leading parts of paths may
            have `*` for any text without a slash, as the printed table has them.
          argument: name of the argument that the patterns were passed as, for error messages.

        Raises:
          ValueError: if a pattern matches no group, or is not a regular expression.
        """
        given = (patterns,) if isinstance(patterns, str) else patterns
        paths = {group.name: [*_paths(group)] for group in self}
        return names_of(argument, given, paths, "group")

    def find_orders(
        self,
        params: PyTree,
        n: int,
        m: int,
        *,
        scores: PyTree | None = None,
        where: Any = None,
        exclude: str | Iterable[str] = (),
        only: str | Iterable[str] | None = None,
        rounds: int = 10,
    ) -> Orders:
        """Orders of the units that suit an N:M pattern: `jp.surgery.find_orders`."""
        if not (isinstance(n, int) and isinstance(m, int) and 0 < n < m):
            raise ValueError(f"`n` and `m` must be whole numbers with 0 < n < m, got n={n!r}, m={m!r}.")
        if not isinstance(rounds, int) or rounds < 0:
            raise ValueError(f"`rounds` must be a whole number of at least 0, got {rounds!r}.")
        names = set(self.keys() if only is None else self.named(only, "only"))
        names -= set(self.named(exclude, "exclude"))
        atoms = {group.name: group.atom for group in self}
        return found_orders(self.model, atoms, params, Pattern(n, m, rounds), scores, where, names)

    def __str__(self) -> str:
        rows = []
        for row, count in folded(map(_row, self.groups)):
            (name, *members), (size, *_) = row.paths, row.cells
            summed = f"  (summed at {row.source})" if row.source else ""
            rows.append((times(name, count), size, listed(members) + summed))
        text = table_text(("group", "units", "members"), rows, numbers=("units",))
        if not self.frozen:
            return text
        reasons = [(listed(tuple(map(str, members))), reason) for reason, members in self.frozen]
        return f"{text}\n\n{table_text(('frozen', 'because'), reasons)}"

    __repr__ = __str__


Mapping.register(Groups)  # type: ignore[attr-defined]


def _paths(group: Group) -> Iterator[str]:
    for member in group.members:
        yield from (member.path, f"{member.path}[{member.axis}]")


def _row(group: Group) -> Row:
    units = f"{group.size} (top {group.chosen})" if group.chosen else str(group.size)
    return Row((group.name, *map(str, group.members)), (units,), group.source)


def find_groups(fn: Callable, params: PyTree, *inputs: Any, state: State | None = None) -> Groups:
    """Finds the units that must be removed together, in any function.

    The function is traced once, and every axis of every value is followed through the equations of the jaxpr. A
    group is a set of units that occurs in a parameter, that a contraction or reduction runs over, and that no
    input, no output and no operation without a rule fixes. The units must be computed by parameters: copies of
    an input form no group, since zeroing the weights that read the copies does not remove them. A value that
    depends on constants alone (a mask, a table, an index list) fixes no units; it is sliced together with the
    units that it is combined with.

    Whole experts of a mixture of experts are a group: unit e is column e of the router and slice e of the experts'
    stacked weights, biases and buffers. An argmax or `top_k` never chooses a removed expert (its score counts as
    minus infinity), and the group keeps as many experts as are chosen. This holds where the positions that are
    chosen are only compared with positions (one-hots), looked up (`take`, `ragged_dot` of rows that are sorted by
    expert), written at and moved. Where they are used as numbers, compared with one number, or are an output, the
    experts are frozen. Capacities that were computed from the number of experts stay what they were. Experts with
    parameters of their own, in a Python loop, are not units of a group: `jp.find_branches` finds them.

    Args:
      fn: function `fn(params, *inputs)`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.
      *inputs: example inputs, pytrees of arrays or `jax.ShapeDtypeStruct`s; only shapes and dtypes matter.
      state: function `(params, outputs) -> (state_in, state_out)` for models with a recurrent state: the state is
        part of the parameters, and the function returns its new value (BatchNorm statistics in training, a KV
        cache). These outputs then do not fix their axes, and `state_in` and `state_out` lose the same units.

    Returns:
      The groups. Printing them shows a table of sizes and members, and of the frozen axes with the reasons.

    Raises:
      ValueError: if two arrays of `params` have the same path, or `state` gives trees that don't match.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.ones((3, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 2))}
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["up"] + params["bias"]) @ params["down"]
      >>> jp.find_groups(mlp, params, jnp.ones((1, 3)))
      group     units   members
      ...
      bias[0]       8   bias[0], down[0], up[1]  (summed at ...)
      <BLANKLINE>
      frozen    because
      ...
      down[1]   axis 1 of the output
      up[0]     axis 1 of input 0

    References:
      Fang et al., DepGraph: Towards Any Structural Pruning, 2023, arXiv:2301.12900 (the problem; there the
      couplings are guessed from layer types, here they follow from the equations).
    """
    model = analyse(fn, params, inputs, state)
    members: dict[Atom, list[Member]] = {}
    for path, axes in model.axes.items():
        for dim, axis in enumerate(axes):
            for atom in dict.fromkeys(leaves_of(axis)):
                members.setdefault(atom, []).append(Member(path, dim, _layout(axis, atom)))
    free = {atom for atom in members if atom.frozen is None and atom.reached is not None}
    made = made_units(model.frame, model.of_params, free)
    groups: list[Group] = []
    frozen: dict[str, list[Member]] = {}
    names: set[str] = set()
    for atom, of in members.items():
        if atom.frozen is not None:
            frozen.setdefault(str(atom.frozen), []).extend(of)
        elif atom.reached is None:
            frozen.setdefault("nothing sums over it (rows not reached, parameters not used)", []).extend(of)
        elif atom.size == 0:
            frozen.setdefault("it has no units", []).extend(of)
        elif atom not in made:
            frozen.setdefault("no parameter makes its units (copies of an input or of units)", []).extend(of)
        else:
            name = _name(of, names)
            names.add(name)
            groups.append(Group(name, atom.size, tuple(of), atom, model.chosen.get(atom, 0)))
    return Groups(tuple(groups), tuple(Frozen(r, tuple(m)) for r, m in frozen.items()), model, state, fn)


def _name(members: list[Member], taken: set[str]) -> str:
    plain = [m for m in members if not m.layout] or members
    for member in (*plain, *members):
        for name in (f"{member.path}[{member.axis}]", str(member)):
            if name not in taken:
                return name
    count = 2
    while f"{members[0]}#{count}" in taken:
        count += 1
    return f"{members[0]}#{count}"


def _layout(axis: Axis, atom: Atom) -> str:
    factors = normal(axis)
    return "" if factors == (atom,) else _show(factors, atom)


def _show(factors: Axis, atom: Atom) -> str:
    shown = []
    for factor in factors:
        if factor is atom:
            shown.append(f"[{factor.size}]")
        elif factor.parts is not None and any(leaf is atom for leaf in leaves_of((factor,))):
            inner = " + ".join(_show(part, atom) if part else "1" for part in parts_of(factor))
            shown.append(f"({inner})" if len(factors) > 1 else inner)
        else:
            shown.append(str(factor.size))
    return " x ".join(shown)
