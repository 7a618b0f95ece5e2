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
        chosen = zip((q, k, v), (self.q_rows, self.k_rows, self.v_rows), strict=True)
        q, k, v = (x if rows is None else torch.stack([x[b] for b in rows]) for x, rows in chosen)
        return q, k, v


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
