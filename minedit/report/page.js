"use strict";
// What the page holds is in #data; nothing else is read. Every text of it becomes text, never markup.
const D = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const KEYS = "123456789abcdefghijk";
const SHARE = 0.65; // of a map's colour over a picture
const state = { step: D.steps.length - 1, word: 0, layers: 0, block: 0, playing: 0 };

// --- numbers ---------------------------------------------------------------------------------------------------------

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, e = (bits >> 10) & 31, f = bits & 1023;
  if (e === 31) return f ? NaN : sign * Infinity;
  return sign * (e ? 2 ** (e - 15) * (1 + f / 1024) : 2 ** -14 * (f / 1024));
}
const HALF = new Float32Array(65536).map((_, bits) => half(bits));

function unpack(packed) {
  const text = atob(packed.half), x = new Float32Array(text.length / 2);
  for (let i = 0; i < x.length; i++) x[i] = HALF[text.charCodeAt(2 * i) | (text.charCodeAt(2 * i + 1) << 8)];
  packed.half = null;
  return { x, shape: packed.shape };
}
function at(array, ...index) { // the part of an array that an index leaves
  let size = array.x.length, from = 0;
  index.forEach((i, axis) => { size /= array.shape[axis]; from += i * size; });
  return array.x.subarray(from, from + size);
}
const percent = x => Number.isFinite(x) ? `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)}\u00a0%` : "none";
const short = x => !Number.isFinite(x) ? "none" : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 10 ? x.toFixed(1) : x.toFixed(2);
const many = n => n >= 1e6 ? `${(n / 1e6).toFixed(2)} M` : n >= 1e3 ? `${(n / 1e3).toFixed(1)} k` : `${n}`;

function resized(map, w, h, W, H) { // bilinear, corners not aligned, as torch does
  const out = new Float32Array(W * H);
  for (let y = 0; y < H; y++) {
    const v = Math.max(0, (y + 0.5) * h / H - 0.5), y0 = Math.min(h - 1, Math.floor(v)), y1 = Math.min(h - 1, y0 + 1), b = v - y0;
    for (let x = 0; x < W; x++) {
      const u = Math.max(0, (x + 0.5) * w / W - 0.5), x0 = Math.min(w - 1, Math.floor(u)), x1 = Math.min(w - 1, x0 + 1), a = u - x0;
      const top = map[y0 * w + x0] * (1 - a) + map[y0 * w + x1] * a, low = map[y1 * w + x0] * (1 - a) + map[y1 * w + x1] * a;
      out[y * W + x] = top * (1 - b) + low * b;
    }
  }
  return out;
}
function heat(x) {
  const p = Math.min(Math.max(x, 0), 1) * (D.heat.length - 1), i = Math.min(Math.floor(p), D.heat.length - 2), f = p - i;
  return D.heat[i].map((c, k) => c + f * (D.heat[i + 1][k] - c));
}
function el(tag, more = {}, ...inside) {
  const svg = ["svg", "path", "polyline", "rect", "line", "text"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(more))
    name.startsWith("on") ? node.addEventListener(name.slice(2), value) : node.setAttribute(name, value);
  node.append(...inside);
  return node;
}
const small = (id, text) => { $(id).parentElement.querySelector("small").textContent = text; };

// --- what there is ---------------------------------------------------------------------------------------------------

const X0 = unpack(D.x0), NUMBERS = unpack(D.numbers), COUNTS = unpack(D.counts), APART = unpack(D.apart);
const MAPS = D.maps.map(m => ({ ...m, ...unpack(m), h: m.shape[3], w: m.shape[4] }));
const GATES = D.spatial.map(m => ({ ...m, ...unpack(m) }));
const [H, W] = X0.shape.slice(3);
const PLACES = { down: "way down", mid: "middle", up: "way up" };
const clip = name => name.replace(".transformer_blocks.0.attn2", "");
const LAYERS = layers();

