// Points and lines over two axes, as SVG: hover, keyboard, whiskers, labels that do not collide.

/**
 * Draw a chart into `host`, again whenever its width changes.
 *
 * spec.x, spec.y: {label, log, format, min, max, ticks}
 * spec.series: [{name, colour, shape, line, hollow, points}]
 * a point: {x, y, low, high, near, far, title, lines, label}; low to high and near to far are
 * whiskers up and across
 * spec.front: points that a step line joins.
 */
function drawChart(host, spec) {
  const crowded = spec.series.flatMap((series) => series.points).length > 12;
  const box = make("div", { class: crowded ? "chart crowded" : "chart" });
  host.append(
    make("p", { class: "axis-name" }, `↑ ${spec.y.label}`),
    box,
    make("p", { class: "axis-name end" }, `${spec.x.label} →`),
  );
  const tip = makeTip(box);
  let width = 0;
  const draw = () => {
    const now = Math.round(box.clientWidth);
    if (!now || now === width) return;
    width = now;
    box.querySelector("svg")?.remove();
    box.prepend(renderChart(spec, width, tip));
  };
  new ResizeObserver(draw).observe(box);
  draw();
}

function renderChart(spec, width, tip) {
  const narrow = width < 520;
  const height = Math.round(Math.min(460, Math.max(300, width * (narrow ? 0.95 : 0.52))));
  const room = { left: narrow ? 50 : 62, right: narrow ? 10 : 18, top: 14, bottom: 26 };
  // Ours lie above the others', and of those the first.
  const above = (series) => Number(series.ours === true);
  const layers = [...spec.series].reverse().sort((a, b) => above(a) - above(b));
  const points = layers.flatMap((series) => series.points.map((point) => ({ ...point, series })));
  const x = scale(spec.x, points.flatMap((p) => [p.x, p.far ?? p.x]), room.left, width - room.right, narrow ? 4 : 7);
  const yValues = points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]);
  const y = scale(spec.y, yValues, height - room.bottom, room.top, 5);
  for (const point of points) Object.assign(point, { left: x.at(point.x), top: y.at(point.y) });
  const svg = make("svg", {
    viewBox: `0 0 ${width} ${height}`,
    width: "100%",
    role: "group",
    tabindex: "0",
    "aria-label": `${spec.title}. ${points.length} points; arrow keys move between them.`,
  });
  svg.append(axes(spec, x, y, { width, height, room }));
  if (spec.front?.length > 1) svg.append(frontLine(spec.front, x, y));
  for (const series of layers) if (series.line) svg.append(seriesLine(series, x, y));
  const marks = points.map((point) => drawPoint(point, x, y));
  svg.append(...marks);
  svg.append(placeLabels(points, { width, height, room }));
  connect(svg, points, marks, tip);
  return svg;
}

/** A linear or logarithmic scale with round ticks. */
function scale(axis, values, from, to, wanted) {
  const known = values.filter((value) => Number.isFinite(value) && (!axis.log || value > 0));
  let low = axis.min ?? Math.min(...known);
  let high = axis.max ?? Math.max(...known);
  if (low === high) [low, high] = axis.log ? [low / 2, high * 2] : [low - 1, high + 1];
  if (axis.log) return logScale(axis, low, high, from, to, wanted);
  const step = roundStep((high - low) / wanted);
  if (axis.min === undefined) low = Math.floor(low / step) * step;
  if (axis.max === undefined) high = Math.ceil(high / step - 1e-9) * step;
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-6; n++) {
    ticks.push(Number((n * step).toPrecision(12)));
  }
  return { ticks, at: (value) => from + ((value - low) / (high - low)) * (to - from) };
}

function logScale(axis, low, high, from, to, wanted) {
  const pad = axis.values ? 1.18 : 1.12;
  [low, high] = [low / pad, high * pad];
  const at = (value) => {
    const clipped = Math.max(value, low);
    return from + (Math.log(clipped / low) / Math.log(high / low)) * (to - from);
  };
  if (axis.values) return { ticks: thin(axis.values, at), at };
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    const span = Math.log10(high / low);
    for (const digit of span > 3 ? [1] : span > 1.2 ? [1, 3] : [1, 2, 3, 5, 7]) {
      const value = digit * 10 ** power;
      if (value >= low && value <= high) ticks.push(value);
    }
  }
  return { ticks: ticks.slice(0, wanted * 3), at };
}

