// A value against length: lines, or bars where there is a single length.

function showCurves(host, data, kind, hint) {
  const all = data.measurements.filter((item) => item.chart === kind);
  if (!all.length) return host.replaceChildren(noData(...hint));
  const recipes = data.recipes.map((recipe) => recipe.name);
  const shipped = (item) => item.full || recipes.includes(item.series);
  const lengths = (items) => distinct(items.map((item) => item.tokens)).length;
  const known = (items) => distinct(items.filter(shipped).map((item) => item.series)).length;
  const named = (items) => Number(items.some((item) => item.series === data.start));
  // What was measured at the most lengths first; of equals, what has the recommended recipe, then
  // what compares the most recipes.
  const order = (a, b) =>
    lengths(b) - lengths(a) || named(b) - named(a) || known(b) - known(a) || b.length - a.length;
  const ordered = (groups) => [...groups].sort(([, a], [, b]) => order(a, b)).map(([name]) => name);
  const groups = new Map(
    [...groupBy(all, (item) => item.measure)].map(([name, items]) => [name, groupsOf(items, data.runs)]),
  );
  const measures = ordered([...groups].map(([name, one]) => [name, one.get(ordered(one)[0])]));
  const state = { measure: measures[0], group: null, shown: "recipes", as: "value", scale: "linear" };

  const itemsOf = () => groups.get(state.measure).get(state.group);
  const few = (items) => (items.some((item) => shipped(item) && !item.full) ? items.filter(shipped) : items);

  function choices() {
    const here = groups.get(state.measure);
    const names = ordered(here);
    if (!here.has(state.group)) [state.group] = names;
    const items = itemsOf();
    const full = items.some((item) => item.full);
    if (!full) state.as = "value";
    const count = (some) => distinct(some.map((item) => item.series)).length;
    return [
      ["measure", "Measure", measures],
      ["group", `Model, machine${names.length > 1 ? ` (one of ${names.length})` : ""}`, names],
      ...shownChoice(count(few(items)), count(items)),
      ["as", "Shown as", [["value", "value"], ...(full ? [["relative", "full attention = 1"]] : [])]],
      ...(lengths(items) > 1
        ? [["scale", "Scale upwards", [["linear", "from zero"], ["log", "logarithmic"]]]]
        : []),
    ];
  }

  function draw() {
    const items = state.shown === "recipes" ? few(itemsOf()) : itemsOf();
    const full = fullByLength(items);
    const points = pointsOverLength(items, full, state);
    const runs = distinct(items.map((item) => item.run)).map((run) => data.runs[run]);
    const single = lengths(items) === 1;
    const spec = single ? barSpec : curveSpec;
    const title = `${state.measure} against length`;
    return html`<p class="chosen">${state.measure} · ${state.group}</p>
      ${chart(title, (width) => spec(points, items, state, recipes, width))}
      ${single ? null : notes(sameLines(points))}
      ${provenance(runs)} ${curveNumbers(items, full)}`;
  }

  panel(host, state, choices, draw);
}

/** What may share a picture: a group, or one run of it where two timed the same. */
function groupsOf(items, runs) {
  const place = (item) => `${item.series}, ${item.tokens}`;
  const parts = [...groupBy(items, (item) => item.group)].flatMap(([name, members]) => {
    const twice = new Set(members.map(place)).size < members.length;
    if (!twice) return [[name, members]];
    return [...groupBy(members, (item) => item.run)].map(([run, own]) => [
      `${name}, ${runs[run].path.split("/").pop()}`,
      own,
    ]);
  });
  return new Map(parts);
}

/** The best full attention at each length: what others are divided by. */
function fullByLength(items) {
  const full = new Map();
  for (const item of items.filter((one) => one.full)) {
    const best = full.get(item.tokens) ?? item.value;
    full.set(item.tokens, Math[item.more_is_better ? "max" : "min"](best, item.value));
  }
  return full;
}

const gain = (item, value, full) => (item.more_is_better ? value / full : full / value);

function pointsOverLength(items, full, { as }) {
  const relative = as === "relative";
  const most = Math.max(...items.map((item) => item.value));
  const [factor] = relative ? [1] : unitFor(items[0].unit, most);
  return items
    .filter((item) => !relative || full.has(item.tokens))
    .map((item) => {
      const best = full.get(item.tokens);
      const at = (value) =>
        value === null ? null : relative ? gain(item, value, best) : value / factor;
      const [low, high] = item.low === null ? [] : [at(item.low), at(item.high)].sort((a, b) => a - b);
      const times = best === undefined ? null : `${digits(gain(item, item.value, best))}x`;
      const spread =
        item.low === null
          ? ""
          : ` (p20 ${quantity(item.low, item.unit, 4)}, p80 ${quantity(item.high, item.unit, 4)})`;
      return {
        name: item.series, x: item.tokens, y: at(item.value), low, high, ours: item.ours,
        text: relative ? times : [quantity(item.value, item.unit, 4), times].filter(Boolean).join(", "),
        ...tell(item.series, [
          `${whole(item.tokens)} tokens`,
          `${quantity(item.value, item.unit, 4)}${spread}`,
          item.note,
          times && !item.full ? `${times} against the best full attention here` : null,
        ]),
      };
    });
}

