// Charts by Vega-Lite, in the page's own colours: names, and looks that stay the same.

const COLOURS = Array.from({ length: 8 }, (_, at) => `var(--s${at})`);
const GREY = "var(--other)";
const SHAPES = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross"];

const CONFIG = {
  background: null,
  font: "system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif",
  view: { stroke: null },
  axis: {
    labelColor: "var(--muted)",
    titleColor: "var(--muted)",
    titleFontWeight: "normal",
    labelFontSize: 12,
    titleFontSize: 12.5,
    gridColor: "var(--line)",
    domainColor: "var(--muted)",
    tickColor: "var(--muted)",
    labelLimit: 210,
  },
  legend: {
    orient: "bottom",
    title: null,
    labelColor: "var(--ink)",
    labelFontSize: 12.5,
    labelLimit: 0,
    symbolStrokeWidth: 2,
    rowPadding: 5,
  },
  bar: { color: "var(--s0)" },
  text: { color: "var(--ink)", fontSize: 12 },
  rule: { color: "var(--range)" },
};

const charts = new Map();

/** An element that draws `spec(width)` as soon as it has a width, and again when that changes. */
function chart(title, spec) {
  const box = html`<div class="chart" role="group" aria-label="${title}"></div>`;
  charts.set(box, { spec, width: 0 });
  resized.observe(box);
  return box;
}

const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => render(target)));

/** Resolves when every chart of the page is drawn. */
async function drawn() {
  for (const box of charts.keys()) if (!box.isConnected) charts.delete(box);
  await Promise.all([...charts.keys()].map(render));
}

function render(box) {
  const known = charts.get(box);
  const width = Math.floor(box.clientWidth);
  if (!known || !width || known.width === width) return known?.done;
  known.width = width;
  const options = { renderer: "svg", ast: true, actions: false, tooltip: { theme: "page" } };
  const target = html`<div></div>`;
  const size = { width, autosize: { type: "fit-x", contains: "padding" }, config: CONFIG };
  known.done = vegaEmbed(target, { ...size, ...known.spec(width) }, options).then(() => {
    if (known.width === width) box.replaceChildren(target);
  });
  return known.done;
}

/**
 * Colour and mark of each name of one chart. Full attention is ink and a circle, recipes look the
 * same in every chart, others take what is left; where that is too little, they are grey.
 */
function looksOf(names, full, recipes) {
  const all = SHAPES.flatMap((_, turn) =>
    COLOURS.map((colour, at) => ({ colour, shape: SHAPES[(at + 1 + turn) % SHAPES.length] })),
  );
  const looks = new Map(recipes.map((name, at) => [name, all[at]]));
  if (full.length) looks.set(full[0], { colour: "var(--full)", shape: "circle" });
  const used = new Set(names.map((name) => looks.get(name)?.colour));
  const free = all.slice(recipes.length).sort((a, b) => used.has(a.colour) - used.has(b.colour));
  const others = names.filter((name) => !looks.has(name));
  for (const [at, name] of others.entries())
    looks.set(name, others.length > 12 ? { colour: GREY, shape: "circle" } : free[at]);
  return looks;
}

/** Colour and mark by name, with a legend that fits; a click there brings a name out. */
function encodeNames(names, looks, width) {
  const longest = Math.max(...names.map((name) => name.length));
  const columns = Math.max(1, Math.min(5, Math.floor(width / (longest * 7.2 + 34))));
  const scale = (look) => ({ domain: names, range: names.map((name) => looks.get(name)[look]) });
  // Of settings that are grey, the legend would tell nothing.
  const named = names.filter((name) => looks.get(name).colour !== GREY);
  const legend = { columns, values: named, labelLimit: width - 70 };
  return {
    color: { field: "name", type: "nominal", scale: scale("colour"), legend },
    shape: { field: "name", type: "nominal", scale: scale("shape"), legend },
  };
}

const CHOSEN = { name: "chosen", select: { type: "point", fields: ["name"] }, bind: "legend" };
const FADED = { condition: { param: "chosen", value: 1 }, value: 0.15 };

/** Channels that encode a number, or a name in the order of the points. */
const amount = (field, more) => ({ field, type: "quantitative", ...more });
const nominal = (field, more) => ({ field, type: "nominal", sort: null, title: null, ...more });

const INK = { labelColor: "var(--ink)" };

/** A layer over some points, or none: Vega warns of one without points. */
const over = (values, layer) => (values.length ? [{ data: { values }, ...layer }] : []);

/** Ranges of points as lines in one direction; `dimension` is x or y. */
const whiskers = (points, dimension, from, to) =>
  over(points.filter((point) => (point[from] ?? null) !== null), {
    mark: { type: "rule", strokeWidth: 2 },
    encoding: {
      [dimension]: amount(from),
      [`${dimension}2`]: { field: to },
      opacity: FADED,
    },
  });

// A finger does not hover: its tap shows the tip, the next one hides it.
addEventListener("click", ({ target, clientX, clientY }) => {
  byId("vg-tooltip-element")?.classList.remove("visible");
  const move = new PointerEvent("pointermove", { bubbles: true, clientX, clientY });
  if (target.closest(".chart svg")) target.dispatchEvent(move);
});

/** What a mark tells to the pointer and to a screen reader. */
const TOLD = {
  tooltip: { field: "tip", type: "nominal" },
  description: { field: "said", type: "nominal" },
};

/** Lines of a tip, the first of them its title. */
const tell = (title, lines) => {
  const known = lines.filter(Boolean);
  return { tip: [title, ...known].join("\n"), said: [title, ...known].join("; ") };
};
