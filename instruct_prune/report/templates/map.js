// The map: plotly has the axes, the zoom and the lasso; the points are painted on a canvas below it, pixel by pixel.
// So half a million rows are shown, each of them, with and without WebGL, and no code is made from strings.
const MAP = { view: 0, colour: 0, order: null, codes: null, palette: null, frame: 0 };

function startMap() {
  MAP.order = shuffled(D.n);
  MAP.modes = colourings();
  $('map-view').append(...D.projections.map((p, v) => el('option', { value: v, textContent: p.name })));
  $('map-colour').append(...MAP.modes.map((m, c) => el('option', { value: c, textContent: m.name })));
  $('map-view').addEventListener('change', () => { MAP.view = +$('map-view').value; showProjection(); });
  $('map-colour').addEventListener('change', () => { MAP.colour = +$('map-colour').value; recolour(); });
  showProjection();
  const plot = $('map-plot');
  plot.on('plotly_relayouting', event => paintSoon(event));
  plot.on('plotly_relayout', () => paintSoon());
  plot.on('plotly_selected', chooseRegion);
  plot.on('plotly_deselect', () => clearFilter('map'));
  plot.on('plotly_doubleclick', () => { clearFilter('map'); });
  recolour();
  views.push(() => {
    if (!filters.has('map') && plot.layout.selections?.length) Plotly.relayout(plot, { selections: [] });
    recolour();
  });
  new ResizeObserver(() => paintSoon()).observe($('map'));
  mapButtons();
  mapPointer();
}

function mapLayout() {
  const { axes, name, x, y } = D.projections[MAP.view];
  const plain = name === 'length and score';
  const axis = ends => ({
    range: padded(ends), zeroline: false, showgrid: plain, gridcolor: css('--line'), ticklabelposition: 'inside', showticklabels: plain,
    fixedrange: false, color: css('--muted'),
  });
  $('map-note').textContent = `Across: ${axes[0]}. Up: ${axes[1]}. Scroll to zoom, click a point to read it.`;
  return {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false,
    hovermode: false, dragmode: MAP.drag ?? 'lasso', xaxis: axis(x), yaxis: axis(y), font: { family: css('--font'), size: 11 },
    newselection: { line: { color: css('--accent'), width: 1.5 } }, activeselection: { fillcolor: 'rgba(0,0,0,0)' },
    autosize: true,
  };
}

const padded = ([low, high]) => { const room = (high - low || 1) * 0.03; return [low - room, high + room]; };

function showProjection() {
  if (filters.has('map')) clearFilter('map');
  // One invisible trace: plotly offers the lasso where there is something to select.
  const traces = [{ type: 'scatter', mode: 'markers', x: [null], y: [null], hoverinfo: 'skip' }];
  Plotly.react($('map-plot'), traces, mapLayout(), { displayModeBar: false, responsive: true, scrollZoom: true, doubleClick: false });
  paintSoon();
}

// ---- colours ----

function colourings() {
  const modes = [
    { name: D.selected ? 'kept or dropped' : 'nothing', field: FIELDS.find(f => f.key === 'fate'), colours: FATE_COLOURS },
    { name: 'score', range: RANGES[0] },
  ];
  const group = FIELDS.find(f => f.key === 'group');
  if (group) modes.push({ name: group.label, field: group });
  for (const field of FIELDS.filter(f => f.key.startsWith('other'))) {
    modes.push({ name: `agreement with ${field.label.slice(7)}`, field, colours: ['--dropped', '--kept-hard', '--accent', '--kept'] });
  }
  modes.push({ name: 'response tokens', range: RANGES[1], log: true }, { name: 'prompt tokens', range: RANGES[2], log: true });
  D.subnets.forEach((subnet, j) => modes.push({ name: `loss, ${subnet.name}`, range: { of: i => loss(j, i), low: subnet.low, high: subnet.high, whole: false } }));
  modes.push(...FIELDS.filter(f => f.key.startsWith('column')).map(field => ({ name: field.label, field })));
  modes.push(...RANGES.slice(3).map(range => ({ name: range.label, range })));
  return modes;
}

function recolour() {
  const mode = MAP.modes[MAP.colour];
  if (MAP.coloured !== mode) { // the rows' codes; the colours themselves depend on the theme
    MAP.coloured = mode;
    MAP.codes = new Uint32Array(D.n);
    if (mode.field) {
      for (let i = 0; i < D.n; i++) MAP.codes[i] = mode.field.of(i);
    } else {
      mode.scale = scaleOf(mode);
      for (let i = 0; i < D.n; i++) MAP.codes[i] = mode.scale.step(mode.range.of(i));
    }
  }
  if (mode.field) {
    MAP.palette = mode.field.values.map((_, code) => (mode.colours ? rgb(css(mode.colours[code])) : categorical(code)));
  } else {
    MAP.palette = [...Array.from({ length: 256 }, (_, step) => ramp(step / 255)), rgb(css('--faint'))];
  }
  drawLegend(mode);
  paintSoon();
}

