// The charts are plotly's; this says what is in them. All are drawn anew after a filter changes.
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const FATE_COLOURS = ['--dropped', '--kept-easy', '--kept-hard', '--kept', '--scored'];
const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false };

function layout(extra) {
  const axis = { gridcolor: css('--line'), zeroline: false, linecolor: css('--line'), fixedrange: true, automargin: true };
  return {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', hovermode: 'x unified',
    font: { family: css('--font'), size: 12, color: css('--text') }, margin: { l: 44, r: 10, t: 8, b: 36 },
    hoverlabel: { bgcolor: css('--panel'), bordercolor: css('--line'), font: { color: css('--text') } },
    legend: { orientation: 'h', traceorder: 'normal', y: 1.02, yanchor: 'bottom', x: 0, font: { size: 11 } }, showlegend: true, ...extra,
    xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, rangemode: 'tozero', ...extra.yaxis },
  };
}

// ---- counting ----

// Each row's bin, found once; the first and the last bin also hold what lies beyond (as in shift.py).
function binsOf(of, edges) {
  const bins = new Int16Array(D.n);
  for (let i = 0; i < D.n; i++) {
    const value = of(i);
    let low = 0, high = edges.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (edges[middle] <= value) low = middle; else high = middle - 1;
    }
    bins[i] = Number.isFinite(value) ? Math.min(low, edges.length - 2) : -1;
  }
  return bins;
}

function countCodes(codeOf, size, test) {
  const counts = new Array(size).fill(0);
  for (let i = 0; i < D.n; i++) {
    if (!mask[i] || !test(i)) continue;
    const code = codeOf(i);
    if (code >= 0 && code < size) counts[code]++;
  }
  return counts;
}

const centres = edges => edges.slice(1).map((edge, b) => (edge + edges[b]) / 2);
const widths = edges => edges.slice(1).map((edge, b) => edge - edges[b]);

// ---- dragging and clicking filter ----

function rangeEvents(div, range, edges) {
  div.on('plotly_selected', event => {
    if (event?.range) chooseRange(range, ...event.range.x); else clearFilter(range.key);
  });
  div.on('plotly_click', event => {
    const bar = event.points.find(point => point.data.type === 'bar');
    if (!bar) return;
    const last = bar.pointIndex === edges.length - 2; // the end bars hold what lies beyond them too
    chooseRange(range, bar.pointIndex === 0 ? -Infinity : edges[bar.pointIndex], last ? Infinity : before(edges[bar.pointIndex + 1]));
  });
  div.addEventListener('dblclick', () => clearFilter(range.key));
  // The outline of a drag goes when its filter goes.
  views.push(() => { if (!filters.has(range.key) && div.layout?.selections?.length) Plotly.relayout(div, { selections: [] }); });
}

const before = edge => edge - Math.max(Math.abs(edge), 1e-30) * 1e-7;

// ---- score ----