/** The title of the values' axis. */
function valueTitle(items, { as }) {
  const { unit, measure } = items[0];
  const [, name] = unitFor(unit, Math.max(...items.map((item) => item.value)));
  if (as === "value") return `${measure} (${name})`;
  const against = { B: "full attention's bytes divided by these", "tok/GiB": "capacity, full attention = 1" };
  return `${against[unit] ?? "speed, full attention = 1"} (more is better)`;
}

const looksOver = (points, items, recipes) => {
  const names = distinct(points.map((point) => point.name));
  const full = distinct(items.filter((item) => item.full).map((item) => item.series));
  return [names, looksOf(names, full, recipes)];
};

function curveSpec(points, items, state, recipes, width) {
  const [names, looks] = looksOver(points, items, recipes);
  const log = state.scale === "log";
  const lengths = distinct(points.map((point) => point.x)).sort((a, b) => a - b);
  const encoded = encodeNames(names, looks, width);
  const dashes = { domain: [true, false], range: [[1, 0], [5, 4]] };
  const line = { color: encoded.color, opacity: FADED, strokeDash: nominal("ours", { scale: dashes, legend: null }) };
  return {
    height: width < 520 ? 300 : 360,
    data: { values: points },
    encoding: {
      x: amount("x", {
        title: "tokens (logarithmic scale)",
        scale: { type: "log", base: 2, nice: false, padding: 16 },
        axis: { values: lengths, format: ",d", grid: false, labelOverlap: "greedy" },
      }),
      y: amount("y", {
        title: wrap(valueTitle(items, state), 380),
        scale: { type: log ? "log" : "linear", zero: !log },
        axis: { format: ",.6~f" },
      }),
    },
    layer: [
      ...whiskers(points, "y", "low", "high"),
      { mark: { type: "line", strokeWidth: 2 }, encoding: line },
      {
        mark: { type: "point", filled: true, size: 70 },
        params: [CHOSEN],
        encoding: { ...encoded, ...TOLD, opacity: FADED },
      },
    ],
  };
}

function barSpec(points, items, state, recipes, width) {
  const [names, looks] = looksOver(points, items, recipes);
  const { color } = encodeNames(names, looks, width);
  const narrow = width < 520;
  const most = Math.max(...points.map((point) => point.high ?? point.y)) || 1;
  return {
    height: 30 * names.length,
    data: { values: points },
    encoding: {
      y: nominal("name", { axis: { labelLimit: narrow ? 120 : 260, ...INK } }),
      x: amount("y", {
        title: wrap(`${valueTitle(items, state)}, at ${whole(points[0].x)} tokens`, width),
        // Room for the values after the bars.
        scale: { domain: [0, (narrow ? 1.9 : 1.25) * most], nice: false },
      }),
    },
    layer: [
      {
        mark: { type: "bar", height: { band: 0.62 } },
        params: [{ ...CHOSEN, bind: undefined }],
        encoding: { color: { ...color, legend: null }, ...TOLD },
      },
      ...whiskers(points, "x", "low", "high"),
      { mark: { type: "text", align: "left", dx: 6 }, encoding: { text: { field: "text" } } },
    ],
  };
}

/** Lines that lie on another one, so that fewer are seen than the legend names. */
function sameLines(points) {
  const lines = groupBy(points, (point) => point.name);
  const near = (a, b) => Math.abs(a - b) <= 0.015 * Math.max(...points.map((point) => point.y));
  const hides = (top, one) =>
    one.every((point) => top.some((other) => other.x === point.x && near(other.y, point.y)));
  const groups = [];
  for (const [name, one] of lines) {
    const group = groups.find((names) => hides(lines.get(names[0]), one));
    if (group) group.push(name);
    else groups.push([name]);
  }
  return groups
    .filter((names) => names.length > 1)
    .map((names) => `One line, as they are equal or nearly so: ${names.join(", ")}.`);
}

function curveNumbers(items, full) {
  const unit = items[0].unit;
  const exact = (value) => (value === null ? null : unit === "B" ? whole(value) : digits(value, 4));
  return numbers(
    ["series", "tokens", `median (${unit})`, "p20", "p80", "against full", "note"],
    items.map((item) => [
      item.series,
      whole(item.tokens),
      exact(item.value),
      exact(item.low),
      exact(item.high),
      full.has(item.tokens) ? `${digits(gain(item, item.value, full.get(item.tokens)))}x` : null,
      item.note,
    ]),
  );
}
