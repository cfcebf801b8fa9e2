"use strict";
// Without this script the page is complete; with it a pointer, a finger or the arrow keys read the values of a curve.

const data = JSON.parse(document.getElementById("data").textContent);
const number = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US")
  : value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4))));

for (const [place, figure] of document.querySelectorAll("figure.chart").entries()) {
  const { series } = data[place], plot = figure.querySelector(".curves"), line = figure.querySelector(".at");
  const steps = [...new Set(series.flatMap(({ points }) => points.map(([step]) => step)))].sort((a, b) => a - b);
  const first = steps[0], last = steps[steps.length - 1];
  const size = plot.viewBox.baseVal.width;
  let at = -1;

  const read = (i) => {
    at = Math.min(Math.max(i, 0), steps.length - 1);
    const step = steps[at], parts = [];
    for (const { name, points } of series) {
      const found = points.find(([there]) => there === step);
      if (found) parts.push((name ? name + " " : "") + number(found[1]));
    }
    const x = last === first ? size / 2 : (step - first) / (last - first) * size;
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    line.classList.add("on");
    figure.querySelector(".reading").textContent = `Step ${number(step)}: ${parts.join(", ")}`;
  };

  const point = (event) => {
    const box = plot.getBoundingClientRect(), wanted = first + (event.clientX - box.left) / box.width * (last - first);
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < wanted) low = middle + 1; else high = middle;
    }
    read(low > 0 && wanted - steps[low - 1] < steps[low] - wanted ? low - 1 : low);
  };
  plot.setAttribute("tabindex", 0);
  plot.onpointermove = point;
  plot.onpointerdown = point;
  plot.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); read(at + by); }
  };
}
