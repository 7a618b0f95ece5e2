"""The fused kernel: what one program of `triton.attend`'s launches does.

`attention` has a few tiles of pixels of one row and head, and all T keys and values on chip: T is 77, one tile. A row
with an edit computes its source's probabilities too, mixes the two in float32 and multiplies with its own V, once; the
other rows skip that branch. The edit's tensors are read where they lie. `columns` is a kernel for the columns alone.

Products have operands of v's dtype and are summed in float32, as in torch's flash kernel: probabilities are rounded to
it, at most 1 and before they are divided by their sum; those of an edited row after mixing.
"""

import triton
import triton.language as tl

# Numbers that change from call to call: a kernel compiled for a special value of one would be compiled again.
VARY = ("q_from", "k_from", "v_from", "rows", "edit", "source", "n", "q_row", "q_head", "q_pixel",
        "k_row", "k_head", "k_token", "v_row", "v_head", "v_token")  # fmt: skip
ANYWHERE = ("pin", "blend", "own", "mix", "gate")  # vectors of 77 in a table: not at multiples of 16 bytes


@triton.jit
def _tile(x, at, stride, count, A: tl.constexpr, D: tl.constexpr, START: tl.constexpr, BD: tl.constexpr,
          WIDE: tl.constexpr):  # fmt: skip
    """Columns START ... START + BD of x's rows `at` [A], 0 beyond row `count` and column D: [A,BD].

    WIDE makes it float32: Triton's interpreter can neither multiply nor round bfloat16.
    """
    d = START + tl.arange(0, BD)
    mask = (at < count)[:, None] & (d < D)[None, :]
    tile = tl.load(x + at[:, None] * stride + d[None, :], mask=mask, other=0.0)
    return tile.to(tl.float32) if WIDE else tile


