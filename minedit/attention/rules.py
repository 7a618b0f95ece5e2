"""What an attention layer is, and what it does at one step, as data. In: what a method decided. Out: `Rule`, `Attn`.

eager.py says what a Rule means. Prompt-to-Prompt (Hertz et al., arXiv:2208.01626), AdapEdit (arXiv:2312.08019, Eqs. 8
and 9), MasaCtrl (arXiv:2304.08465) and Plug-and-Play (arXiv:2211.12572) are Rules.

Letters, in all of this wing: B rows of the batch, H heads, N pixels, T tokens (pixels too, in self-attention), D width
of a head, C = H·D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minedit.attention.inside import Gate, Seen, Split
from minedit.attention.tap import Tap
from minedit.config import MineditError


@dataclass(frozen=True)
class Site:
    """One attention layer of a UNet."""

    name: str  # its module name: "input_blocks.1.1.transformer_blocks.0.attn2"
    kind: str  # "self" | "cross"
    place: str  # "down" | "mid" | "up"
    stride: int  # latent side / map side: 1, 2, 4, 8
    channels: int
    heads: int


@dataclass(frozen=True, eq=False)
class Edit:
    """New probabilities for one row, from its own P_t and a source row's P_s; for pixel p and token j

        M[p,j] = pin_j (P_s R)[p,j] + blend_j [(1 - w_p) (P_s R)[p,j] + w_p P_t[p,j]] + own_j P_t[p,j].

    P_s and P_t are those before any edit. Usually pin + blend + own = 1; reweighting scales them.
    """

    row: int
    source: int
    columns: Tensor | None  # R [T,T], R[i,j]: share of source column i in own column j; None is the identity
    pin: Tensor  # [T] float32, as are blend and own
    blend: Tensor
    own: Tensor
    gate: Tensor | Gate | None = None  # w [N]; None is 1, with which blend acts as own


@dataclass(frozen=True, eq=False)
class Mask:
    """The keys that a row's pixels see, each of them one at least; the softmax goes over those."""

    row: int
    keys: Tensor | Split  # [N,T] bool


@dataclass(frozen=True, eq=False)
class Rule:
    """Which row of the batch each row reads its q, k, v from (None: its own), then masks, then edits of probabilities.

    Self-attention injection takes q and k of the source, MasaCtrl k and v. Masks and edits see the rows so chosen, and
    a row has at most one of each. Of a ResBlock, v is what its branch adds to x, and there is nothing else.
    """

    q_rows: tuple[int, ...] | None = None
    k_rows: tuple[int, ...] | None = None
    v_rows: tuple[int, ...] | None = None
    edits: tuple[Edit, ...] = ()
    masks: tuple[Mask, ...] = ()

    def __post_init__(self) -> None:
        for name in ("edits", "masks"):
            rows = [each.row for each in getattr(self, name)]
            if len(set(rows)) < len(rows):
                raise ValueError(f"{name} are for rows {rows}, expected each row once: merge them into one")

    def resolve(
        self,
        hidden: Tensor,
        seen: Mapping[str, Seen] | None = None,
        weights: Callable[[Gate, Tensor], Tensor] = Gate.weights,
    ) -> Rule:
        """Each Gate replaced by its weights, from the layer's input E_[V] [B,N,C], each Split by its keys.

        seen: what layers of this step saw so far.
        """
        edits = (
            replace(edit, gate=weights(edit.gate, hidden[edit.row])) if isinstance(edit.gate, Gate) else edit
            for edit in self.edits
        )
        masks = (
            replace(mask, keys=mask.keys.keys(seen or {})) if isinstance(mask.keys, Split) else mask
            for mask in self.masks
        )
        return replace(self, edits=tuple(edits), masks=tuple(mask for mask in masks if mask.keys is not None))

    def route(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v with each row read from where the rule says."""
        return _routed(q, self.q_rows), _routed(k, self.k_rows), _routed(v, self.v_rows)

    def reads(self, row: int) -> set[int]:
        """The other rows that a row is made of."""
        routes = {rows[row] for rows in (self.q_rows, self.k_rows, self.v_rows) if rows is not None}
        splits = [mask.keys for mask in self.masks if mask.row == row and isinstance(mask.keys, Split)]
        looked = {each for split in splits for each in split.rows}
        return (routes | looked | {edit.source for edit in self.edits if edit.row == row}) - {row}

    def moved(self, to: Mapping[int, int], size: int) -> Rule:
        """The Rule in a batch of `size` rows, in which row r of this one stands at `to[r]`; rows left out have no rule.

        Raises KeyError where a row in `to` reads one that is not.
        """

        def routes(rows: tuple[int, ...] | None) -> tuple[int, ...] | None:
            if rows is None:
                return None
            placed = {to[row]: to[rows[row]] for row in to}
            return tuple(placed.get(row, row) for row in range(size))

        def keys(mask: Mask) -> Tensor | Split:
            if not isinstance(mask.keys, Split):
                return mask.keys
            return replace(mask.keys, rows=tuple(to[row] for row in mask.keys.rows))

        edits = (replace(edit, row=to[edit.row], source=to[edit.source]) for edit in self.edits if edit.row in to)
        masks = (replace(mask, row=to[mask.row], keys=keys(mask)) for mask in self.masks if mask.row in to)
        return Rule(routes(self.q_rows), routes(self.k_rows), routes(self.v_rows), tuple(edits), tuple(masks))


def _routed(x: Tensor, rows: tuple[int, ...] | None) -> Tensor:
    """x [B,H,·,D] with its rows in that order, copied as the layers lay them out: [B,·,H,D] before heads are split."""
    if rows is None or rows == tuple(range(len(x))):
        return x
    return in_order(x.transpose(1, 2), rows).transpose(1, 2)


def in_order(x: Tensor, rows: tuple[int, ...]) -> Tensor:
    """x [B,...] with its rows in that order: one kernel, which copies runs of rows."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1] + 1]
    return torch.cat([x[rows[a] : rows[a] + b - a] for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)])


