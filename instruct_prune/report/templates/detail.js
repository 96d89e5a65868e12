// One row, read whole: its turns, its losses, its neighbours.
let opener = null;

function showDetail(at) {
  const panel = $('detail');
  if (panel.hidden) opener = document.activeElement;
  clicked = at;
  const close = el('button', { type: 'button', class: 'close', 'aria-label': 'Close', textContent: '×', onclick: hideDetail });
  panel.replaceChildren(
    el('div', { class: 'head' }, el('h2', { id: 'detail-title', textContent: `Row ${D.row[at]}` }), close),
    el('p', { class: 'marks' }, ...(D.selected ? [el('span', { class: isKept(at) ? 'mark is-kept' : 'mark', textContent: isKept(at) ? 'kept' : 'dropped' })] : []), ...marksOf(at)),
    facts(at), turns(at), duplicatesOf(at), neighbours(at),
  );
  panel.hidden = false;
  document.body.classList.add('with-detail');
  panel.scrollTop = 0;
  close.focus({ preventScroll: true });
  drawClicked();
}

function hideDetail() {
  $('detail').hidden = true;
  document.body.classList.remove('with-detail');
  clicked = -1;
  opener?.focus?.({ preventScroll: true });
  drawClicked();
}

function drawClicked() {
  if (D.numbers.families.length) drawCurves();
  paintSoon();
  document.querySelectorAll('tr[data-row]').forEach(tr => tr.classList.toggle('chosen', clicked >= 0 && +tr.dataset.row === D.row[clicked]));
}

function facts(at) {
  const list = el('dl', { class: 'facts' });
  const add = (name, value) => list.append(el('dt', { textContent: name, dir: 'auto' }), el('dd', { textContent: value, dir: 'auto' }));
  add('score', short(D.score[at]));
  if (D.numbers.facts.tokens) add('tokens', `${whole(D.prompt[at])} prompt, ${whole(D.response[at])} response`);
  D.subnets.forEach((subnet, j) => add(`loss, ${subnet.name}`, short(loss(j, at))));
  FIELDS.filter(f => f.key.startsWith('column')).forEach(field => add(field.label, field.values[field.of(at)]));
  takenBy(at).forEach(([name, value]) => add(name, value));
  if (D.similarity) add(`similarity by ${D.numbers.target.by}`, short(D.similarity[at]));
  RANGES.slice(3).forEach(range => add(range.label, short(range.of(at))));
  if (D.slot[at] >= 0) {
    const [source, line] = D.texts[D.slot[at]];
    add('from', `${source}, line ${line}`);
  }
  return list;
}

function turns(at) {
  const box = el('div', { class: 'turns' });
  if (D.slot[at] < 0) {
    box.append(el('p', { class: 'note', textContent: textOf(at, 0) }));
    return box;
  }
  box.append(...pictureOf(at, 'picture'));
  for (const [role, text, trained] of D.texts[D.slot[at]][2]) {
    box.append(el('div', { class: trained ? 'turn trained' : 'turn' }, el('span', { class: 'role', textContent: trained ? `${role} (scored)` : role }), el('pre', { textContent: text, dir: 'auto' })));
  }
  return box;
}

function duplicatesOf(at) {
  const leader = D.leader && D.leader[at] < D.n ? D.leader[at] : -1;
  if (leader < 0) return '';
  return el('div', {}, el('h3', { textContent: 'Stood for by' }), el('ul', { class: 'plainlist' }, listed(leader, '')));
}

function neighbours(at) {
  const slot = D.slot[at];
  if (slot < 0 || !D.neighbors) return '';
  const items = [];
  for (let k = slot * D.neighbors; k < (slot + 1) * D.neighbors; k++) items.push(listed(D.picks[D.neighbor[k]], ` · cosine ${D.cosine[k].toFixed(3)}`));
  const scope = D.picks.length < D.n ? ' among the rows with text' : '';
  return el('div', {}, el('h3', { textContent: `Nearest neighbours${scope}` }), el('ul', { class: 'plainlist' }, ...items));
}

const listed = (at, more) => el('li', {}, el('small', { dir: 'auto', textContent: rowFacts(at) + more }), sampleButton(at, 180));
