// Numbers, elements and marks: what every part of the page uses.

const byId = (id) => document.getElementById(id);

/** An element with attributes and children; text is never read as HTML. */
function make(tag, attributes = {}, ...children) {
  const svg = SVG_TAGS.has(tag);
  const node = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG_TAGS = new Set([
  "svg",
  "g",
  "path",
  "line",
  "rect",
  "circle",
  "text",
  "title",
  "polyline",
]);

/** Significant digits, with thousands separated: 1234.5 at 3 digits is 1,230. */
function digits(value, count = 3) {
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(count));
  const after = Math.max(0, count - 1 - Math.floor(Math.log10(Math.abs(rounded))));
  return rounded.toLocaleString("en-US", {
    minimumFractionDigits: Math.min(after, 9),
    maximumFractionDigits: Math.min(after, 9),
  });
}

/** As digits, without zeros at the end: for axes. */
const short = (value, count = 3) =>
  Number(value.toPrecision(count)).toLocaleString("en-US", { maximumFractionDigits: 6 });

const whole = (value) => Math.round(value).toLocaleString("en-US");

/** A step of a unit that suits values around one: [factor, name]. */
function unitFor(unit, value) {
  const steps = {
    s: [
      [1, "s"],
      [1e-3, "ms"],
      [1e-6, "µs"],
    ],
    B: [
      [2 ** 30, "GiB"],
      [2 ** 20, "MiB"],
      [2 ** 10, "KiB"],
      [1, "B"],
    ],
    "tok/s": [[1, "tok/s"]],
    "tok/GiB": [[1, "tokens/GiB"]],
    share: [[0.01, "%"]],
  }[unit] || [[1, unit]];
  return steps.find(([factor]) => Math.abs(value) >= factor) || steps[steps.length - 1];
}

function quantity(value, unit, count = 3) {
  const [factor, name] = unitFor(unit, value);
  return `${digits(value / factor, count)} ${name}`;
}

/** A round number of bytes, in the unit that suits it. */
function bytes(value) {
  const [factor, name] = unitFor("B", value);
  return value ? `${short(value / factor)} ${name}` : "0";
}

const percent = (share, count = 1) => `${(100 * share).toFixed(count)} %`;

const day = (created) => String(created).slice(0, 10);

function commitOf(provenance) {
  const commit = provenance.commit ? String(provenance.commit).slice(0, 7) : "unknown commit";
  return provenance.dirty ? `${commit} + changes` : commit;
}

/** Distinct values in their first order. */
const distinct = (values) => [...new Set(values)];

function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) {
    const name = key(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
}

/** Tell those who cannot see the page what changed. */
function say(text) {
  byId("say").textContent = text;
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
