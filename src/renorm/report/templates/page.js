"use strict";
(() => {
  const { template, figures } = JSON.parse(document.getElementById("figures").textContent);
  const charts = [...document.querySelectorAll("[data-figure]")];
  const root = document.documentElement;
  const dark = matchMedia("screen and (prefers-color-scheme: dark)");

  // "var(--NAME)", with two digits of opacity behind it or without, as the style sheet has it now
  const coloured = (value, style) => {
    if (typeof value === "string") {
      const found = /^var\((--[\w-]+)\)([0-9a-f]{2})?$/.exec(value);
      return found ? style.getPropertyValue(found[1]).trim() + (found[2] ?? "") : value;
    }
    if (Array.isArray(value)) return value.map((one) => coloured(one, style));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, style)]));
  };

  const draw = (chart) => {
    const { data, layout } = figures[chart.dataset.figure];
    const figure = coloured({ data, layout: { ...layout, template } }, getComputedStyle(root));
    Plotly.react(chart, figure.data, figure.layout, { displayModeBar: false, responsive: true });
    chart.dataset.drawn = "";
  };
  const drawn = () => charts.filter((chart) => "drawn" in chart.dataset);

  // one at a time, so that the page can be read and scrolled meanwhile
  const drawNext = () => {
    const next = charts.find((chart) => !("drawn" in chart.dataset));
    if (!next) return;
    draw(next);
    setTimeout(drawNext);
  };
  setTimeout(drawNext);
  dark.addEventListener("change", () => drawn().forEach(draw));

  // on paper: light, as narrow as a sheet, and nothing folded away
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((one) => { one.open = true; });
    root.classList.add("printing");
    charts.forEach(draw);
    charts.forEach((chart) => Plotly.Plots.resize(chart));
  });
  addEventListener("afterprint", () => {
    folded.forEach((one) => { one.open = false; });
    root.classList.remove("printing");
    charts.forEach(draw);
    charts.forEach((chart) => Plotly.Plots.resize(chart));
  });
})();
