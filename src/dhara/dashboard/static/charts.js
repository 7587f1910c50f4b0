// Charts: `<div class="chart" data-chart='{"at": [...], "series": [{"label", "kind", "values"}]}'>`, drawn by uPlot.
// Colours are those of the stylesheet, so that they follow the theme.
(() => {
  "use strict";
  const drawn = new WeakMap();
  const HEIGHT = 150;
  // light-dark() is resolved only where it is used as a colour.
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const faint = (name) => colour(name).replace(/^rgb\(([^)]+)\)$/, "rgba($1, 0.14)");

  // The hours of the day in the reader's own zone; a chart spans an hour.
  const MINUTES = [1, 2, 5, 10, 15, 30, 60, 120].map((n) => n * 60);
  const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  // While no minute is pointed at, the legend tells of the last.
  const latest = (plot) => plot.setLegend({ idx: plot.data[0].length - 1 }, false);

  function options(chart, width) {
    const axis = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    return {
      width,
      height: HEIGHT,
      padding: [8, 18, 0, 0],
      cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      legend: { show: true, live: true },
      hooks: { setCursor: [(plot) => plot.cursor.idx == null && latest(plot)] },
      scales: { y: { range: (_u, _low, high) => [0, Math.max(1, high * 1.1)] } },
      axes: [{ ...axis, space: 70, size: 28, incrs: MINUTES, values: (_u, ticks) => ticks.map(clock) }, { ...axis, size: 44, space: 34, values: (_u, ticks) => ticks.map((n) => (n >= 1000 ? `${n / 1000}k` : n)) }],
      series: [
        { label: "At", value: (_u, at) => (at == null ? "–" : clock(at)) },
        ...chart.series.map((one) => ({
          label: one.label,
          stroke: colour(one.kind),
          fill: faint(one.kind),
          width: 1.5,
          points: { show: false },
          value: (_u, n) => (n == null ? "–" : n.toLocaleString("en", { maximumFractionDigits: 1 })),
        })),
      ],
    };
  }

  function draw(box, afresh) {
    const text = box.dataset.chart;
    const before = drawn.get(box);
    if (before && before.text === text && !afresh) return;
    const chart = JSON.parse(text);
    const data = [chart.at, ...chart.series.map((one) => one.values)];
    if (before && !afresh) {
      before.text = text;
      before.plot.setData(data);
      if (before.plot.cursor.idx == null) latest(before.plot);
      return;
    }
    if (before) before.plot.destroy();
    box.replaceChildren();
    const plot = new uPlot(options(chart, Math.max(200, box.clientWidth)), data, box);
    latest(plot);
    drawn.set(box, { plot, text });
  }

  const sizes = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const found = drawn.get(entry.target);
      const width = Math.max(200, Math.floor(entry.contentRect.width));
      if (found && found.plot.width !== width) found.plot.setSize({ width, height: HEIGHT });
    }
  });

  window.dharaCharts = (afresh = false) => {
    for (const box of document.querySelectorAll(".chart[data-chart]")) {
      draw(box, afresh);
      sizes.observe(box);
    }
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.dharaCharts(true));
  window.dharaCharts();
})();