/** Ticks that are at least 46 pixels apart, the last one kept. */
function thin(ticks, at) {
  const kept = [];
  for (const tick of [...ticks].reverse()) {
    if (!kept.length || Math.abs(at(kept[0]) - at(tick)) >= 46) kept.unshift(tick);
  }
  return kept;
}

function roundStep(raw) {
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 2.5, 5, 10].map((digit) => digit * power).find((step) => step >= raw * 0.999);
}

function axes(spec, x, y, { width, height, room }) {
  const bottom = height - room.bottom;
  const group = make("g", { class: "axes", "aria-hidden": "true" });
  for (const tick of y.ticks) {
    const top = y.at(tick);
    group.append(
      make("line", { class: "grid", x1: room.left, x2: width - room.right, y1: top, y2: top }),
      make("text", { x: room.left - 8, y: top + 4, "text-anchor": "end" }, spec.y.format(tick)),
    );
  }
  for (const tick of x.ticks) {
    const left = x.at(tick);
    group.append(
      make("line", { class: "tick", x1: left, x2: left, y1: bottom, y2: bottom + 5 }),
      make("text", { x: left, y: bottom + 18, "text-anchor": "middle" }, spec.x.format(tick)),
    );
  }
  group.append(
    make("line", { class: "base", x1: room.left, x2: width - room.right, y1: bottom, y2: bottom }),
  );
  return group;
}

function seriesLine(series, x, y) {
  const points = [...series.points].sort((a, b) => a.x - b.x);
  return make("polyline", {
    class: "line",
    points: points.map((point) => `${x.at(point.x)},${y.at(point.y)}`).join(" "),
    style: `stroke:${series.colour}`,
    "stroke-dasharray": series.dashed ? "5 4" : null,
  });
}

function frontLine(front, x, y) {
  let path = "";
  for (const [index, point] of front.entries()) {
    const [left, top] = [x.at(point.x), y.at(point.y)];
    path += index ? `H${left}V${top}` : `M${left},${top}`;
  }
  return make("path", { class: "front", d: path });
}

function drawPoint(point, x, y) {
  const { left, series } = point;
  const group = make("g", { class: "point", style: `color:${series.colour}` });
  if (point.low !== undefined && point.low !== null && point.high !== null) {
    const [top, bottom] = [y.at(point.high), y.at(point.low)];
    group.append(
      make("path", {
        class: "whisker",
        d: `M${left},${top}V${bottom}M${left - 4},${top}h8M${left - 4},${bottom}h8`,
      }),
    );
  }
  if (point.near !== undefined && point.near !== null) {
    const [from, to] = [x.at(point.near), x.at(point.far)];
    const top = point.top;
    group.append(
      make("path", {
        class: "whisker",
        d: `M${from},${top}H${to}M${from},${top - 4}v8M${to},${top - 4}v8`,
      }),
    );
  }
  group.append(shape(series.shape, left, point.top, 5, series.hollow));
  return group;
}

