  // The values under the pointer, from the numbers that each chart carries.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  for (const chart of document.querySelectorAll("svg.chart")) {
    const facts = JSON.parse(chart.dataset.chart);
    const [low, high, left, right] = facts.frame;
    const pointer = chart.querySelector(".pointer");
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const place = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
      const wanted = low + (place - left) / (right - left) * (high - low);
      const near = (points) => points.reduce((best, one) =>
        Math.abs(one[0] - wanted) < Math.abs(best[0] - wanted) ? one : best);
      const hits = facts.lines.filter((line) => line.points.length).map((line) => [line.name, ...near(line.points)]);
      if (!hits.length) { return; }
      const x = hits.map((hit) => hit[1]).reduce((best, one) =>
        Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best);
      const at = left + (high > low ? (x - low) / (high - low) : .5) * (right - left);
      pointer.setAttribute("x1", at);
      pointer.setAttribute("x2", at);
      pointer.setAttribute("visibility", "visible");
      const values = hits.filter((hit) => hit[2] !== null).map((hit) => `${hit[0]}: ${hit[2]}`);
      tip.textContent = [`${facts.x} ${x}`, ...values].join("\n");
      tip.hidden = false;
      tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${event.clientY + 14}px`;
    });
    chart.addEventListener("pointerleave", () => {
      tip.hidden = true;
      pointer.setAttribute("visibility", "hidden");
    });
  }
