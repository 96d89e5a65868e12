// The queries of a target, each beside the rows that it took.
function startTargets() {
  const target = D.numbers.target;
  if (!target) return;
  const state = { limit: 6 };
  const draw = () => {
    redrawn($('queries'), () => $('queries').replaceChildren(...target.queries.slice(0, state.limit).map(query => el('div', { class: 'group' },
      el('div', { class: 'leader' }, el('b', { dir: 'auto', textContent: `${query.task}, row ${query.row}, took ${whole(query.took.length)}` }), el('span', { class: 'words', dir: 'auto', textContent: query.text })),
      el('ul', {}, ...query.took.slice(0, 3).map((row, k) => el('li', {}, el('small', { textContent: `row ${row}, similarity ${short(query.similarity[k])} ` }), sampleButton(positionOf(row), 160))),
        ...(query.took.length > 3 ? [el('li', { textContent: `and ${whole(query.took.length - 3)} more` })] : []))))));
    const more = $('queries-more');
    more.hidden = target.queries.length <= state.limit;
    more.textContent = `Show ${whole(Math.min(24, target.queries.length - state.limit))} more queries`;
    more.onclick = () => { state.limit += 24; draw(); };
  };
  draw();
}

// Whether some query or task took the row.
const wasTaken = at => D.task && D.task[at] < D.numbers.target.tasks.length;

function takenBy(at) {
  if (!wasTaken(at)) return [];
  const { tasks, queries } = D.numbers.target, query = queries[D.query[at]];
  const who = query ? `${query.task}, row ${query.row}` : tasks[D.task[at]].name;
  return [['taken by', `${who}, at turn ${whole(D.turn[at] + 1)}`], ...(query ? [['its words', query.text]] : [])];
}
