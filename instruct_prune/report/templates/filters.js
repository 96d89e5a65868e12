// One set of filters for all views. A filter is a test of a row's position; a row is shown when it passes all of them.
const filters = new Map(); // key -> {label, test}
const views = [];          // functions called after every change
let mask, shown = 0, pending = false;

function setFilter(key, label, test) {
  filters.set(key, { label, test });
  refilter();
}

function clearFilter(key) {
  if (filters.delete(key)) refilter();
}

function refilter() {
  mask.fill(1);
  for (const { test } of filters.values()) {
    for (let i = 0; i < D.n; i++) if (mask[i] && !test(i)) mask[i] = 0;
  }
  shown = 0;
  for (let i = 0; i < D.n; i++) shown += mask[i];
  busy(true);
  if (!pending) {
    pending = true;
    requestAnimationFrame(() => { pending = false; views.forEach(view => view()); busy(false); });
  }
}

// ---- the tests that charts, tables and form fields share ----

const FIELDS = []; // {key, label, values, codes, missing}: one choice out of some
const RANGES = []; // {key, label, values}: a range of numbers

function chooseField(field, code) {
  setFilter(field.key, `${field.label}: ${field.values[code]}`, i => field.of(i) === code);
}

function toggleField(field, code) {
  const label = `${field.label}: ${field.values[code]}`;
  if (filters.get(field.key)?.label === label) clearFilter(field.key); else chooseField(field, code);
}

function chooseRange(range, low, high) {
  const ends = [Math.max(low, range.low), Math.min(high, range.high)].map(v => range.whole ? whole(Math.round(v)) : v.toFixed(3));
  setFilter(range.key, `${range.label} ${ends[0]} to ${ends[1]}`, i => range.of(i) >= low && range.of(i) <= high);
}

function describeRows() {
  const fates = D.fates.map((_, code) => code);
  if (D.selected) {
    FIELDS.push({ key: 'selected', label: 'rows', values: ['dropped', 'kept'], of: i => +isKept(i) });
    FIELDS.push({ key: 'reason', label: 'reason', values: D.reasons, of: i => D.reason[i] });
  }
  FIELDS.push({ key: 'fate', label: 'rows', values: D.fates, of: i => D.fate[i], hidden: true, codes: fates });
  if (D.numbers.group_kind) {
    FIELDS.push({ key: 'group', label: D.numbers.group_kind, values: D.numbers.groups.map(g => g.name), of: i => D.label[i] });
  }
  D.columns.forEach((column, c) => {
    const data = D[`column${c}`];
    if (column.values.length) {
      const codes = data, last = column.values.length;
      FIELDS.push({ key: `column${c}`, label: column.name, values: [...column.values, '(none)'], of: i => Math.min(codes[i], last) });
    } else {
      RANGES.push(rangeOf(`column${c}`, column.name, i => data[i], false));
    }
  });
  D.numbers.others.forEach((other, o) => {
    const states = D[`other${o}`];
    const values = ['neither keeps it', 'only this run keeps it', `only ${other.name} keeps it`, 'both keep it'];
    FIELDS.push({ key: `other${o}`, label: `beside ${other.name}`, values, of: i => +isKept(i) + 2 * (states[i] === 2) });
  });
  RANGES.unshift(
    rangeOf('score', 'score', i => D.score[i], false),
    rangeOf('response', 'response tokens', i => D.response[i], true),
    rangeOf('prompt', 'prompt tokens', i => D.prompt[i], true),
  );
}

function rangeOf(key, label, of, isWhole) {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < D.n; i++) {
    const value = of(i);
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return { key, label, of, low, high, whole: isWhole };
}

// A view that is drawn anew keeps the keyboard where it was: on the button that does the same, else on the one in its place.
function redrawn(box, draw) {
  const place = [...box.querySelectorAll('button')].indexOf(document.activeElement), key = document.activeElement?.dataset.key;
  draw();
  if (place < 0) return;
  const buttons = [...box.querySelectorAll('button')], same = button => key && button?.dataset.key === key;
  const next = same(buttons[place]) ? buttons[place] : buttons.find(same) ?? buttons[Math.min(place, buttons.length - 1)] ?? $('search');
  next.focus({ preventScroll: true });
}

