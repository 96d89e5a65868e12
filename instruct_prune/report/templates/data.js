// What pack.py wrote, unpacked: D.header, and D[name] for each binary column.
const D = {};
const ARRAYS = {
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array, float32: Float32Array,
};

async function gunzip(id) {
  const element = document.getElementById(id);
  const text = element.textContent;
  element.textContent = '';
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(stream).arrayBuffer();
}

async function unpack() {
  const buffer = await gunzip('data');
  const size = new DataView(buffer).getUint32(0, true);
  const meta = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  for (const [name, [type, offset, length]] of Object.entries(meta.arrays)) {
    D[name] = new ARRAYS[type](buffer, 4 + size + offset, length);
  }
  Object.assign(D, meta.header);
  for (let i = 1; i < D.n; i++) D.row[i] += D.row[i - 1]; // row ids were sent as differences
  D.slot = new Int32Array(D.n).fill(-1); // position -> place among the rows whose text is here
  D.picks.forEach((at, slot) => { D.slot[at] = slot; });
  D.selected = D.reasons.length > 0;
}

// The bundle runs because its hash is in the page's policy; no other script can.
async function loadPlotly() {
  const script = document.createElement('script');
  script.textContent = new TextDecoder().decode(await gunzip('plotly'));
  document.head.append(script);
}

function positionOf(row) {
  let low = 0, high = D.n - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (D.row[middle] < row) low = middle + 1; else high = middle;
  }
  return D.row[low] === row ? low : -1;
}

const isKept = at => D.fates[D.fate[at]].startsWith('kept');
const loss = (j, at) => D.subnets[j].low + D[`loss${j}`][at] * (D.subnets[j].high - D.subnets[j].low) / 65535;
const whole = value => value.toLocaleString('en-US');
const short = value => value === null || Number.isNaN(value) ? '–' : value.toFixed(Math.abs(value) < 100 ? 3 : 1);
const percent = share => `${(100 * share).toFixed(1)}%`;
const groupName = at => D.numbers.groups[D.label[at]].name;

// Text goes into the page through textContent only: nothing in the data can become markup.
function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key === 'class') made.className = value;
    else if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== 'list') made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
const $ = id => document.getElementById(id);