function startScore() {
  const { edges } = D.numbers.score;
  const bins = binsOf(i => D.score[i], edges);
  const codes = D.fates.map((_, code) => code).filter(code => D.fate.includes(code));
  // Kept rows stand at the foot of each bar, dropped rows on top of them.
  codes.sort((a, b) => (a === 0) - (b === 0) || a - b);
  const everything = countCodes(i => bins[i], edges.length - 1, () => true);
  const div = $('score-chart');
  const draw = () => {
    const traces = codes.map(code => ({
      type: 'bar', name: D.fates[code], x: centres(edges), width: widths(edges), marker: { color: css(FATE_COLOURS[code]), line: { width: 0 } },
      y: countCodes(i => bins[i], edges.length - 1, i => D.fate[i] === code), hovertemplate: '%{y:,}',
    }));
    if (filters.size) traces.push(outline(edges, everything, 'all rows'));
    const { pools } = D.numbers;
    const top = Math.max(1, ...everything) * (pools?.split ? 1.2 : 1.05); // room for the pools' names
    const shapes = pools ? [
      { type: 'rect', xref: 'x', yref: 'paper', x0: pools.low, x1: pools.high, y0: 0, y1: 1, fillcolor: css('--accent'), opacity: 0.1, line: { width: 0 } },
      { type: 'line', xref: 'x', yref: 'paper', x0: pools.median, x1: pools.median, y0: 0, y1: 1, line: { color: css('--accent'), width: 1, dash: 'dot' } },
    ] : [];
    const marks = pools?.split ? [['easy pool ', pools.median, 'right'], [' hard pool', pools.median, 'left']] : [];
    const annotations = marks.map(([text, x, xanchor]) => ({ text, x, xanchor, y: 1, yref: 'paper', yanchor: 'top', showarrow: false, font: { size: 11, color: css('--muted') } }));
    Plotly.react(div, traces, layout({
      barmode: 'stack', bargap: 0.06, dragmode: 'select', selectdirection: 'h', shapes, annotations, selections: div.layout?.selections ?? [],
      newselection: { line: { color: css('--accent'), width: 1 } },
      xaxis: { title: { text: `score (${D.numbers.facts.score})` } }, yaxis: { title: { text: 'rows' }, range: [0, top] },
    }), CONFIG);
  };
  draw();
  rangeEvents(div, RANGES.find(r => r.key === 'score'), edges);
  views.push(draw);
}

function outline(edges, counts, name) {
  return {
    type: 'scatter', mode: 'lines', name, x: edges, y: [...counts, counts[counts.length - 1]], line: { shape: 'hv', width: 1, color: css('--muted') },
    hoverinfo: 'skip',
  };
}

// ---- loss against density ----

const THIRDS = [['easy', '--easy'], ['middle', '--middle'], ['hard', '--hard']];
let clicked = -1;

function startCurves() {
  const { families } = D.numbers;
  if (!families.length) { $('curves-panel').hidden = true; return; }
  const choice = $('curves-family');
  choice.append(...families.map((family, f) => el('option', { value: f, textContent: family.kind })));
  choice.hidden = families.length < 2;
  choice.addEventListener('change', drawCurves);
  drawCurves();
  views.push(drawCurves);
}

function drawCurves() {
  const family = D.numbers.families[+$('curves-family').value || 0];
  const what = { magnitude: 'density', random: 'density', dropout: 'dropout rate', depth: 'depth' }[family.kind] ?? family.kind;
  $('curves-what').textContent = what;
  const names = family.values.map((value, p) => (value === null ? 'all blocks' : `${+value.toFixed(3)}`) + (repeated(family, p) ? ` #${p}` : ''));
  const traces = [];
  THIRDS.forEach(([name, colour], t) => {
    const band = filters.size ? bandOf(family, t) : family.bands[name];
    const line = { color: css(colour), width: 0 };
    traces.push(
      { type: 'scatter', mode: 'lines', x: names, y: band.low, line, hoverinfo: 'skip', showlegend: false },
      { type: 'scatter', mode: 'lines', x: names, y: band.high, line, fill: 'tonexty', fillcolor: faint(css(colour)), hoverinfo: 'skip', showlegend: false },
      { type: 'scatter', mode: 'lines+markers', name, x: names, y: band.median, line: { color: css(colour), width: 2 }, marker: { size: 5 }, hovertemplate: '%{y:.3f}' },
    );
  });
  if (clicked >= 0) {
    traces.push({
      type: 'scatter', mode: 'lines+markers', name: `row ${D.row[clicked]}`, x: names, y: family.columns.map(j => loss(j, clicked)),
      line: { color: css('--accent'), width: 3, dash: 'dot' }, marker: { size: 8, symbol: 'diamond' }, hovertemplate: '%{y:.3f}',
    });
  }
  Plotly.react($('curves-chart'), traces, layout({
    dragmode: false, xaxis: { type: 'category', title: { text: what } }, yaxis: { title: { text: D.numbers.facts.tokens ? 'loss (nats per token)' : 'loss (nats)' }, rangemode: 'normal' },
  }), CONFIG);
}

