"""Attention as data: what a layer does at one step is a `Rule`; here is what a Rule means, twice.

In: q [B,H,N,D], k and v [B,H,T,D], maybe a Rule. Out: [B,H,N,D], and on request the probabilities' columns [B,N,T].
`eager` is the specification, written to be read; `sdpa` is its algebra on torch's fused kernels. Prompt-to-Prompt
(Hertz et al., arXiv:2208.01626), AdapEdit (arXiv:2312.08019, Eqs. 8 and 9) and MasaCtrl (arXiv:2304.08465) are Rules.

Letters: B rows of the batch, H heads, N pixels, T tokens (pixels too, in self-attention), D width of a head, C = H·D.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import MineditError

AT_ONCE = 2**22  # probabilities that `_columns` holds at once, unless one head has more


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
        with _float32(hidden):
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


def eager(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The specification: materialises the probabilities [B,H,N,T] and applies the rule to the letter, in float32."""
    rule = rule or Rule()
    q, k, v = rule.route(q, k, v)
    with _float32(q):
        scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5  # [B, H, N, T]
        probabilities = scores.softmax(dim=-1)
        rows = list(probabilities)  # of [H, N, T]
        for edit in rule.edits:
            own, source = probabilities[edit.row], probabilities[edit.source]
            if edit.columns is not None:
                source = source @ edit.columns.to(source)
            pin, blend, keep = (x.to(own) for x in (edit.pin, edit.blend, edit.own))
            w = 1.0 if edit.gate is None else edit.gate.to(own)[:, None]  # [N, 1]
            rows[edit.row] = pin * source + blend * ((1 - w) * source + w * own) + keep * own
        out = (torch.stack(rows) @ v.float()).to(v.dtype)  # [B, H, N, D]
    return (out, probabilities.mean(dim=1)) if columns else out


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule | None = None, columns: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`eager` without the probabilities: they enter the output linearly, so weights on columns are weights on values,

        out = P_s R diag(pin) V + (1 - w) P_s R diag(blend) V + w P_t diag(blend) V + P_t diag(own) V.

    One call for all rows, two more for each edited row. [B,N,T] exists only when `columns` asks for it.
    """
    rule = rule or Rule()
    q, k, v = rule.route(q, k, v)
    values = list(v)  # of [H, T, D]
    for edit in rule.edits:
        (values[edit.row],) = _scaled(v[edit.row], edit.own if edit.gate is not None else edit.own + edit.blend)
    out = F.scaled_dot_product_attention(q, k, torch.stack(values) if rule.edits else v)  # [B, H, N, D]
    if rule.edits:
        rows = list(out)  # of [H, N, D]
        for edit in rule.edits:
            rows[edit.row] = (rows[edit.row].float() + _borrowed(q, k, v, edit)).to(out.dtype)
        out = torch.stack(rows)
    return (out, _columns(q, k)) if columns else out


def _borrowed(q: Tensor, k: Tensor, v: Tensor, edit: Edit) -> Tensor:
    """All of an edited row but P_t diag(own) V: [H,N,D] float32."""
    s, t = edit.source, edit.row
    if edit.gate is None:
        return _call(q[s], k[s], _scaled(v[t], edit.pin, columns=edit.columns))[0]
    pinned, blended = _call(q[s], k[s], _scaled(v[t], edit.pin, edit.blend, columns=edit.columns))
    (own,) = _call(q[t], k[t], _scaled(v[t], edit.blend))
    w = edit.gate.to(own)[:, None]  # [N, 1]
    return pinned + torch.lerp(blended, own, w)


def _call(q: Tensor, k: Tensor, values: Tensor) -> Tensor:
    """Attention of one row for several sets of values [S,H,T,D] -> [S,H,N,D] float32.

    They are rows of a batch, not wider heads: the fused kernels want q and v of one width.
    """
    n = len(values)
    return F.scaled_dot_product_attention(q.expand(n, *q.shape), k.expand(n, *k.shape), values).float()


def _scaled(v: Tensor, *weights: Tensor, columns: Tensor | None = None) -> Tensor:
    """R diag(w) V for each w of `weights`: [S,H,T,D], computed in float32, in v's dtype."""
    (heads, t, d), sets = v.shape, len(weights)
    wide = v.transpose(0, 1).reshape(t, heads * d).float()  # as the heads lay before they were split: no copy
    scaled = torch.cat([w.to(v.device)[:, None] * wide for w in weights], dim=1)  # [T, S·H·D]
    if columns is not None:
        with _float32(v):
            scaled = columns.to(scaled) @ scaled
    return scaled.to(v.dtype).view(t, sets, heads, d).permute(1, 2, 0, 3)


