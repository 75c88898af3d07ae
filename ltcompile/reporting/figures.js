(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll("[data-figure]")];
  const root = document.documentElement;
  const colours = () => {
    const style = getComputedStyle(root), ink = style.getPropertyValue("--ink").trim(), rule = style.getPropertyValue("--rule").trim();
    const axis = name => ({[name + ".gridcolor"]: rule, [name + ".linecolor"]: rule, [name + ".tickcolor"]: rule, [name + ".zerolinecolor"]: rule});
    return {"font.color": ink, "hoverlabel.bgcolor": style.getPropertyValue("--tile").trim(), "hoverlabel.font.color": ink, ...axis("xaxis"), ...axis("yaxis")};
  };
  const paint = size => plots.forEach(plot => Plotly.relayout(plot, {...colours(), ...size}));
  plots.forEach(plot => {
    const figure = figures[plot.dataset.figure];
    Plotly.newPlot(plot, figure.data, figure.layout, {displayModeBar: false, responsive: true});
  });
  paint({});
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint({}));
  const folded = () => document.querySelectorAll("details");
  let opened = [];
  addEventListener("beforeprint", () => {  // paper: light, as wide as a page, nothing folded away
    root.classList.add("printing");
    opened = [...folded()].filter(part => !part.open);
    opened.forEach(part => { part.open = true; });
    paint({width: 680});
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    opened.forEach(part => { part.open = false; });
    paint({width: null, autosize: true});
  });
})();
