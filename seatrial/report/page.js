(() => {
  "use strict";
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const themes = ["system", "light", "dark"];
  const remember = (theme) => {
    try { localStorage.setItem("seatrial-theme", theme); } catch { /* a page from a file may have no storage */ }
  };
  const remembered = () => {
    try { return localStorage.getItem("seatrial-theme"); } catch { return null; }
  };
  const show = (theme) => {
    if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = "theme: " + theme;
  };
  let theme = themes.includes(remembered()) ? remembered() : "system";
  show(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    show(theme);
    remember(theme);
  });

  // A chart follows its place also where that changes without the window: a scroll bar, a frame, a folded part.
  const widths = new WeakMap();
  const watch = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      const chart = target.querySelector(".js-plotly-plot");
      if (!chart || !contentRect.width || widths.get(target) === contentRect.width) continue;
      widths.set(target, contentRect.width);
      Plotly.Plots.resize(chart);
    }
  });
  for (const place of document.querySelectorAll(".plot")) watch.observe(place);

  const charts = () => document.querySelectorAll(".js-plotly-plot");
  // Paper has another width than the window, and a chart does not notice by itself.
  window.addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) {
      part.dataset.open = part.open;
      part.open = true;
    }
    for (const chart of charts()) {
      Plotly.relayout(chart, { autosize: false, width: chart.closest(".facets") ? 320 : 660 });
    }
  });
  window.addEventListener("afterprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = part.dataset.open === "true";
    for (const chart of charts()) Plotly.relayout(chart, { autosize: true, width: null });
  });
})();