const repeated = (family, p) => family.values.some((value, q) => q !== p && value === family.values[p]);
const faint = colour => `rgba(${rgb(colour).join(',')},0.22)`;

// Quartiles over the rows that pass, by counting: losses are whole steps.
function bandOf(family, third) {
  const band = { low: [], median: [], high: [] };
  const counts = new Uint32Array(65536);
  for (const j of family.columns) {
    counts.fill(0);
    const column = D[`loss${j}`];
    let n = 0;
    for (let i = 0; i < D.n; i++) if (mask[i] && D.third[i] === third) { counts[column[i]]++; n++; }
    const { low, high } = D.subnets[j];
    for (const [name, share] of [['low', 0.25], ['median', 0.5], ['high', 0.75]]) {
      let step = 0, below = counts[0];
      while (n && below < share * n) below += counts[++step];
      band[name].push(n ? low + step * (high - low) / 65535 : null);
    }
  }
  return band;
}

// ---- distribution shift ----

function startShifts() {
  const lengths = Object.entries(D.numbers.lengths).map(([name, histogram]) => ({ column: name, histogram, range: RANGES.find(r => r.label === name) }));
  const columns = D.numbers.shifts.map((shift, c) => ({
    ...shift, range: RANGES.find(r => r.key === `column${c}`), field: FIELDS.find(f => f.key === `column${c}`),
  }));
  for (const shift of [...lengths, ...columns]) {
    if (shift.histogram?.counts.all.filter(count => count).length === 1) continue; // all rows alike
    const div = el('div', { class: 'chart' });
    $('shifts').append(el('figure', {}, el('figcaption', { textContent: shift.column, dir: 'auto' }), div));
    if (shift.histogram) startHistogram(div, shift); else startCategories(div, shift);
  }
  if (D.numbers.mmd) startMmd();
  if (D.numbers.split_curve.length) startSplits();
}

// The sets of rows that are put beside each other: [name, colour, test].
function series() {
  const sets = [['all rows', '--muted', () => true]];
  if (D.selected) sets.push(['kept', '--kept', isKept]);
  D.numbers.others.forEach((other, o) => sets.push([`kept in ${other.name}`, o ? '--easy' : '--accent', i => D[`other${o}`][i] === 2]));
  return sets;
}

const shares = counts => {
  const total = counts.reduce((sum, count) => sum + count, 0) || 1;
  return counts.map(count => count / total);
};

const TICKS = [0, 1, 2, 3, 4, 5, 6].flatMap(power => [1, 2, 5].map(digit => digit * 10 ** power));

function startHistogram(div, shift) {
  const { edges, log } = shift.histogram;
  const bins = binsOf(shift.range.of, edges);
  const draw = () => {
    const traces = series().map(([name, colour, test], s) => {
      const y = shares(countCodes(i => bins[i], edges.length - 1, test));
      if (s) return { ...outline(edges, y, name), line: { shape: 'hv', width: 2, color: css(colour) }, hoverinfo: 'all', hovertemplate: '%{y:.1%}' };
      return { type: 'bar', name, x: centres(edges), width: widths(edges), y, marker: { color: faint(css(colour)) }, hovertemplate: '%{y:.1%}' };
    });
    Plotly.react(div, traces, layout({
      bargap: 0, dragmode: 'select', selectdirection: 'h', selections: div.layout?.selections ?? [],
      newselection: { line: { color: css('--accent'), width: 1 } },
      xaxis: log ? { type: 'log', tickmode: 'array', tickvals: TICKS, ticktext: TICKS.map(whole) } : {}, yaxis: { tickformat: '.0%' },
    }), CONFIG);
  };
  draw();
  rangeEvents(div, shift.range, edges);
  views.push(draw);
}

