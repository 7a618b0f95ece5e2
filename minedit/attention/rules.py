"""What an attention layer is, and what it does at one step, as data. In: what a method decided. Out: `Rule`, `Attn`.

eager.py says what a Rule means. Prompt-to-Prompt (Hertz et al., arXiv:2208.01626), AdapEdit (arXiv:2312.08019, Eqs. 8
and 9) and MasaCtrl (arXiv:2304.08465) are Rules.

Letters, in all of this wing: B rows of the batch, H heads, N pixels, T tokens (pixels too, in self-attention), D width
of a head, C = H·D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

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
class Gate:
    """AdapEdit's spatial weight λ_S·S_p (Eq. 9), which only the layer can compute: it alone knows E_[V]."""

    key: Tensor  # [C] E_k at this site, a unit vector
    scale: float  # λ_S
    slope: float  # λ_S[V]
    centre: bool  # take the mean over pixels from E_[V] first: hidden states share one large common direction

    def weights(self, hidden: Tensor) -> Tensor:
        """E_[V] [N,C] of the edited row -> [N] float32 in [0, scale]."""
        hidden = hidden.float()
        if self.centre:
            hidden = hidden - hidden.mean(dim=0)
        lengths = torch.linalg.vector_norm(hidden, dim=-1).clamp(min=1e-8)  # [N]
        with float32(hidden):
            cosine = hidden @ self.key.to(hidden) / lengths
        return self.scale * (self.slope * cosine).clamp(0, 1)


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
class Rule:
    """Which row of the batch each row reads its q, k, v from (None: its own), then edits of probabilities.

    Self-attention injection takes q and k of the source, MasaCtrl k and v. Edits see the rows so chosen, and there is
    at most one for a row.
    """

    q_rows: tuple[int, ...] | None = None
    k_rows: tuple[int, ...] | None = None
    v_rows: tuple[int, ...] | None = None
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        rows = [edit.row for edit in self.edits]
        if len(set(rows)) < len(rows):
            raise ValueError(f"edits are for rows {rows}, expected each row once: merge them into one Edit")

    def resolve(self, hidden: Tensor) -> Rule:
        """The Rule with each Gate replaced by its weights, from the layer's input E_[V] [B,N,C]."""
        edits = (
            replace(edit, gate=edit.gate.weights(hidden[edit.row])) if isinstance(edit.gate, Gate) else edit
            for edit in self.edits
        )
        return replace(self, edits=tuple(edits))

    def route(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v with each row read from where the rule says."""
        return _routed(q, self.q_rows), _routed(k, self.k_rows), _routed(v, self.v_rows)

    def reads(self, row: int) -> set[int]:
        """The other rows that a row is made of."""
        routes = {rows[row] for rows in (self.q_rows, self.k_rows, self.v_rows) if rows is not None}
        return (routes | {edit.source for edit in self.edits if edit.row == row}) - {row}

    def moved(self, to: Mapping[int, int], size: int) -> Rule:
        """The Rule in a batch of `size` rows, in which row r of this one stands at `to[r]`; rows left out have no rule.

        Raises KeyError where a row in `to` reads one that is not.
        """

        def routes(rows: tuple[int, ...] | None) -> tuple[int, ...] | None:
            if rows is None:
                return None
            placed = {to[row]: to[rows[row]] for row in to}
            return tuple(placed.get(row, row) for row in range(size))

        edits = (replace(edit, row=to[edit.row], source=to[edit.source]) for edit in self.edits if edit.row in to)
        return Rule(routes(self.q_rows), routes(self.k_rows), routes(self.v_rows), tuple(edits))


def _routed(x: Tensor, rows: tuple[int, ...] | None) -> Tensor:
    """x [B,H,·,D] with its rows in that order: one kernel, which copies runs of rows as the layers lay them out."""
    if rows is None or rows == tuple(range(len(x))):
        return x
    starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1] + 1]
    wide = x.transpose(1, 2)  # [B, ·, H, D], as heads lie before they are split
    runs = [wide[rows[a] : rows[a] + b - a] for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
    return torch.cat(runs).transpose(1, 2)


def check(q: Tensor, k: Tensor, v: Tensor, rule: Rule | None) -> None:
    """Raises MineditError unless the shapes and rows fit together. Looks at no number: nothing waits for the device."""
    expected = (*q.shape[:2], k.shape[-2], q.shape[-1])
    if q.ndim != 4 or k.shape != expected or v.shape[:-1] != expected[:-1]:  # v may be as wide as it likes
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in zip("qkv", (q, k, v), strict=True))
        raise MineditError(f"attention of {found}: expected q [B,H,N,D], k and v [B,H,T,D]")
    if rule is None:
        return
    batch, t = len(q), k.shape[2]
    for name in ("q_rows", "k_rows", "v_rows"):
        rows = getattr(rule, name)
        if rows is not None and not (len(rows) == batch and all(0 <= row < batch for row in rows)):
            raise MineditError(f"{name} is {rows}, expected {batch} rows of a batch of {batch}, 0 to {batch - 1}")
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


@dataclass(frozen=True, eq=False)
class Seen:
    """What a watched layer saw at this step."""

    hidden: Tensor  # [B,N,C] the layer-normed input of the layer: E_[V]
    columns: Tensor | None  # [B,N,T] float32, probabilities before any edit, mean over heads; None: not asked for


Attend = Callable[..., Tensor | tuple[Tensor, Tensor]]  # the signature of eager.eager


@dataclass(frozen=True, eq=False)
class Attn:
    """What every attention layer of a UNet does at this step."""

    attend: Attend | None = None  # None: sdpa
    rules: Mapping[str, Rule] = field(default_factory=dict)  # by site name
    watch: Mapping[str, bool] = field(default_factory=dict)  # sites that fill `seen`, and whether with columns
    seen: dict[str, Seen] = field(default_factory=dict)  # filled by the watched layers


def float32(x: Tensor) -> torch.autocast:
    """Matrix products in float32 even inside a caller's autocast."""
    return torch.autocast(x.device.type, enabled=False)
