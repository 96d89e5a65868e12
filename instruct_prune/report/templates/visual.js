// Rows whose picture misleads the model, and rows that need theirs most.
function startVisual() {
  const visual = D.numbers.visual;
  if (!visual) return;
  for (const side of ['lowest', 'highest']) {
    const list = $(`visual-${side}`), more = $(`visual-${side}-more`), state = { limit: 8 };
    const draw = () => {
      const rows = visual[side].filter(([row]) => mask[positionOf(row)]);
      redrawn(list, () => list.replaceChildren(...rows.slice(0, state.limit).map(([row, value]) => listed(positionOf(row), ` · visual ${short(value)}`))));
      more.hidden = rows.length <= state.limit;
      more.textContent = `Show ${whole(Math.min(24, rows.length - state.limit))} more`;
      more.onclick = () => { state.limit += 24; draw(); };
    };
    draw();
    views.push(draw);
  }
}