function startCategories(div, shift) {
  const names = shift.categories.map(name => (name.length > 22 ? `${name.slice(0, 21)}…` : name));
  const rows = names.map((_, r) => r);
  const listed = Math.min(D.columns[+shift.field.key.slice(6)].values.length, 12);
  const rest = shift.categories.length - listed; // "N others", "(none)"
  const none = shift.field.values.length - 1;
  const codeOf = i => {
    const code = shift.field.of(i);
    if (code < listed) return code;
    return code === none ? shift.categories.length - 1 : listed;
  };
  div.style.height = `${Math.max(150, (12 + 9 * series().length) * names.length + 80)}px`;
  const draw = () => {
    const traces = series().map(([name, colour, test]) => ({
      type: 'bar', orientation: 'h', name, y: rows, x: shares(countCodes(codeOf, names.length, test)), marker: { color: css(colour) },
      hovertemplate: '%{x:.1%}',
    }));
    Plotly.react(div, traces, layout({
      barmode: 'group', bargap: 0.25, dragmode: false, hovermode: 'y unified', xaxis: { tickformat: '.0%', rangemode: 'tozero', nticks: 4, tickangle: 0 },
      yaxis: { autorange: 'reversed', tickmode: 'array', tickvals: rows, ticktext: names.map(plain) },
    }), CONFIG);
  };
  draw();
  div.on('plotly_click', event => {
    const row = event.points[0].pointIndex;
    if (row < listed) toggleField(shift.field, row);
    else if (rest && row === names.length - 1 && shift.categories[row] === '(none)') toggleField(shift.field, none);
  });
  views.push(draw);
}

// Plotly reads a few tags in its labels: what looks like one is shown as it is.
const plain = text => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

function startMmd() {
  const entries = [[D.numbers.facts.name, D.numbers.mmd, '--kept'], ...D.numbers.others.map((o, i) => [o.name, o.mmd, i ? '--easy' : '--accent'])].filter(e => e[1]);
  const div = el('div', { class: 'chart' });
  $('shifts').append(el('figure', {}, el('figcaption', { textContent: 'embeddings: distance to the full set' }), div,
    el('p', { class: 'note', textContent: `Squared maximum mean discrepancy × 1000 (unbiased, up to ${whole(entries[0][1].rows)} rows of each side; near 0 or below: no difference seen). Dots: ${entries[0][1].random.length} random subsets of the same size.` })));
  div.style.height = `${110 + 46 * entries.length}px`;
  const draw = () => {
    const traces = entries.flatMap(([name, mmd, colour], e) => [
      { type: 'scatter', mode: 'markers', name: 'random', showlegend: false, x: mmd.random.map(v => 1000 * v), y: mmd.random.map(() => e), marker: { color: css('--muted'), size: 9, opacity: 0.6 }, hovertemplate: 'random: %{x:.2f}<extra></extra>' },
      { type: 'scatter', mode: 'markers', name, showlegend: false, x: [1000 * mmd.kept], y: [e], marker: { color: css(colour), size: 14, symbol: 'diamond' }, hovertemplate: 'kept: %{x:.2f}<extra></extra>' },
    ]);
    Plotly.react(div, traces, layout({
      hovermode: 'closest', dragmode: false, xaxis: { title: { text: 'MMD² × 1000' } },
      yaxis: { tickmode: 'array', tickvals: entries.map((_, e) => e), ticktext: entries.map(e => plain(e[0])), range: [-0.7, entries.length - 0.3] },
    }), CONFIG);
  };
  draw();
  views.push(draw);
}

function startSplits() {
  const div = el('div', { class: 'chart' });
  $('shifts').append(el('figure', {}, el('figcaption', { textContent: 'distance of the subset, by split' }), div));
  const curve = D.numbers.split_curve;
  const draw = () => Plotly.react(div, [{ type: 'scatter', mode: 'lines+markers', x: curve.map(p => p[0]), y: curve.map(p => 1000 * p[1]), line: { color: css('--kept') } }],
    layout({ showlegend: false, dragmode: false, xaxis: { title: { text: 'split' } }, yaxis: { title: { text: 'MMD² × 1000' }, rangemode: 'normal' } }), CONFIG);
  draw();
  views.push(draw);
}