// ---- the bar: count, chips, search, reset, and a field for every filter ----

function startFilters() {
  mask = new Uint8Array(D.n).fill(1);
  shown = D.n;
  describeRows();
  $('reset').addEventListener('click', () => { filters.clear(); $('search').value = ''; refilter(); $('filter-more').focus({ preventScroll: true }); });
  $('filter-more').addEventListener('click', () => {
    const fields = $('filter-fields');
    fields.hidden = !fields.hidden;
    $('filter-more').setAttribute('aria-expanded', !fields.hidden);
  });
  $('search').addEventListener('input', () => busy(true));
  $('search').addEventListener('input', debounce(search, 150));
  buildFields();
  views.push(drawBar);
}

const busy = on => document.querySelector('main').setAttribute('aria-busy', on);

function search() {
  const wanted = $('search').value.trim().toLowerCase();
  if (!wanted) { if (filters.has('search')) clearFilter('search'); else busy(false); return; }
  D.lower ??= D.texts.map(([, , turns]) => turns.map(([, text]) => text).join('\n').toLowerCase());
  const found = new Uint8Array(D.n);
  D.lower.forEach((text, slot) => { if (text.includes(wanted)) found[D.picks[slot]] = 1; });
  setFilter('search', `text has “${wanted}”`, i => found[i] === 1);
}

function debounce(action, wait) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(action, wait); };
}

function buildFields() {
  const box = $('filter-fields');
  for (const field of FIELDS.filter(f => !f.hidden)) {
    const choice = el('select', { onchange: () => (choice.value === '' ? clearFilter(field.key) : chooseField(field, +choice.value)) });
    choice.append(el('option', { value: '', textContent: 'any' }));
    field.values.forEach((value, code) => choice.append(el('option', { value: code, textContent: value })));
    box.append(el('label', {}, el('span', { textContent: field.label }), choice));
    views.push(() => { if (!filters.has(field.key)) choice.value = ''; });
  }
  for (const range of RANGES) {
    const [low, high] = ['from', 'to'].map(end => el('input', { type: 'number', step: 'any', placeholder: end, 'aria-label': `${range.label} ${end}` }));
    const change = () => {
      if (low.value === '' && high.value === '') clearFilter(range.key);
      else chooseRange(range, low.value === '' ? -Infinity : +low.value, high.value === '' ? Infinity : +high.value);
    };
    low.addEventListener('change', change);
    high.addEventListener('change', change);
    box.append(el('label', {}, el('span', { textContent: range.label }), el('span', { class: 'range' }, low, high)));
    views.push(() => { if (!filters.has(range.key)) low.value = high.value = ''; });
  }
  const ticks = [['near', D.near, 'near the boundary of the pools'], ['leader', D.leader, 'near-duplicates of another row'],
    ['unstable', D.unstable, 'unstable: another mask seed decides otherwise']];
  for (const [key, column, label] of ticks.filter(([, column]) => column)) {
    const test = key === 'leader' ? i => column[i] < D.n : i => column[i] === 1;
    const tick = el('input', { type: 'checkbox', onchange: () => (tick.checked ? setFilter(key, label, test) : clearFilter(key)) });
    box.append(el('label', { class: 'tick' }, tick, el('span', { textContent: label })));
    views.push(() => { tick.checked = filters.has(key); });
  }
}

function drawBar() {
  $('filter-count').textContent = filters.size ? `${whole(shown)} of ${whole(D.n)} rows` : `${whole(D.n)} rows`;
  $('reset').disabled = filters.size === 0;
  redrawn($('chips'), () => $('chips').replaceChildren(...[...filters].map(([key, { label }]) => el('button', {
    type: 'button', class: 'chip', title: 'Remove this filter', dir: 'auto',
    onclick: () => { if (key === 'search') $('search').value = ''; clearFilter(key); },
  }, label, el('span', { 'aria-label': ' remove', textContent: ' ×' })))));
}
