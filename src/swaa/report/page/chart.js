// Points and lines over two axes, as SVG: hover, keyboard, whiskers, labels that do not collide.

/**
 * Draw a chart into `host`, again whenever its width changes.
 *
 * spec.x, spec.y: {label, log, format, min, max, ticks}
 * spec.series: [{name, colour, shape, line, hollow, points}]
 * a point: {x, y, low, high, near, far, title, lines, label}; low to high and near to far are
 * whiskers up and across
 * spec.x, spec.y also: binary, for bytes, whose ticks are powers of two; values, ticks to choose from
 * spec.front: points that a step line joins. Of labels that collide, a point's with a higher
 * `first` is kept.
 */
function drawChart(host, spec) {
  if (!spec.series.some((series) => series.points.length)) {
    host.append(make("p", { class: "empty" }, "Every series is hidden; show some below."));
    return;
  }
  const crowded = spec.series.flatMap((series) => series.points).length > CROWD;
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

/** Above so many points whiskers fade, and a name stands only where it is clear whose it is. */
const CROWD = 12;
const NARROW = 520;

function renderChart(spec, width, tip) {
  const narrow = width < NARROW;
  const height = Math.round(Math.min(460, Math.max(300, width * (narrow ? 0.95 : 0.52))));
  const right = narrow ? 10 : 18;
  const room = { left: spec.y.binary ? 66 : narrow ? 50 : 62, right, top: 14, bottom: 26 };
  // Ours lie above the others', and of those the first.
  const above = (series) => Number(series.ours === true);
  const layers = [...spec.series].reverse().sort((a, b) => above(a) - above(b));
  const points = layers.flatMap((series) => series.points.map((point) => ({ ...point, series })));
  const x = scale(
    spec.x,
    points.flatMap((p) => [p.x, p.far ?? p.x]),
    room.left,
    width - room.right,
    narrow ? 4 : 7,
  );
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
  svg.append(placeLabels(points, { width, height, room, crowded: points.length > CROWD }));
  connect(svg, points, marks, tip);
  return svg;
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

/** Names beside their points, where there is room for them. */
function placeLabels(points, { width, height, room, crowded }) {
  const group = make("g", { class: "labels", "aria-hidden": "true" });
  const taken = points.map((p) => [p.left - 7, p.top - 7, p.left + 7, p.top + 7]);
  const clear = (box) =>
    box[0] >= room.left &&
    box[2] <= width &&
    box[1] >= 2 &&
    box[3] <= height - room.bottom &&
    taken.every((t) => box[2] < t[0] || box[0] > t[2] || box[3] < t[1] || box[1] > t[3]);
  // On a phone's crowded chart only what matters most is named.
  const least = crowded && width < NARROW ? 2 : 0;
  const wanted = points.filter((point) => point.label && (point.first ?? 0) >= least);
  for (const point of wanted.sort((a, b) => (b.first ?? 0) - (a.first ?? 0))) {
    const long = point.label.length * 6.4 + 2;
    const { left: x, top: y } = point;
    const beside = [
      [x + 10, y + 4, "start"],
      [x - 10, y + 4, "end"],
    ];
    const corners = [
      [x + 8, y - 9, "start"],
      [x + 8, y + 17, "start"],
      [x - 8, y - 9, "end"],
      [x - 8, y + 17, "end"],
    ];
    const spots = [
      ...beside,
      ...(crowded && !point.first ? [] : corners),
      ...(point.first > 1 ? farther(x, y) : []),
    ];
    for (const [left, base, anchor] of spots) {
      const first = anchor === "start" ? left : left - long;
      const box = [first, base - 11, first + long, base + 3];
      if (!clear(box)) continue;
      taken.push(box);
      if (Math.abs(base - y) > 18)
        group.append(
          make("line", { class: "leader", x1: x, y1: y, x2: left, y2: base + (base > y ? -10 : 2) }),
        );
      group.append(make("text", { x: left, y: base, "text-anchor": anchor }, point.label));
      break;
    }
  }
  return group;
}

/** Places for a name that must be read, away from its point: a thin line leads there. */
function farther(x, y) {
  const spots = [];
  for (const down of [-30, 34, -48, 52, -66, 70, -84, 88])
    for (const aside of [6, -6, 40, -40])
      spots.push([x + aside, y + down, aside > 0 ? "start" : "end"]);
  return spots;
}
