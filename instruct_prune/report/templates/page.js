async function start() {
  try {
    await unpack();
    startFilters();
    startClusters();
    startSamples();
    startDuplicates();
    startTargets();
    startVisual();
    drawBar();
    await loadPlotly();
    startMap();
    startScore();
    startCurves();
    startShifts();
    startPage();
    document.documentElement.dataset.ready = 'yes';
  } catch (error) {
    $('fatal').hidden = false;
    $('fatal').textContent = `This page could not be drawn (${error.message}). It needs a browser of 2023 or later. All numbers are in report.json beside it.`;
    throw error;
  }
}

function startPage() {
  const root = document.documentElement, system = matchMedia('(prefers-color-scheme: dark)');
  const dark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : system.matches);
  const retheme = () => {
    $('theme').textContent = dark() ? 'Light' : 'Dark';
    Plotly.relayout($('map-plot'), { 'xaxis.gridcolor': css('--line'), 'yaxis.gridcolor': css('--line') });
    views.forEach(view => view());
  };
  $('theme').addEventListener('click', () => { root.dataset.theme = dark() ? 'light' : 'dark'; retheme(); });
  system.addEventListener('change', retheme);
  $('theme').textContent = dark() ? 'Light' : 'Dark';
  $('print').addEventListener('click', () => window.print());
  let before = null;
  window.addEventListener('beforeprint', () => { before = root.dataset.theme ?? ''; root.dataset.theme = 'light'; retheme(); });
  window.addEventListener('afterprint', () => {
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    retheme();
  });
  document.addEventListener('keydown', event => {
    const typing = event.target.closest('input, select, textarea');
    if (event.key === 'Escape' && !$('detail').hidden) hideDetail();
    else if (event.key === '/' && !typing) { event.preventDefault(); $('search').focus(); }
  });
}

start();
