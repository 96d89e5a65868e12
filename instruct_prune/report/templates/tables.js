// Clusters, samples and duplicates as tables. Everything that can be clicked is a button, so the keyboard reaches it.
const PAGE = 15;

const rowFacts = at => [`row ${D.row[at]}`, D.selected ? (isKept(at) ? 'kept' : 'dropped') : '', `score ${short(D.score[at])}`,
  !D.numbers.facts.tokens ? '' : `${whole(D.response[at])} tokens`, D.numbers.group_kind ? groupName(at) : ''].filter(Boolean).join(' · ');

function textOf(at, limit) {
  if (D.slot[at] < 0) return `(the text of this row is not in the page: ${whole(D.picks.length)} of ${whole(D.n)} are, --samples N takes more)`;
  const turns = D.texts[D.slot[at]][2].filter(([role]) => role !== 'system');
  const text = turns.map(([, words]) => words.trim()).filter(Boolean).join(' → ');
  return text.length > limit ? `${text.slice(0, limit)}…` : text;
}

function sortButton(label, key, state, redraw) {
  const active = state.key === key;
  return el('button', {
    type: 'button', class: active ? 'sort active' : 'sort', 'data-key': `sort ${key}`, title: `Sort by ${label.toLowerCase()}`,
    onclick: () => { state.down = active ? !state.down : state.first(key); state.key = key; redraw(); },
  }, label + (active ? (state.down ? ' ↓' : ' ↑') : ''));
}

const ariaSort = (state, ...keys) => (keys.includes(state.key) ? (state.down ? 'descending' : 'ascending') : 'none');

// ---- clusters ----

function startClusters() {
  const { groups, group_kind: kind } = D.numbers;
  if (!kind) { $('clusters-panel').hidden = true; return; }
  $('clusters-title').textContent = kind === 'cluster' ? 'Clusters' : 'Strata';
  const field = FIELDS.find(f => f.key === 'group');
  const state = { key: 'size', down: true, limit: 12, first: key => key !== 'name' };
  const values = {
    name: g => groups[g].name, size: g => groups[g].size, kept: g => groups[g].kept, share: g => groups[g].kept / (groups[g].size || 1),
    score: g => groups[g].mean_score, here: g => state.here[g],
  };
  const draw = () => {
    state.here = countCodes(i => D.label[i], groups.length, () => true);
    let order = groups.map((_, g) => g).filter(g => groups[g].size && (!filters.size || state.here[g]));
    order.sort((a, b) => compareValues(values[state.key](a), values[state.key](b)) * (state.down ? -1 : 1) || a - b);
    const total = order.length;
    order = order.slice(0, state.limit);
    const heads = [['Name', 'name'], ['Rows', 'size'], ...(filters.size ? [['In filter', 'here']] : []), ...(D.selected ? [['Kept', 'kept'], ['Kept share', 'share']] : []), ['Mean score', 'score']];
    const head = el('tr', {}, ...heads.map(([label, key]) => el('th', { scope: 'col', class: key === 'name' ? '' : 'num', 'aria-sort': ariaSort(state, key) }, sortButton(label, key, state, draw))),
      ...D.numbers.others.map(other => el('th', { scope: 'col', class: 'num', textContent: `Kept in ${other.name}` })), el('th', { scope: 'col', textContent: 'Typical samples' }));
    const rows = order.map(g => clusterRow(groups[g], g, field, state));
    redrawn($('clusters'), () => $('clusters').replaceChildren(el('thead', {}, head), el('tbody', {}, ...rows)));
    $('clusters-note').textContent = `${whole(total)} ${total === 1 ? kind : kind === 'stratum' ? 'strata' : `${kind}s`}. Click a name to filter all views.`;
    const more = $('clusters-more');
    more.hidden = total <= state.limit;
    more.textContent = `Show all ${whole(total)}`;
    more.onclick = () => { state.limit = groups.length; draw(); };
  };
  draw();
  views.push(draw);
}

