"""Probabilities of an attention layer, which a fused kernel never had, from its q and k: of one row, of some heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from minedit.attention.eager import edited
from minedit.attention.inside import float32
from minedit.attention.rules import Rule

Own = Callable[[int], Tensor]  # a row of the batch → its probabilities [H, N, T]


class Maps:
    """Of one call of a layer: q [B,H,N,D], k [B,H,T,D], as projected, and its Rule, resolved."""

    def __init__(self, q: Tensor, k: Tensor, rule: Rule | None, heads: Sequence[int] | None = None) -> None:
        self.q, self.k, self.rule = q, k, rule or Rule()
        self.heads = slice(None) if heads is None else list(heads)
        self.held: dict[int, Tensor] = {}

    def own(self, row: int) -> Tensor:
        """Softmax of a row's own queries and keys, whatever the rule says: [H, N, T] float32."""
        if row not in self.held:
            self.held[row] = self._softmax(row, row, None)
        return self.held[row]

    def used(self, row: int, own: Own | None = None) -> Tensor:
        """What a row's output is made of, after routes, masks and edits: [H, N, T]. own: in place of `self.own`."""
        edit = next((edit for edit in self.rule.edits if edit.row == row), None)
        mine = self._routed(row, own)
        return mine if edit is None else edited(mine, self._routed(edit.source, own), edit)

    def read(self, row: int) -> set[int]:
        """The rows whose own probabilities `used` is made of."""
        sources = {edit.source for edit in self.rule.edits if edit.row == row}
        return {self._route(each)[0] for each in {row} | sources}

    def _route(self, row: int) -> tuple[int, int]:
        q, k = self.rule.q_rows, self.rule.k_rows
        return row if q is None else q[row], row if k is None else k[row]

    def _routed(self, row: int, own: Own | None) -> Tensor:
        q, k = self._route(row)
        mask = next((mask.keys for mask in self.rule.masks if mask.row == row), None)
        if q != k or (mask is not None and own is None):
            return self._softmax(q, k, mask)
        found = (own or self.own)(q)
        if mask is None:
            return found
        kept = found * mask.to(found)
        return kept / kept.sum(-1, keepdim=True)

    def _softmax(self, q: int, k: int, mask: Tensor | None) -> Tensor:
        queries, keys = (x[row][self.heads].float() for x, row in ((self.q, q), (self.k, k)))
        with float32(queries):
            scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask.to(scores.device), -torch.inf)
        return scores.softmax(dim=-1)


def moved(maps: Maps, v: Tensor, out: Tensor, own: Mapping[int, Tensor], used: Mapping[int, Tensor]) -> Tensor:
    """The output [B,H,N,D] where some rows have other probabilities, their own or those used.

    What is added to a row is (M' - M) V: nothing, bit for bit, where M' is M, whatever kernel made the output.
    """
    of = own.get
    rows = {row for row in range(len(out)) if row in used or maps.read(row) & set(own)}
    if not rows:
        return out
    v_rows = maps.rule.v_rows or range(len(v))
    found = out.clone()
    for row in rows:
        before = maps.used(row, maps.own)
        after = used[row] if row in used else maps.used(row, lambda at: maps.own(at) if of(at) is None else of(at))
        with float32(out):
            more = (after - before) @ v[v_rows[row]].float()
        found[row] = (out[row].float() + more).to(out.dtype)
    return found