// 256 steps between the 1st and the 99th percentile of a sample; 256 itself is "has none".
function scaleOf({ range, log }) {
  const stride = Math.max(1, Math.floor(D.n / 20000));
  const of = log ? i => Math.log10(Math.max(range.of(i), 1)) : range.of;
  const values = [];
  for (let i = 0; i < D.n; i += stride) if (Number.isFinite(of(i))) values.push(of(i));
  values.sort((a, b) => a - b);
  const low = values[Math.floor(0.01 * values.length)] ?? 0;
  const high = values[Math.min(values.length - 1, Math.floor(0.99 * values.length))] ?? 1;
  const step = value => {
    const at = log ? Math.log10(Math.max(value, 1)) : value;
    return Number.isFinite(at) ? Math.max(0, Math.min(255, Math.round(255 * (at - low) / (high - low || 1)))) : 256;
  };
  return { low: log ? 10 ** low : low, high: log ? 10 ** high : high, step };
}

const rgb = text => {
  const canvas = rgb.canvas ??= document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)];
};
const CATEGORICAL = ['#4e79a7', '#f28e2b', '#59a14f', '#e15759', '#b07aa1', '#76b7b2', '#edc948', '#ff9da7', '#9c755f', '#7f8fa9', '#1f9e89', '#d37295'];
// Past the named colours, hues a golden angle apart.
const categorical = code => (code < CATEGORICAL.length ? rgb(CATEGORICAL[code]) : rgb(`hsl(${(code * 137.5) % 360} 45% ${45 + (code % 3) * 10}%)`));
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
function ramp(share) {
  const at = share * (RAMP.length - 1), low = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[low].map((channel, c) => Math.round(channel + (RAMP[low + 1][c] - channel) * (at - low)));
}
const cssOf = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