function clusterRow(group, g, field, state) {
  const chosen = filters.get('group')?.label === `${field.label}: ${group.name}`;
  const name = el('button', { type: 'button', class: 'name', 'aria-pressed': chosen, 'data-group': g, 'data-key': `group ${g}`, dir: 'auto', textContent: group.name, onclick: () => toggleField(field, g) });
  const share = el('td', { class: 'num sharebar', textContent: percent(group.kept / (group.size || 1)) });
  share.style.setProperty('--share', group.kept / (group.size || 1));
  const typical = el('td', { class: 'typical' }, ...group.typical.map(row => sampleButton(positionOf(row), 110)));
  return el('tr', { class: chosen ? 'chosen' : '' }, el('th', { scope: 'row' }, name), el('td', { class: 'num', textContent: whole(group.size) }),
    ...(filters.size ? [el('td', { class: 'num', textContent: whole(state.here[g]) })] : []),
    ...(D.selected ? [el('td', { class: 'num', textContent: whole(group.kept) }), share] : []),
    el('td', { class: 'num', textContent: short(group.mean_score) }),
    ...D.numbers.others.map(other => el('td', { class: 'num', textContent: whole(other.group_kept[g]) })), typical);
}

const compareValues = (a, b) => (typeof a === 'string' ? a.localeCompare(b, 'en', { numeric: true }) : a - b);

const WHY = {
  budget: 'dropped: others came first and the budget was full', duplicate: 'dropped: another row stands for it', contaminated: 'dropped: it repeats a row of a test', 'too hard': 'dropped: the method cuts off the hardest rows',
  'too similar': 'dropped: too near to a row kept before it', 'no score': 'dropped: what the selection goes by could not be measured of it', 'easy pool': 'kept: drawn from the easy pool', 'hard pool': 'kept: drawn from the hard pool',
  picked: 'kept: by the rule of the method', 'must keep': 'kept: you said so',
};

function sampleButton(at, limit) {
  const text = el('span', { class: 'words', textContent: textOf(at, limit), dir: 'auto' });
  return el('button', { type: 'button', class: 'sample', title: rowFacts(at), 'data-key': `row ${at}`, onclick: () => showDetail(at) }, ...pictureOf(at, 'thumb'), text);
}

function pictureOf(at, kind) {
  const address = D.slot[at] < 0 ? '' : D.texts[D.slot[at]][3];
  return address ? [el('img', { class: kind, src: address, alt: `picture of row ${D.row[at]}`})] : [];
}

// ---- samples: two sides ----

const SAMPLES = { key: 'score', down: true, first: key => key === 'score' || key === 'response', sides: [] };

function startSamples() {
  const choice = $('sides'), options = [];
  if (D.selected) options.push(['kept and dropped', ['Kept', i => isKept(i)], ['Dropped', i => !isKept(i)]]);
  else options.push(['scored', ['Scored', () => true]]);
  D.numbers.others.forEach((other, o) => {
    const theirs = i => D[`other${o}`][i] === 2;
    options.push([`only here, only in ${other.name}`, [`Kept in ${D.numbers.facts.name} only`, i => isKept(i) && !theirs(i)], [`Kept in ${other.name} only`, i => theirs(i) && !isKept(i)]]);
  });
  if (D.selected && D.near) {
    options.push(['near the boundary', ['Kept, near the boundary', i => isKept(i) && D.near[i]], ['Dropped, near the boundary', i => !isKept(i) && D.near[i]]]);
  }
  choice.append(...options.map(([name], o) => el('option', { value: o, textContent: name })));
  $('sides-label').hidden = options.length < 2;
  const choose = () => {
    SAMPLES.sides = options[+choice.value || 0].slice(1).map(([title, test]) => ({ title, test, limit: PAGE }));
    drawSamples();
  };
  choice.addEventListener('change', choose);
  choose();
  views.push(() => { SAMPLES.sides.forEach(side => { side.limit = PAGE; }); drawSamples(); });
}

const SORTS = {
  row: i => D.row[i], score: i => D.score[i], response: i => D.response[i], group: i => groupName(i),
  reason: i => (D.selected ? D.reasons[D.reason[i]] : ''),
};

function drawSamples() {
  const sign = SAMPLES.down ? -1 : 1, value = SORTS[SAMPLES.key];
  const inPage = [...D.picks].filter(i => mask[i]);
  inPage.sort((a, b) => compareValues(value(a), value(b)) * sign || a - b);
  $('samples-note').textContent = inPage.length === shown
    ? `${whole(shown)} rows. Click a text to read it whole.`
    : `${whole(inPage.length)} of the ${whole(shown)} rows are in the page with their text (--samples N takes more). Click a text to read it whole.`;
  const sides = SAMPLES.sides.map(side => sideTable(side, inPage.filter(side.test)));
  redrawn($('sides-tables'), () => $('sides-tables').replaceChildren(...sides));
}