def branch(x: Tensor, rule: Rule | None) -> Tensor:
    """x [B,C,h,w], what a ResBlock adds, with each row read from where the rule says. Raises MineditError."""
    if rule is None:
        return x
    _check_rows(rule, len(x))
    if rule.v_rows is None or rule.q_rows or rule.k_rows or rule.edits or rule.masks:
        raise MineditError("the rule of a ResBlock has more than v_rows, or none; expected v_rows alone")
    return in_order(x, rule.v_rows)


def _check_rows(rule: Rule, batch: int) -> None:
    for name in ("q_rows", "k_rows", "v_rows"):
        rows = getattr(rule, name)
        if rows is not None and not (len(rows) == batch and all(0 <= row < batch for row in rows)):
            raise MineditError(f"{name} is {rows}, expected {batch} rows of a batch of {batch}, 0 to {batch - 1}")


def check(q: Tensor, k: Tensor, v: Tensor, rule: Rule | None) -> None:
    """Raises MineditError unless the shapes and rows fit together. Looks at no number: nothing waits for the device."""
    expected = (*q.shape[:2], k.shape[-2], q.shape[-1])
    if q.ndim != 4 or k.shape != expected or v.shape[:-1] != expected[:-1]:  # v may be as wide as it likes
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in zip("qkv", (q, k, v), strict=True))
        raise MineditError(f"attention of {found}: expected q [B,H,N,D], k and v [B,H,T,D]")
    if rule is None:
        return
    batch, t = len(q), k.shape[2]
    _check_rows(rule, batch)
    for mask in rule.masks:
        shape = (q.shape[2], t)
        if not 0 <= mask.row < batch:
            raise MineditError(f"mask of row {mask.row}: expected a row of the batch, 0 to {batch - 1}")
        if not isinstance(mask.keys, Tensor) or mask.keys.shape != shape or mask.keys.dtype != torch.bool:
            found = f"{list(mask.keys.shape)} {mask.keys.dtype}" if isinstance(mask.keys, Tensor) else "no tensor"
            raise MineditError(f"mask of row {mask.row}: keys is {found}, expected a tensor {list(shape)} of bool")
    for edit in rule.edits:
        for name in ("row", "source"):
            if not 0 <= getattr(edit, name) < batch:
                fault = f"{name} is {getattr(edit, name)}, expected a row of the batch, 0 to {batch - 1}"
                raise MineditError(f"edit of row {edit.row}: {fault}")
        for name, shape in (("pin", (t,)), ("blend", (t,)), ("own", (t,)), ("columns", (t, t)), ("gate", q.shape[2:3])):
            x = getattr(edit, name)
            if x is None and name in ("columns", "gate"):
                continue
            if not isinstance(x, Tensor) or x.shape != shape:
                found = list(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
                raise MineditError(f"edit of row {edit.row}: {name} is {found}, expected a tensor {list(shape)}")


Attend = Callable[..., Tensor | tuple[Tensor, Tensor]]  # the signature of eager.eager


@dataclass(frozen=True, eq=False)
class Attn:
    """What every attention layer of a UNet does at this step."""

    attend: Attend | None = None  # None: sdpa
    rules: Mapping[str, Rule] = field(default_factory=dict)  # by site name
    watch: Mapping[str, bool] = field(default_factory=dict)  # sites that fill `seen`, and whether with columns
    seen: dict[str, Seen] = field(default_factory=dict)  # filled by the watched layers
    tap: Tap | None = None  # what looks at this step, or changes it; see record/
    rows: Mapping[int, int] | None = None  # for it: where each row of the run stands in the batch; None: as in the run