/** A mark of a series, so that colour is never the only sign. */
function shape(name, x, y, r, hollow) {
  const paths = {
    circle: `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
    square: `M${x - r + 0.5},${y - r + 0.5}h${2 * r - 1}v${2 * r - 1}h${1 - 2 * r}Z`,
    diamond: `M${x},${y - r - 1.5}l${r + 1.5},${r + 1.5}l${-r - 1.5},${r + 1.5}l${-r - 1.5},${-r - 1.5}Z`,
    up: `M${x},${y - r - 1}l${r + 1},${2 * r}h${-2 * r - 2}Z`,
    down: `M${x},${y + r + 1}l${r + 1},${-2 * r}h${-2 * r - 2}Z`,
    cross: `M${x - r},${y - r}L${x + r},${y + r}M${x + r},${y - r}L${x - r},${y + r}`,
    plus: `M${x - r - 1},${y}h${2 * r + 2}M${x},${y - r - 1}v${2 * r + 2}`,
    bar: `M${x - r - 1},${y - 2}h${2 * r + 2}v4h${-2 * r - 2}Z`,
  };
  const open = hollow || name === "cross" || name === "plus";
  return make("path", { class: open ? "mark open" : "mark", d: paths[name] });
}

/** Names beside their points, where there is room for them. */
function placeLabels(points, { width, height, room }) {
  const group = make("g", { class: "labels", "aria-hidden": "true" });
  const taken = points.map((p) => [p.left - 7, p.top - 7, p.left + 7, p.top + 7]);
  const clear = (box) =>
    box[0] >= room.left && box[2] <= width && box[1] >= 2 && box[3] <= height - room.bottom &&
    taken.every((t) => box[2] < t[0] || box[0] > t[2] || box[3] < t[1] || box[1] > t[3]);
  for (const point of points) {
    if (!point.label) continue;
    const long = point.label.length * 6.4 + 2;
    const { left: x, top: y } = point;
    const spots = [
      [x + 10, y + 4, "start"], [x - 10, y + 4, "end"], [x + 8, y - 9, "start"],
      [x + 8, y + 17, "start"], [x - 8, y - 9, "end"], [x - 8, y + 17, "end"],
    ];
    for (const [left, base, anchor] of spots) {
      const first = anchor === "start" ? left : left - long;
      const box = [first, base - 11, first + long, base + 3];
      if (!clear(box)) continue;
      taken.push(box);
      group.append(make("text", { x: left, y: base, "text-anchor": anchor }, point.label));
      break;
    }
  }
  return group;
}

/** Show a point's values when the pointer is near it, or the keyboard chose it. */
function connect(svg, points, marks, tip) {
  const order = points.map((_, index) => index).sort((a, b) =>
    points[a].left - points[b].left || points[a].top - points[b].top,
  );
  let current = -1;
  const show = (index, aloud) => {
    if (current >= 0) marks[current].classList.remove("on");
    current = index;
    if (index < 0) return tip.hide();
    marks[index].classList.add("on");
    marks[index].parentNode.append(marks[index]); // above its neighbours
    const lines = [...points[index].lines, ...beneath(points, index)];
    tip.show({ ...points[index], lines }, svg);
    if (aloud) say([points[index].title, ...lines].join("; "));
  };
  svg.addEventListener("pointermove", (event) => show(nearest(event)));
  svg.addEventListener("pointerdown", (event) => show(nearest(event)));
  svg.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    const at = order.indexOf(current);
    const next = {
      ArrowRight: Math.min(order.length - 1, at + 1),
      ArrowDown: Math.min(order.length - 1, at + 1),
      ArrowLeft: Math.max(0, at - 1),
      ArrowUp: Math.max(0, at - 1),
      Home: 0,
      End: order.length - 1,
    }[event.key];
    if (event.key === "Escape") show(-1);
    else if (next !== undefined && order.length) show(order[next], true);
    else return;
    event.preventDefault();
  });

  function nearest(event) {
    const frame = svg.getBoundingClientRect();
    const ratio = svg.viewBox.baseVal.width / frame.width;
    const [x, y] = [(event.clientX - frame.left) * ratio, (event.clientY - frame.top) * ratio];
    let best = -1;
    let least = 32 ** 2;
    for (const [index, point] of points.entries()) {
      const away = (point.left - x) ** 2 + (point.top - y) ** 2;
      if (away < least) [best, least] = [index, away];
    }
    return best;
  }
}

/** What else lies under a point: marks may cover one another. */
function beneath(points, index) {
  const { left, top } = points[index];
  const near = points.filter(
    (point, other) => other !== index && Math.hypot(point.left - left, point.top - top) < 7,
  );
  return near.map((point) => `also here: ${point.title}, ${point.lines[1] ?? point.lines[0]}`);
}

/** The box with a point's values. */
function makeTip(box) {
  const node = make("div", { class: "tip", hidden: true });
  box.append(node);
  return {
    hide: () => {
      node.hidden = true;
    },
    show: (point, svg) => {
      node.replaceChildren(
        make("strong", {}, point.title),
        ...point.lines.map((line) => make("div", {}, line)),
      );
      node.hidden = false;
      const ratio = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      const [x, y] = [point.left * ratio, point.top * ratio];
      const left = x + 14 + node.offsetWidth > box.clientWidth ? x - 14 - node.offsetWidth : x + 14;
      node.style.left = `${Math.max(0, Math.min(left, box.clientWidth - node.offsetWidth))}px`;
      node.style.top = `${Math.max(0, y - node.offsetHeight - 10)}px`;
    },
  };
}