function sideTable(side, rows) {
  const redraw = () => drawSamples();
  const column = (label, key) => el('th', { scope: 'col', class: 'num', 'aria-sort': ariaSort(SAMPLES, key) }, sortButton(label, key, SAMPLES, redraw));
  const marks = [...(D.numbers.group_kind ? [sortButton(D.numbers.group_kind === 'cluster' ? 'Cluster' : 'Stratum', 'group', SAMPLES, redraw)] : []), ...(D.selected ? [sortButton('Reason', 'reason', SAMPLES, redraw)] : [])];
  const head = el('tr', {}, column('Row', 'row'), column('Score', 'score'), ...(!D.numbers.facts.tokens ? [] : [column('Tokens', 'response')]), el('th', { scope: 'col', 'aria-sort': ariaSort(SAMPLES, 'group', 'reason') }, el('span', { textContent: 'Sample' }), ...(marks.length ? [el('small', { class: 'by', textContent: 'sort by' }), ...marks] : [])));
  const body = rows.slice(0, side.limit).map(at => el('tr', { class: at === clicked ? 'chosen' : '', 'data-row': D.row[at] },
    el('td', { class: 'num', textContent: D.row[at] }), el('td', { class: 'num', textContent: short(D.score[at]) }), ...(!D.numbers.facts.tokens ? [] : [el('td', { class: 'num', textContent: whole(D.response[at]) })]),
    el('td', {}, sampleButton(at, 200), el('div', { class: 'marks' }, ...marksOf(at)))));
  const table = el('div', { class: 'scroll' }, el('table', { class: 'samples', 'aria-label': side.title }, el('thead', {}, head), el('tbody', {}, ...body)));
  const more = el('button', { type: 'button', class: 'more no-print', textContent: `Show ${whole(Math.min(4 * PAGE, rows.length - side.limit))} more`, onclick: () => { side.limit += 4 * PAGE; drawSamples(); } });
  more.hidden = rows.length <= side.limit;
  return el('div', { class: 'side' }, el('h3', { dir: 'auto' }, `${side.title} `, el('small', { textContent: whole(rows.length) })), rows.length ? table : el('p', { class: 'note', textContent: 'No row passes the filters.' }), more);
}

function marksOf(at) {
  const marks = [];
  if (D.numbers.group_kind) {
    const field = FIELDS.find(f => f.key === 'group');
    marks.push(el('button', { type: 'button', class: 'mark', dir: 'auto', textContent: groupName(at), title: 'Filter by this', onclick: () => toggleField(field, D.label[at]) }));
  }
  if (D.selected) marks.push(el('span', { class: isKept(at) ? 'mark is-kept' : 'mark', textContent: D.reasons[D.reason[at]], title: WHY[D.reasons[D.reason[at]]] ?? '' }));
  if (wasTaken(at)) marks.push(el('span', { class: 'mark', dir: 'auto', textContent: takenBy(at)[0][1], title: 'who took it' }));
  if (D.unstable?.[at]) marks.push(el('span', { class: 'mark', textContent: 'unstable', title: 'another mask seed decides otherwise' }));
  if (D.near?.[at]) marks.push(el('span', { class: 'mark', textContent: 'near the boundary' }));
  return marks;
}

// ---- duplicates ----

function startDuplicates() {
  const groups = D.numbers.duplicates;
  if (!groups.length) return;
  $('duplicates-panel').hidden = false;
  const state = { limit: 10 };
  const draw = () => {
    const found = groups.filter(({ row, others }) => [row, ...others].some(r => mask[positionOf(r)]));
    const total = D.numbers.counts.duplicates;
    $('duplicates-note').textContent = `${whole(total)} rows are near-duplicates of another, which stands for them. ${whole(found.length)} groups, the largest first.`;
    $('duplicates').replaceChildren(...found.slice(0, state.limit).map(({ row, others }) => {
      const leader = positionOf(row);
      return el('div', { class: 'group' }, el('div', { class: 'leader' }, el('b', { textContent: `row ${row}, ${isKept(leader) ? 'kept' : 'dropped'}, stands for ${others.length}` }), sampleButton(leader, 220)),
        el('ul', {}, ...others.slice(0, 8).map(r => el('li', {}, el('small', { textContent: `row ${r} ` }), sampleButton(positionOf(r), 160))), ...(others.length > 8 ? [el('li', { textContent: `and ${whole(others.length - 8)} more` })] : [])));
    }));
    const more = $('duplicates-more');
    more.hidden = found.length <= state.limit;
    more.textContent = `Show ${whole(Math.min(50, found.length - state.limit))} more`;
    more.onclick = () => { state.limit += 50; draw(); };
  };
  draw();
  views.push(draw);
}