def _columns(q: Tensor, k: Tensor) -> Tensor:
    """Probabilities, mean over heads: [B,N,T] float32, of a few heads at a time."""
    (b, heads, n, width), t = q.shape, k.shape[2]
    few = max(1, AT_ONCE // (b * n * t))
    total = 0.0
    with _float32(q):
        for some_q, some_k in zip(q.split(few, dim=1), k.split(few, dim=1), strict=True):
            scores = some_q.float() @ some_k.float().transpose(-1, -2) / width**0.5
            total = total + scores.softmax(dim=-1).sum(dim=1)
    return total / heads


def _float32(x: Tensor) -> torch.autocast:
    """Matrix products in float32 even inside a caller's autocast."""
    return torch.autocast(x.device.type, enabled=False)


Attend = Callable[..., Tensor | tuple[Tensor, Tensor]]  # the signature of `eager`


@dataclass(frozen=True, eq=False)
class Attn:
    """What every attention layer of a UNet does at this step."""

    attend: Attend = sdpa
    rules: Mapping[str, Rule] = field(default_factory=dict)  # by site name
    watch: Mapping[str, bool] = field(default_factory=dict)  # sites that fill `seen`, and whether with columns
    seen: dict[str, Seen] = field(default_factory=dict)  # filled by the watched layers


def resolve(name: str, device: torch.device | str = "cpu") -> str:
    """What "auto" stands for on `device`: "triton" on a GPU where it runs, else "sdpa". Other names: themselves."""
    if name != "auto":
        return name
    if torch.device(device).type != "cuda":
        return "sdpa"
    try:
        _triton(torch.device(device))
    except MineditError:
        return "sdpa"
    return "triton"


def backend(name: str, device: torch.device | str = "cpu") -> Attend:
    """The attention function for `device` called "eager", "sdpa", "triton", "auto" or, a user's own, "module:function".

    Raises MineditError for any other name, for a function that cannot be imported, and for triton where it cannot run.
    """
    name = resolve(name, device)
    known = {"eager": eager, "sdpa": sdpa}
    if name in known:
        return known[name]
    if name == "triton":
        return _triton(torch.device(device))
    module, colon, function = name.partition(":")
    if not colon:
        choices = ", ".join((*known, "triton"))
        raise MineditError(f"attention {name!r} is unknown; expected {choices}, auto or module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever a module that is being written raises
        fault = f"cannot import {module!r} ({type(error).__name__}: {error})"
        raise MineditError(f"attention {name!r}: {fault}; expected module:function, its folder on the path") from error
    if not callable(found):
        raise MineditError(f"attention {name!r}: {module!r} has no function {function!r}; expected module:function")
    return found


def _triton(device: torch.device) -> Attend:
    """kernels.py is imported only here: without the package triton it cannot be. It is tried, too."""
    try:
        kernels = importlib.import_module("minedit.kernels")
    except Exception as error:
        raise MineditError(f"attention 'triton': {error}; install the package triton, or use sdpa") from error
    if device.type != "cuda" and not kernels.INTERPRETED:
        hint = "use sdpa, or set TRITON_INTERPRET=1 to try the kernel slowly"
        raise MineditError(f"attention 'triton' needs a CUDA GPU, the device is {str(device)!r}; {hint}")
    x = torch.ones(1, 1, 16, 16, device=device)
    try:
        kernels.attend(x, x, x)
    except Exception as error:  # no C compiler, a GPU that this Triton does not know ...
        raise MineditError(f"attention 'triton' does not run here: {error}; use sdpa") from error
    return kernels.attend