function layers() { // ways to look: all layers, those of a size, each
  const sizes = new Map();
  MAPS.forEach((m, i) => { const key = `${m.size[0]} × ${m.size[1]}`; sizes.set(key, [...(sizes.get(key) || []), i]); });
  const found = [{ name: `all ${MAPS.length} layers, mean`, of: MAPS.map((_, i) => i) }];
  for (const [key, of] of sizes) if (sizes.size > 1) found.push({ name: `${key}, mean of ${of.length}`, of });
  MAPS.forEach((m, i) => found.push({ name: `${clip(m.site)}: ${PLACES[m.place]}, ${m.size[0]} × ${m.size[1]}`, of: [i] }));
  return found;
}
function wordMap(step, kind, word, layer) { // {x, w, h}, NaN where there is none
  const of = LAYERS[layer].of.map(i => MAPS[i]);
  const big = of.reduce((best, m) => m.w * m.h > best.w * best.h ? m : best, of[0]);
  const sum = new Float32Array(big.w * big.h);
  for (const m of of) {
    const one = at(m, step, kind, word), wide = m.w === big.w && m.h === big.h ? one : resized(one, m.w, m.h, big.w, big.h);
    for (let i = 0; i < sum.length; i++) sum[i] += wide[i] / of.length;
  }
  return { x: sum, w: big.w, h: big.h };
}
function where(map) { // of its largest value, in words
  let best = 0;
  map.x.forEach((v, i) => { if (v > map.x[best]) best = i; });
  const across = ["left", "centre", "right"][Math.min(2, Math.floor(3 * ((best % map.w) + 0.5) / map.w))];
  const down = ["top", "middle", "bottom"][Math.min(2, Math.floor(3 * (Math.floor(best / map.w) + 0.5) / map.h))];
  return down === "middle" && across === "centre" ? "in the centre" : `at the ${down} ${across}`;
}
const mean = x => x.reduce((a, b) => a + b, 0) / x.length;

// --- pictures of a step ----------------------------------------------------------------------------------------------

const held = new Map();
function picture(url) { // an Image that is there, or is on its way and draws anew when it is
  if (!held.has(url)) {
    const image = new Image();
    image.onload = () => draw();
    image.src = url;
    held.set(url, image);
  }
  return held.get(url);
}
function linear(step, row) { // the fitted preview, one pixel of it for each of the latents
  const z = at(X0, step, row), n = H * W, image = new ImageData(W, H);
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) {
      const m = D.rgb.matrix[c];
      image.data[4 * i + c] = 255 * (m[0] * z[i] + m[1] * z[n + i] + m[2] * z[2 * n + i] + m[3] * z[3 * n + i] + m[4]);
    }
    image.data[4 * i + 3] = Number.isNaN(z[i]) ? 0 : 255;
  }
  const canvas = el("canvas", { width: W, height: H });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