function drawLegend(mode) {
  const legend = $('map-legend');
  if (mode.range) {
    const bar = el('span', { class: 'ramp' });
    bar.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(s => cssOf(ramp(s))).join(', ')})`;
    const show = value => (mode.range.whole ? whole(Math.round(value)) : short(value));
    legend.replaceChildren(el('span', { textContent: show(mode.scale.low) }), bar, el('span', { textContent: `${show(mode.scale.high)}  ${mode.name}` }));
    return;
  }
  const counts = new Uint32Array(mode.field.values.length);
  for (let i = 0; i < D.n; i++) if (mask[i]) counts[mode.field.of(i)]++;
  const codes = [...counts.keys()].filter(code => counts[code]).sort((a, b) => counts[b] - counts[a]);
  const items = codes.slice(0, 12).map(code => {
    const dot = el('span', { class: 'dot' });
    dot.style.background = cssOf(MAP.palette[code]);
    return el('button', { type: 'button', class: 'item', 'data-key': code, onclick: () => toggleField(mode.field, code) }, dot, el('span', { dir: 'auto', textContent: mode.field.values[code] }), el('small', { textContent: whole(counts[code]) }));
  });
  if (codes.length > 12) items.push(el('span', { textContent: `and ${codes.length - 12} more` }));
  redrawn(legend, () => legend.replaceChildren(...items));
}

// ---- painting ----

// Drawn in a shuffled order, so that neither kept nor dropped rows lie on top because of where they stand in the file.
function shuffled(n) {
  const order = new Uint32Array(n);
  let state = 1;
  for (let i = 0; i < n; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor(state / 4294967296 * (i + 1));
    order[i] = order[j];
    order[j] = i;
  }
  return order;
}

function paintSoon(event) {
  if (event?.['xaxis.range[0]'] !== undefined) {
    MAP.live = { x: [event['xaxis.range[0]'], event['xaxis.range[1]']], y: [event['yaxis.range[0]'], event['yaxis.range[1]']] };
  } else MAP.live = null;
  cancelAnimationFrame(MAP.frame);
  MAP.frame = requestAnimationFrame(paint);
}

// Where a row lies: [x pixel, y pixel] = [ax + bx * x code, ay + by * y code].
function geometry() {
  const box = $('map').getBoundingClientRect();
  const view = D.projections[MAP.view], { layout } = $('map-plot');
  const [x0, x1] = MAP.live?.x ?? layout.xaxis.range, [y0, y1] = MAP.live?.y ?? layout.yaxis.range;
  const scaleX = box.width / (x1 - x0), scaleY = box.height / (y1 - y0);
  return {
    width: box.width, height: box.height, x: D[`x${MAP.view}`], y: D[`y${MAP.view}`],
    ax: (view.x[0] - x0) * scaleX, bx: (view.x[1] - view.x[0]) / 65535 * scaleX,
    ay: box.height - (view.y[0] - y0) * scaleY, by: -(view.y[1] - view.y[0]) / 65535 * scaleY,
    zoom: (view.x[1] - view.x[0] || 1) / (x1 - x0),
  };
}

function radius(zoom) {
  const base = D.n > 200000 ? 0.7 : D.n > 40000 ? 1 : D.n > 10000 ? 1.5 : D.n > 2000 ? 2.2 : D.n > 500 ? 3.2 : 4.5;
  return Math.min(6, base * Math.max(1, zoom) ** 0.45);
}

// A disc with a soft edge: for each pixel it touches, how far that lies from the middle one and how much of it is covered.
function disc(r, stride) {
  const steps = [], covers = [], reach = Math.ceil(r + 0.5);
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      const cover = Math.min(1, Math.max(0, r + 0.5 - Math.hypot(dx, dy)));
      if (cover > 0.25) { steps.push(dy * stride + dx); covers.push(cover); }
    }
  }
  return [Int32Array.from(steps), Float64Array.from(covers)];
}

const MARGIN = 16; // pixels around the picture, more than a disc's reach: so none at its edge needs a test of each pixel
const OPAQUE = 0.99;

function paint() {
  const canvas = $('map-canvas'), dense = Math.min(window.devicePixelRatio || 1, 2);
  const g = geometry();
  const width = Math.max(1, Math.round(g.width * dense)), height = Math.max(1, Math.round(g.height * dense));
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const context = canvas.getContext('2d'), stride = width + 2 * MARGIN;
  const image = context.createImageData(stride, height + 2 * MARGIN);
  const r = radius(g.zoom), drawn = { ...g, dense, stride, width, height, image };
  if (shown < D.n) put(drawn, 0, [rgb(css('--faded'))], null, r * 0.8, 1);
  put(drawn, 1, MAP.palette, MAP.codes, r, D.n > 10000 ? 1 : 0.85);
  context.putImageData(image, -MARGIN, -MARGIN);
  if (clicked >= 0) ring(context, g, dense, r);
  $('map').dataset.painted = shown;
}

// Half a million times: covered pixels are written as one number, only the soft edges are mixed with what lies below.
function put({ ax, bx, ay, by, x, y, dense, stride, width, height, image }, test, colours, codes, r, strength) {
  const [steps, covers] = disc(r * dense, stride), { data } = image, whole = new Uint32Array(data.buffer), size = steps.length;
  const packed = Uint32Array.from(colours, ([red, green, blue]) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0); // little-endian
  const { order } = MAP;
  for (let k = 0; k < D.n; k++) {
    const i = order[k];
    if (mask[i] !== test) continue;
    const px = Math.round((ax + bx * x[i]) * dense), py = Math.round((ay + by * y[i]) * dense);
    if (px < 0 || py < 0 || px > width || py > height) continue;
    const middle = (py + MARGIN) * stride + px + MARGIN, code = codes ? codes[i] : 0;
    for (let s = 0; s < size; s++) {
      const alpha = covers[s] * strength;
      if (alpha > OPAQUE) { whole[middle + steps[s]] = packed[code]; continue; }
      const at = 4 * (middle + steps[s]), colour = colours[code], under = data[at + 3] / 255 * (1 - alpha), sum = alpha + under;
      data[at] = (colour[0] * alpha + data[at] * under) / sum;
      data[at + 1] = (colour[1] * alpha + data[at + 1] * under) / sum;
      data[at + 2] = (colour[2] * alpha + data[at + 2] * under) / sum;
      data[at + 3] = 255 * sum;
    }
  }
}

function ring(context, g, dense, r) {
  context.beginPath();
  context.arc((g.ax + g.bx * g.x[clicked]) * dense, (g.ay + g.by * g.y[clicked]) * dense, (r + 5) * dense, 0, 7);
  context.lineWidth = 2.5 * dense;
  context.strokeStyle = css('--accent');
  context.stroke();
}

// ---- lasso, box, zoom, hover, click ----

function chooseRegion(event) {
  if (!event || !(event.lassoPoints || event.range)) { clearFilter('map'); return; }
  const view = D.projections[MAP.view], x = D[`x${MAP.view}`], y = D[`y${MAP.view}`];
  const toX = v => (v - view.x[0]) / (view.x[1] - view.x[0] || 1) * 65535, toY = v => (v - view.y[0]) / (view.y[1] - view.y[0] || 1) * 65535;
  const inside = new Uint8Array(D.n);
  if (event.range) {
    const [x0, x1] = event.range.x.map(toX).sort((a, b) => a - b), [y0, y1] = event.range.y.map(toY).sort((a, b) => a - b);
    for (let i = 0; i < D.n; i++) inside[i] = x[i] >= x0 && x[i] <= x1 && y[i] >= y0 && y[i] <= y1;
  } else {
    const px = event.lassoPoints.x.map(toX), py = event.lassoPoints.y.map(toY);
    const [x0, x1, y0, y1] = [Math.min(...px), Math.max(...px), Math.min(...py), Math.max(...py)];
    for (let i = 0; i < D.n; i++) {
      if (x[i] >= x0 && x[i] <= x1 && y[i] >= y0 && y[i] <= y1) inside[i] = within(x[i], y[i], px, py);
    }
  }
  setFilter('map', 'region of the map', i => inside[i] === 1);
}

function within(x, y, px, py) {
  let odd = false;
  for (let a = 0, b = px.length - 1; a < px.length; b = a++) {
    if ((py[a] > y) !== (py[b] > y) && x < (px[b] - px[a]) * (y - py[a]) / (py[b] - py[a]) + px[a]) odd = !odd;
  }
  return odd;
}

function mapButtons() {
  const drags = [...document.querySelectorAll('[data-drag]')];
  for (const button of drags) {
    button.addEventListener('click', () => {
      MAP.drag = button.dataset.drag;
      drags.forEach(other => other.setAttribute('aria-pressed', other === button));
      Plotly.relayout($('map-plot'), { dragmode: MAP.drag });
    });
  }
  $('zoom-in').addEventListener('click', () => moveMap(0, 0, 0.7));
  $('zoom-out').addEventListener('click', () => moveMap(0, 0, 1 / 0.7));
  $('zoom-fit').addEventListener('click', fitMap);
  $('map').addEventListener('keydown', event => {
    const moves = { ArrowLeft: [-0.1, 0, 1], ArrowRight: [0.1, 0, 1], ArrowUp: [0, 0.1, 1], ArrowDown: [0, -0.1, 1], '+': [0, 0, 0.7], '=': [0, 0, 0.7], '-': [0, 0, 1 / 0.7] };
    if (event.key === '0') fitMap();
    else if (moves[event.key]) moveMap(...moves[event.key]);
    else return;
    event.preventDefault();
  });
}

function moveMap(right, up, zoom) {
  const moved = ([low, high], by) => {
    const middle = (low + high) / 2 + by * (high - low), half = (high - low) / 2 * zoom;
    return [middle - half, middle + half];
  };
  const { xaxis, yaxis } = $('map-plot').layout;
  Plotly.relayout($('map-plot'), { 'xaxis.range': moved(xaxis.range, right), 'yaxis.range': moved(yaxis.range, up) });
}

function fitMap() {
  const { x, y } = D.projections[MAP.view];
  Plotly.relayout($('map-plot'), { 'xaxis.range': padded(x), 'yaxis.range': padded(y) });
}

function nearest(event) {
  const box = $('map').getBoundingClientRect(), g = geometry();
  const mx = event.clientX - box.left, my = event.clientY - box.top;
  let best = -1, least = 14 ** 2;
  for (let i = 0; i < D.n; i++) {
    if (!mask[i]) continue;
    const dx = g.ax + g.bx * g.x[i] - mx, dy = g.ay + g.by * g.y[i] - my, d = dx * dx + dy * dy;
    if (d < least) { least = d; best = i; }
  }
  return best;
}

function mapPointer() {
  const map = $('map'), tip = $('map-tip');
  let frame = 0, down = null;
  map.addEventListener('pointermove', event => {
    cancelAnimationFrame(frame);
    if (event.buttons) { tip.hidden = true; return; }
    frame = requestAnimationFrame(() => showTip(nearest(event), event));
  });
  map.addEventListener('pointerleave', () => { cancelAnimationFrame(frame); tip.hidden = true; });
  map.addEventListener('pointerdown', event => { down = [event.clientX, event.clientY]; }, true);
  // On the document: while a button is down, plotly lays a sheet over the page.
  document.addEventListener('pointerup', event => {
    if (down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) < 4) {
      const at = nearest(event);
      if (at >= 0) showDetail(at);
    }
    down = null;
  }, true);
}

function showTip(at, event) {
  const tip = $('map-tip'), box = $('map').getBoundingClientRect();
  tip.hidden = at < 0;
  if (at < 0) return;
  tip.replaceChildren(el('b', { textContent: rowFacts(at), dir: 'auto' }), ...pictureOf(at, 'thumb'), el('p', { textContent: textOf(at, 280), dir: 'auto' }));
  const x = event.clientX - box.left, y = event.clientY - box.top;
  tip.style.left = `${Math.min(Math.max(8, x + 14), Math.max(8, box.width - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > box.height ? Math.max(8, y - tip.offsetHeight - 12) : y + 18}px`;
}