@triton.jit
def _quarters(x, stride, T: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BU: tl.constexpr, BD: tl.constexpr,
              BE: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """x [T,D] as four tiles, [BT,BD], [BT,BE], [BU,BD], [BU,BE]: neither 77 nor 40, 80, 160 is a power of two.

    Where BU or BE is 0, another tile stands in its place and is not used.
    """
    first = tl.arange(0, BT)
    a = _tile(x, first, stride, T, BT, D, 0, BD, WIDE)
    b, c, e = a, a, a
    if BE:
        b = _tile(x, first, stride, T, BT, D, BD, BE, WIDE)
    if BU:
        second = BT + tl.arange(0, BU)
        c = _tile(x, second, stride, T, BU, D, 0, BD, WIDE)
        if BE:
            e = _tile(x, second, stride, T, BU, D, BD, BE, WIDE)
    return a, b, c, e


@triton.jit
def _scores(q, q_rest, k, k_rest, tokens, T: tl.constexpr, BE: tl.constexpr):
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # not tf32
    if BE:
        scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
    return tl.where((tokens < T)[None, :], scores, float("-inf"))


@triton.jit
def _powers(q, q_pixel, pixels, n, k, T: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
            BU: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """Softmax of q kᵀ / √D of one row and head: numerators of at most 1 [BN,BT] and [BN,BU], and their sums [BN]."""
    q_tile = _tile(q, pixels, q_pixel, n, BN, D, 0, BD, WIDE)
    q_rest = q_tile
    if BE:
        q_rest = _tile(q, pixels, q_pixel, n, BN, D, BD, BE, WIDE)
    scale: tl.constexpr = 1.4426950408889634 * D**-0.5  # log2 e
    x = _scores(q_tile, q_rest, k[0], k[1], tl.arange(0, BT), T, BE)
    largest = tl.max(x, axis=1)
    if BU:
        y = _scores(q_tile, q_rest, k[2], k[3], BT + tl.arange(0, BU), T, BE)
        largest = tl.maximum(largest, tl.max(y, axis=1))
        x = tl.exp2((x - largest[:, None]) * scale)
        y = tl.exp2((y - largest[:, None]) * scale)
        sums = tl.sum(x, axis=1) + tl.sum(y, axis=1)
    else:
        x = tl.exp2((x - largest[:, None]) * scale)
        y = x
        sums = tl.sum(x, axis=1)
    return x, y, sums


@triton.jit
def _product(x, y, a, c, BU: tl.constexpr):
    """(x|y) times a over c: [BN,·] float32, for x [BN,BT] and y [BN,BU] in their dtype."""
    product = tl.dot(x, a, input_precision="ieee")
    if BU:
        product = tl.dot(y, c, product, input_precision="ieee")
    return product


@triton.jit
def _write(out, pixels, n, x, y, v, factor, HEADS: tl.constexpr, D: tl.constexpr, BU: tl.constexpr, BD: tl.constexpr,
           BE: tl.constexpr):  # fmt: skip
    """out = factor · (x|y) v for float32 x and y of at most 1, rounded to v's dtype, and factor [BN]."""
    x, y = x.to(v[0].dtype), y.to(v[0].dtype)
    lines, inside, d = out + pixels[:, None] * (HEADS * D), (pixels < n)[:, None], tl.arange(0, BD)
    product = _product(x, y, v[0], v[2], BU) * factor[:, None]
    tl.store(lines + d[None, :], product.to(out.dtype.element_ty), mask=inside & (d < D)[None, :])
    if BE:
        rest = BD + tl.arange(0, BE)
        product = _product(x, y, v[1], v[3], BU) * factor[:, None]
        tl.store(lines + rest[None, :], product.to(out.dtype.element_ty), mask=inside & (rest < D)[None, :])


@triton.jit
def _line(x, tokens, T: tl.constexpr):
    return tl.load(x + tokens, mask=tokens < T, other=0.0)[None, :]


@triton.jit
def _block(mix, i, j, T: tl.constexpr):
    """R[i,j]."""
    inside = (i < T)[:, None] & (j < T)[None, :]
    return tl.load(mix + i[:, None] * T + j[None, :], mask=inside, other=0.0)


@triton.jit
def _largest(x):
    return tl.max(tl.max(tl.abs(x), axis=1), axis=0)


@triton.jit
def _mixed(s, p, w, pin, blend, own, tokens, T: tl.constexpr):
    """The probabilities of an edited row, from P_s R, P_t and w [BN,1]."""
    blended = _line(blend, tokens, T)
    return (_line(pin, tokens, T) + blended * (1 - w)) * s + (blended * w + _line(own, tokens, T)) * p


@triton.jit
def _routed(rows, b):
    """The row that row b reads."""
    found = b.to(tl.int64)
    if rows is not None:
        found = (rows >> (4 * found)) & 15
    return found


@triton.jit
def _plain(q, q_pixel, start, n, k, v, out, HEADS: tl.constexpr, D: tl.constexpr, T: tl.constexpr, BN: tl.constexpr,
           BT: tl.constexpr, BU: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, TILES: tl.constexpr,
           WIDE: tl.constexpr):  # fmt: skip
    """Attention of TILES times BN pixels."""
    for tile in range(TILES):
        pixels = start + tile * BN + tl.arange(0, BN)
        x, y, sums = _powers(q, q_pixel, pixels, n, k, T, D, BN, BT, BU, BD, BE, WIDE)
        _write(out, pixels, n, x, y, v, 1 / sums, HEADS, D, BU, BD, BE)


@triton.jit(do_not_specialize=VARY, do_not_specialize_on_alignment=ANYWHERE)
def attention(q, k, v, out, pin, blend, own, mix, gate, q_from, k_from, v_from, rows, edit, source, n,
              q_row, q_head, q_pixel, k_row, k_head, k_token, v_row, v_head, v_token,
              HEADS: tl.constexpr, D: tl.constexpr, T: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
              BN: tl.constexpr, BT: tl.constexpr, BU: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
              TILES: tl.constexpr):  # fmt: skip
    """pin, blend, own [T], mix [T,T] (R) and gate [n]: of row `edit`, float32; None where there is none.

    q_from, k_from, v_from: the row that each row reads, 4 bits each; None for its own. Strides are in units of UNIT
    numbers, which tells the compiler how long the vectors are that it may load. out [rows,n,HEADS,D].
    """
    b = (edit + tl.program_id(2)) % rows  # the edited row goes first: it takes the longest
    h, start = tl.program_id(1).to(tl.int64), tl.program_id(0) * (TILES * BN)
    q, k, v = q + h * q_head * UNIT, k + h * k_head * UNIT, v + h * v_head * UNIT
    out += b.to(tl.int64) * n * (HEADS * D) + h * D
    q_pixel, k_token, v_token = q_pixel * UNIT, k_token * UNIT, v_token * UNIT
    q_own = q + _routed(q_from, b) * q_row * UNIT
    k_own = _quarters(k + _routed(k_from, b) * k_row * UNIT, k_token, T, D, BT, BU, BD, BE, WIDE)
    v_own = _quarters(v + _routed(v_from, b) * v_row * UNIT, v_token, T, D, BT, BU, BD, BE, WIDE)
    if pin is None:
        _plain(q_own, q_pixel, start, n, k_own, v_own, out, HEADS, D, T, BN, BT, BU, BD, BE, TILES, WIDE)
    elif b != edit:
        _plain(q_own, q_pixel, start, n, k_own, v_own, out, HEADS, D, T, BN, BT, BU, BD, BE, TILES, WIDE)
    else:
        q_source = q + _routed(q_from, source) * q_row * UNIT
        k_source = _quarters(k + _routed(k_from, source) * k_row * UNIT, k_token, T, D, BT, BU, BD, BE, WIDE)
        narrow: tl.constexpr = v_own[0].dtype != tl.float32
        i = tl.arange(0, BT)
        j = BT + tl.arange(0, BU if BU else 16)
        if mix is not None:
            r, largest = _block(mix, i, i, T), 1.0
            if narrow:  # float16 has the digits for R, its largest number gives it the range
                largest = tl.maximum(_largest(r), 1.0)
            r_across, r_down, r_rest = r, r, r
            if BU:
                r_across, r_down, r_rest = _block(mix, i, j, T), _block(mix, j, i, T), _block(mix, j, j, T)
                if narrow:
                    rest = tl.maximum(_largest(r_rest), tl.maximum(_largest(r_across), _largest(r_down)))
                    largest = tl.maximum(largest, rest)
                    r_across, r_down = (r_across / largest).to(tl.float16), (r_down / largest).to(tl.float16)
                    r_rest = (r_rest / largest).to(tl.float16)
            if narrow:
                r = (r / largest).to(tl.float16)
        for tile in range(TILES):
            pixels = start + tile * BN + tl.arange(0, BN)
            s, u, sums = _powers(q_source, q_pixel, pixels, n, k_source, T, D, BN, BT, BU, BD, BE, WIDE)
            part = (1 / sums)[:, None]
            if mix is not None:
                if narrow:
                    s, u, part = s.to(tl.float16), u.to(tl.float16), part * largest
                s, u = _product(s, u, r, r_down, BU), _product(s, u, r_across, r_rest, BU) if BU else s
            x, y, sums = _powers(q_own, q_pixel, pixels, n, k_own, T, D, BN, BT, BU, BD, BE, WIDE)
            w = 1.0
            if gate is not None:
                w = tl.load(gate + pixels, mask=pixels < n, other=0.0)[:, None]
            sums = (1 / sums)[:, None]
            x = _mixed(s * part, x * sums, w, pin, blend, own, i, T)
            size = tl.max(tl.abs(x), axis=1)
            if BU:
                y = _mixed(u * part, y * sums, w, pin, blend, own, j, T)
                size = tl.maximum(size, tl.max(tl.abs(y), axis=1))
            size = tl.maximum(size, 1e-30)  # weights may be beyond float16
            share = (1 / size)[:, None]
            _write(out, pixels, n, x * share, y * share, v_own, size, HEADS, D, BU, BD, BE)


@triton.jit(do_not_specialize=VARY)
def columns(q, k, seen, q_from, k_from, n, q_row, q_head, q_pixel, k_row, k_head, k_token,
            HEADS: tl.constexpr, D: tl.constexpr, T: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
            BN: tl.constexpr, BT: tl.constexpr, BU: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr):  # fmt: skip
    """seen [B,n,T] float32: probabilities, mean over heads, added in their order rather than by racing programs."""
    b, pixels = tl.program_id(1), tl.program_id(0) * BN + tl.arange(0, BN)
    q += _routed(q_from, b) * q_row * UNIT
    k += _routed(k_from, b) * k_row * UNIT
    first, second = tl.zeros([BN, BT], tl.float32), tl.zeros([BN, BU if BU else 16], tl.float32)
    for h in range(HEADS):
        k_tiles = _quarters(k + h * k_head * UNIT, k_token * UNIT, T, D, BT, BU, BD, BE, WIDE)
        x, y, sums = _powers(q + h * q_head * UNIT, q_pixel * UNIT, pixels, n, k_tiles, T, D, BN, BT, BU, BD, BE, WIDE)
        first += x / sums[:, None]
        if BU:
            second += y / sums[:, None]
    lines, tokens = seen + (b.to(tl.int64) * n + pixels[:, None]) * T, tl.arange(0, BT)
    tl.store(lines + tokens[None, :], first / HEADS, mask=(pixels < n)[:, None] & (tokens < T)[None, :])
    if BU:
        tokens = BT + tl.arange(0, BU)
        tl.store(lines + tokens[None, :], second / HEADS, mask=(pixels < n)[:, None] & (tokens < T)[None, :])