const decoded = (step, row) => (D.decoded[D.steps[step]] || [])[row];
function shown(step, row) { // what can be drawn of a step now
  const url = decoded(step, row);
  if (!url) return linear(step, row);
  const image = picture(url);
  return image.complete && image.naturalWidth ? image : null;
}
function paint(canvas, source) {
  const ratio = H / W;
  if (canvas.height !== Math.round(canvas.width * ratio)) canvas.height = Math.round(canvas.width * ratio);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingEnabled = !(source instanceof HTMLCanvasElement);
  if (source) pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  return pen;
}
function overlay(canvas, source, map, most, smooth) {
  const pen = paint(canvas, source), { width: w, height: h } = canvas;
  const image = pen.getImageData(0, 0, w, h), wide = smooth ? resized(map.x, map.w, map.h, w, h) : null;
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const i = y * w + x, cell = Math.floor(y * map.h / h) * map.w + Math.floor(x * map.w / w);
    const colour = heat((wide ? wide[i] : map.x[cell]) / most), k = source ? SHARE : 1;
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = k * colour[c] + (1 - k) * image.data[4 * i + c];
    image.data[4 * i + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
}

// --- panels ----------------------------------------------------------------------------------------------------------

function drawPair() {
  const share = Number($("slider").value);
  $("edited").style.clipPath = `inset(0 0 0 ${100 - share}%)`;
  $("edge").style.left = `calc(${100 - share}% - 1px)`;
  $("share").textContent = share === 0 ? "the source" : share === 100 ? "the edit" : `${share} % edit`;
}
function drawX0() {
  const names = ["source", "edit"], s = state.step;
  names.forEach((name, row) => {
    const canvas = $(`x0-${row}`), there = !Number.isNaN(at(X0, s, row)[0]);
    paint(canvas, there ? shown(s, row) : null);
    small(`x0-${row}`, !there ? "not drawn by this method" : decoded(s, row) ? "decoded by the VAE" : "linear preview");
    canvas.setAttribute("aria-label", `the ${name} as the model expects it at step ${D.steps[s] + 1}`);
  });
  const a = at(X0, s, 0), b = at(X0, s, 1), n = H * W, map = { x: new Float32Array(n), w: W, h: H };
  for (let i = 0; i < n; i++) for (let c = 0; c < 4; c++) map.x[i] += (a[c * n + i] - b[c * n + i]) ** 2;
  map.x = map.x.map(Math.sqrt);
  const most = Math.max(...map.x), there = !Number.isNaN(most);
  if (there) overlay($("x0-2"), null, map, Math.max(most, 1e-9), false); else paint($("x0-2"), null);
  const text = !there ? "one of them is missing" : most ? `in latents, ${short(most)} at most, ${where(map)}` : "nowhere yet";
  small("x0-2", text);
  $("x0-2").setAttribute("aria-label", `where source and edit differ: ${text}`);
}
function spans(word) {
  if (word.tau === null) return "gone from the target";
  if (word.kind === "inserted") return "new, there is nothing to follow";
  const count = Math.ceil(word.tau * D.all - 1e-9);
  if (!count) return GATES.length ? "weighed by S from the first step" : "never follows the source";
  if (count === 1) return "follows the source at the first step";
  return count >= D.all ? `follows the source at all ${D.all} steps` : `follows the source for the first ${count} of ${D.all} steps`;
}
function buildWords() {
  const any = D.words.some(w => w.tau);
  $("tau-why").textContent = !any ? `By ${D.method} no word follows the source’s attention: there are no bars.`
    : `A bar is τ: while it lasts, the word reads the source’s attention${GATES.length ? "; then S weighs it, pixel by pixel" : "; then its own"}. The upright mark is this step.`
      + (D.words.some(w => w.A !== null) ? " A is how alike a word’s pixels are to those of what changes, −1 … 1: the more alike, the sooner it is let go." : "");
  D.words.forEach((word, i) => {
    const key = KEYS[i] || "";
    const button = el("button", { type: "button", "aria-pressed": "false", onclick: () => choose({ word: i }) }, el("kbd", {}, key || "·"), ` ${word.text}`);
    const bar = el("span", { class: "tau", "aria-hidden": "true" }, el("i"), el("b"));
    bar.firstChild.style.width = `${100 * (word.tau || 0)}%`;
    const kind = word.kind === "replaced" ? `replaced, was ${word.was}` : word.kind;
    const tau = word.tau === null ? "" : `, τ ${word.tau.toFixed(2)}`, a = word.A === null ? "" : `, A ${word.A.toFixed(2)}`;
    $("words").append(el("li", {}, button, bar, el("small", {}, `${kind}${tau}${a}: ${spans(word)}`)));
  });
}
function drawWords() {
  const now = 100 * (D.steps[state.step] + 0.5) / D.all;
  [...$("words").children].forEach((li, i) => {
    li.querySelector("button").setAttribute("aria-pressed", String(i === state.word));
    li.querySelector("b").style.left = `calc(${now}% - 1px)`;
  });
}
function ground(kind) { // the picture that a map lies over
  const row = kind === 0 ? 0 : 1, under = $("under").value;
  if (under === "none") return null;
  if (under === "final") { const image = picture(row ? D.pictures.edited : D.pictures.source); return image.complete && image.naturalWidth ? image : null; }
  return Number.isNaN(at(X0, state.step, row)[0]) ? null : shown(state.step, row);
}
let current = [];
function drawMaps() {
  const word = D.words[state.word];
  $("word-now").textContent = word.text;
  current = D.kinds.map((_, kind) => wordMap(state.step, kind, state.word, state.layers));
  const peaks = current.map(map => Math.max(...map.x)), most = Math.max(...peaks.filter(Number.isFinite), 1e-9);
  const has = [word.in_source, word.in_target, word.in_target];
  current.forEach((map, kind) => {
    const canvas = $(`map-${kind}`), there = Number.isFinite(peaks[kind]);
    if (there) overlay(canvas, ground(kind), map, most, $("smooth").checked); else paint(canvas, ground(kind));
    const as = kind === 0 && word.was && word.was !== word.text ? `as “${word.was}”: ` : "";
    const text = !has[kind] ? "its prompt has no such word" : !there ? "this method has none" : `${as}${percent(peaks[kind])} at most, ${where(map)}; mean ${percent(mean(map.x))}`;
    small(`map-${kind}`, text);
    canvas.setAttribute("aria-label", `attention to ${word.text}, ${D.kinds[kind]}, step ${D.steps[state.step] + 1}, ${LAYERS[state.layers].name}: ${text}`);
  });
  $("most").textContent = percent(most);
}
function buildFilm(id) {
  const count = Math.min(D.steps.length, 10), last = D.steps.length - 1;
  const chosen = [...new Set([...Array(count).keys()].map(k => Math.round(k * last / Math.max(count - 1, 1))))];
  chosen.forEach(s => $(id).append(el("button", { type: "button", "data-step": s, onclick: () => choose({ step: s }) }, el("canvas", { width: 84, height: 84 }), el("span"))));
}
function drawFilm() {
  const kind = D.words[state.word].tau === null ? 0 : 2, buttons = [...$("film").children];
  const found = buttons.map(b => wordMap(Number(b.dataset.step), kind, state.word, state.layers));
  fill(buttons, found, Math.max(...found.map(m => Math.max(...m.x)).filter(Number.isFinite), 1e-9), percent);
}
function fill(buttons, found, most, unit) { // a film's buttons with their steps' maps; null: there is none
  buttons.forEach((b, k) => {
    const s = Number(b.dataset.step), peak = found[k] ? Math.max(...found[k].x) : NaN, text = Number.isFinite(peak) ? unit(peak) : "none";
    if (Number.isFinite(peak)) overlay(b.firstChild, null, found[k], most, $("smooth").checked); else paint(b.firstChild, null);
    b.lastChild.textContent = `step ${D.steps[s] + 1}: ${text}`;
    b.setAttribute("aria-label", `step ${D.steps[s] + 1}, ${text} at most; go there`);
    b.setAttribute("aria-current", String(s === state.step));
  });
}
function buildGates() {
  $("spatial").hidden = !GATES.length;
  [...new Set(GATES.map(g => g.site))].forEach(site => {
    const gate = GATES.find(g => g.site === site);
    $("site").append(el("option", { value: site }, `${clip(site)}: ${gate.size[0]} × ${gate.size[1]}`));
  });
  $("site").addEventListener("change", drawGates);
}
function drawGates() {
  if (!GATES.length) return;
  const gate = s => {
    const found = GATES.find(g => g.site === $("site").value && g.step === D.steps[s]);
    return found ? { ...found, w: found.shape[1], h: found.shape[0] } : null;
  };
  const now = gate(state.step), canvas = $("gate"), under = Number.isNaN(at(X0, state.step, 1)[0]) ? null : shown(state.step, 1);
  if (now) overlay(canvas, under, now, 1, $("smooth").checked); else paint(canvas, under);
  const text = now ? `mean ${now.mean.toFixed(2)}, deviation ${now.spread.toFixed(2)}, most ${Math.max(...now.x).toFixed(2)} ${where(now)}` : "nothing is weighed yet";
  small("gate", text);
  canvas.setAttribute("aria-label", `S at step ${D.steps[state.step] + 1}: ${text}`);
  const buttons = [...$("film-s").children];
  fill(buttons, buttons.map(b => gate(Number(b.dataset.step))), 1, peak => peak.toFixed(2));
}

// --- the UNet --------------------------------------------------------------------------------------------------------

function blockButton(i, more) {
  const b = D.blocks[i];
  const meter = el("span", { class: "meter", "aria-hidden": "true" }, el("i"));
  return el("button", { type: "button", "data-block": i, "aria-pressed": "false", onclick: () => choose({ block: i }), ...more },
    el("b", {}, b.name), `${b.shape.join(" × ")}${b.sites.length ? ", attends" : ""}`, meter, el("small"));
}
function buildDiagram() {
  const of = part => D.blocks.map((b, i) => [b.name, i]).filter(([name]) => name.startsWith(part)).map(([, i]) => i);
  const down = of("input_blocks"), up = of("output_blocks").reverse(), rest = [...of("middle_block")], out = of("out").filter(i => D.blocks[i].name === "out");
  $("diagram").append(el("span", { class: "way" }, "latents, time and text ↓"), el("span", { class: "skip", "aria-hidden": "true" }, "↑"), ...out.map(i => blockButton(i)));
  down.forEach((i, row) => {
    $("diagram").append(blockButton(i), el("span", { class: "skip", "aria-hidden": "true" }, up[row] === undefined ? "" : "→"));
    $("diagram").append(up[row] === undefined ? el("span") : blockButton(up[row]));
  });
  rest.forEach(i => $("diagram").append(blockButton(i, { class: "across" })));
}
function drawDiagram() {
  for (const button of $("diagram").querySelectorAll("button")) {
    const i = Number(button.dataset.block), apart = at(APART, state.step)[i], b = D.blocks[i];
    button.setAttribute("aria-pressed", String(i === state.block));
    button.querySelector("i").style.width = `${100 * Math.min(1, apart || 0)}%`;
    button.querySelector("small").textContent = `${Number.isFinite(apart) ? `differs ${percent(apart)} · ` : ""}${b.ms.toFixed(b.ms < 1 ? 2 : 1)} ms`;
  }
}
function lines(series, low, high, unit) { // a small chart over the steps: [[class, values], ...]
  const svg = el("svg", { viewBox: "0 0 320 112", role: "img" }), X = s => 40 + 274 * (D.steps[s] - D.first + 0.5) / (D.all - D.first);
  const Y = v => 90 - 78 * (v - low) / Math.max(high - low, 1e-9);
  svg.append(el("line", { class: "axis", x1: 40, x2: 314, y1: 90, y2: 90 }), el("line", { class: "now", x1: X(state.step), x2: X(state.step), y1: 8, y2: 92 }));
  svg.append(el("text", { x: 36, y: 94, "text-anchor": "end" }, unit(low)), el("text", { x: 36, y: 16, "text-anchor": "end" }, unit(high)));
  svg.append(el("text", { x: 40, y: 107 }, `step ${D.first + 1}`), el("text", { x: 314, y: 107, "text-anchor": "end" }, `${D.all}`));
  for (const [kind, values] of series)
    svg.append(el("polyline", { class: kind, points: [...values].map((v, s) => Number.isFinite(v) ? `${X(s)},${Y(v)}` : "").join(" ") }));
  return svg;
}
function drawBlock() {
  const i = state.block, b = D.blocks[i], s = state.step, steps = [...D.steps.keys()];
  const column = row => steps.map(k => at(NUMBERS, k, row, i)[0]), apart = steps.map(k => at(APART, k)[i]);
  const both = [column(0), column(1)], finite = both.flat().filter(Number.isFinite);
  const now = [0, 1].map(row => at(NUMBERS, s, row, i)), counts = [0, 1].map(row => at(COUNTS, s, row, i));
  const body = [el("h3", {}, b.name)];
  body.push(el("p", { class: "why" }, `Out: ${b.shape[0]} channels of ${b.shape[1]} × ${b.shape[2]}. ${many(b.params)} parameters, ${b.ms.toFixed(2)} ms for ${D.batch} rows (${D.device}).`));
  body.push(el("table", {}, el("tr", {}, el("th", {}, "layer"), el("th", {}, "what it does"), el("th", { class: "n" }, "parameters")),
    ...b.layers.map(l => el("tr", {}, el("td", {}, l.name.slice(b.name.length)), el("td", {}, l.what), el("td", { class: "n" }, many(l.params))))));
  if (b.sites.length) {
    const layer = LAYERS.findIndex(l => l.of.length === 1 && MAPS[l.of[0]].site === b.sites[0] && l.name.includes(":"));
    body.push(el("p", {}, el("button", { type: "button", onclick: () => { choose({ layers: layer }); $("h-maps").scrollIntoView(); } }, "show this block’s word maps")));
  }
  const high = Math.max(...apart.filter(Number.isFinite), 0.01);
  if (apart.some(Number.isFinite)) {
    const chart = lines([["e", apart]], 0, high, percent);
    chart.setAttribute("aria-label", `difference of edit and source over the steps, ${percent(apart[s])} now, ${percent(high)} at most`);
    body.push(el("h3", {}, `Edit differs from source by ${percent(apart[s])} of its size`), chart);
  }
  if (finite.length) {
    const chart = lines([["s", both[0]], ["e", both[1]]], 0, Math.max(...finite), short);
    chart.setAttribute("aria-label", `root mean square over the steps: source ${short(now[0][0])}, edit ${short(now[1][0])} now`);
    body.push(el("h3", {}, `Size (root mean square): source, dashed, ${short(now[0][0])}; edit ${short(now[1][0])}`), chart);
    body.push(el("h3", {}, "Values at this step, each around its own mean: source, dashed; edit, bars"), histogram(counts));
    const names = ["root mean square", "mean", "standard deviation", "largest, ±"];
    body.push(el("table", {}, el("tr", {}, el("th", {}), el("th", { class: "n" }, "source"), el("th", { class: "n" }, "edit")),
      ...names.map((name, k) => el("tr", {}, el("td", {}, name), ...now.map(n => el("td", { class: "n" }, short(n[k])))))));
  }
  $("block").replaceChildren(...body);
}
function histogram(counts) {
  const svg = el("svg", { viewBox: "0 0 320 112", role: "img" }), n = counts[0].length, wide = 300 / n;
  const most = Math.max(...[...counts[0], ...counts[1]].filter(Number.isFinite), 1e-9), Y = v => 92 - 82 * v / most;
  const spread = D.counts.spread;
  for (let k = 0; k < n; k++) if (Number.isFinite(counts[1][k])) svg.append(el("rect", { class: "bar", x: 10 + k * wide, y: Y(counts[1][k]), width: wide - 1, height: 92 - Y(counts[1][k]) }));
  if (Number.isFinite(counts[0][0])) {
    let path = "M10,92";
    for (let k = 0; k < n; k++) path += `L${10 + k * wide},${Y(counts[0][k])}L${10 + (k + 1) * wide},${Y(counts[0][k])}`;
    svg.append(el("path", { class: "s", d: `${path}L310,92` }));
  }
  svg.append(el("line", { class: "axis", x1: 10, x2: 310, y1: 92, y2: 92 }));
  [[10, "start", -spread], [160, "middle", 0], [310, "end", spread]].forEach(([x, anchor, k]) =>
    svg.append(el("text", { x, y: 107, "text-anchor": anchor }, k ? `mean ${k < 0 ? "−" : "+"} ${spread} σ` : "mean")));
  svg.setAttribute("aria-label", `histogram of ${n} bins, ${spread} standard deviations to each side; the fullest has ${percent(most)} of the values`);
  return svg;
}

// --- the whole -------------------------------------------------------------------------------------------------------

let waiting = false;
function draw() { // once for what happens together
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; [drawX0, drawWords, drawMaps, drawFilm, drawGates, drawDiagram, drawBlock].forEach(f => f()); });
}
function chosen() { return { step: state.step, word: state.word, layers: state.layers, block: state.block }; }
function choose(change) {
  Object.assign(state, change);
  state.step = Math.min(Math.max(state.step, 0), D.steps.length - 1);
  state.layers = (state.layers + LAYERS.length) % LAYERS.length;
  $("step").value = state.step;
  $("layer").value = state.layers;
  const text = `step ${D.steps[state.step] + 1} of ${D.all}, time ${D.times[state.step]}`;
  $("where").textContent = text;
  $("step").setAttribute("aria-valuetext", text);
  if (!state.playing) $("said").textContent = `${text}; word ${D.words[state.word].text}; ${LAYERS[state.layers].name}`;
  draw();
}
function play() {
  clearInterval(state.playing);
  state.playing = state.playing ? 0 : setInterval(() => state.step + 1 < D.steps.length ? choose({ step: state.step + 1 }) : play(), 180);
  if (state.playing && state.step === D.steps.length - 1) choose({ step: 0 });
  $("play").setAttribute("aria-pressed", String(Boolean(state.playing)));
  $("play").textContent = state.playing ? "❚❚" : "▶▶";
  $("play").setAttribute("aria-label", state.playing ? "pause" : "play the steps");
}
function pressed(event) {
  const own = event.target.tagName, key = event.key;
  if (event.ctrlKey || event.metaKey || event.altKey || own === "SELECT") return;
  const range = own === "INPUT" && event.target.type === "range";
  const word = KEYS.indexOf(key), moves = { ArrowLeft: state.step - 1, ArrowRight: state.step + 1, Home: 0, End: D.steps.length - 1 };
  if (key in moves) { if (range) return; choose({ step: moves[key] }); }
  else if (key === " ") { if (own === "BUTTON" || own === "SUMMARY" || own === "INPUT") return; play(); }
  else if (key === "[" || key === "]") choose({ layers: state.layers + (key === "]" ? 1 : -1) });
  else if (key === "s") { $("slider").value = Number($("slider").value) > 50 ? 0 : 100; drawPair(); }
  else if (key === "m") { $("smooth").checked = !$("smooth").checked; draw(); }
  else if (key.length === 1 && word >= 0 && word < D.words.length) choose({ word });
  else return;
  event.preventDefault();
}
function begin() {
  $("title").replaceChildren(D.source || "a photograph", el("span", {}, " → "), D.target);
  $("how").textContent = `${D.method}, seed ${D.settings.seed}, ${D.all} steps, guidance ${D.settings.guidance}, model ${D.settings.model}; drawn in ${D.seconds} s`;
  D.notes.forEach(note => $("notes").append(el("li", {}, note)));
  Object.entries(D.settings).forEach(([name, value]) => $("settings").append(el("dt", {}, name), el("dd", {}, value === null ? "none" : String(value))));
  $("source").src = D.pictures.source; $("source").alt = `the source: ${D.source}`;
  $("edited").src = D.pictures.edited; $("edited").alt = `the edit: ${D.target}`;
  $("step").max = D.steps.length - 1;
  LAYERS.forEach((l, i) => $("layer").append(el("option", { value: i }, l.name)));
  const some = Object.keys(D.decoded).length;
  $("preview").textContent = (some === D.steps.length ? "Every step here is decoded by the VAE." :
    `${some} of the ${D.steps.length} steps here are decoded by the VAE; the others are a linear preview, its colours fitted to those (R² ${D.rgb.r2.toFixed(2)}), one square for each pixel of the latents.`);
  D.missing.forEach(text => $("missing").append(el("li", {}, text)));
  $("missing").append(el("li", {}, `maps of single heads: those here are means over heads${MAPS.some(m => m.size[0] > m.h) ? `, and none is finer than ${D.finest} × ${D.finest}` : ""}`));
  for (const id of ["scale", "scale-s"]) for (let x = 0, pen = $(id).getContext("2d"); x < 256; x++) { pen.fillStyle = `rgb(${heat(x / 255).map(Math.round)})`; pen.fillRect(x, 0, 1, 1); }
  buildWords(); buildFilm("film"); buildFilm("film-s"); buildGates(); buildDiagram(); drawPair();
  state.word = Math.max(D.words.findIndex(w => w.kind !== "kept"), 0);
  state.step = Math.round((D.steps.length - 1) / 3);
  state.block = Math.max(D.blocks.findIndex(b => b.name.startsWith("output_blocks") && b.sites.length), 0);
  $("slider").addEventListener("input", drawPair);
  $("step").addEventListener("input", () => choose({ step: Number($("step").value) }));
  $("layer").addEventListener("change", () => choose({ layers: Number($("layer").value) }));
  ["under", "smooth"].forEach(id => $(id).addEventListener("change", draw));
  $("back").addEventListener("click", () => choose({ step: state.step - 1 }));
  $("on").addEventListener("click", () => choose({ step: state.step + 1 }));
  $("play").addEventListener("click", play);
  document.addEventListener("keydown", pressed);
  D.kinds.forEach((name, kind) => $(`map-${kind}`).addEventListener("pointermove", event => {
    const box = event.target.getBoundingClientRect(), map = current[kind];
    const x = Math.floor((event.clientX - box.left) / box.width * map.w), y = Math.floor((event.clientY - box.top) / box.height * map.h);
    $("pixel").textContent = `${name}: pixel ${x}, ${y} of ${map.w} × ${map.h} gives “${D.words[state.word].text}” ${percent(map.x[y * map.w + x])} of its attention.`;
  }));
  [D.pictures.source, D.pictures.edited, ...Object.values(D.decoded).flat()].filter(Boolean).forEach(picture);
  choose({});
}
begin();
