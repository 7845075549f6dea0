// A value against length: lines, or bars when there is a single length.

function showCurves(host, data, chart, hint) {
  const all = data.measurements.filter((item) => item.chart === chart);
  if (!all.length) return noData(host, ...hint);
  const looks = looksOf(data);
  const measures = groupBy(all, (item) => item.measure);
  // What was measured at the most lengths first; of equals, what has the most numbers.
  const order = [...measures.keys()].sort(
    (a, b) =>
      mostLengths(measures.get(b)) - mostLengths(measures.get(a)) ||
      measures.get(b).length - measures.get(a).length,
  );
  const state = { measure: order[0], group: null, y: "value", scale: "log", hidden: new Set() };
  const set = (name) => (value) => {
    state[name] = value;
    if (name === "measure" || name === "group") state.hidden.clear();
    redraw(host, draw);
  };

  function draw() {
    const groups = groupsOf(measures.get(state.measure), data.runs);
    const names = [...groups.keys()].sort(
      (a, b) =>
        lengthsOf(groups.get(b)) - lengthsOf(groups.get(a)) ||
        groups.get(b).length - groups.get(a).length ||
        (a < b ? -1 : 1),
    );
    if (!groups.has(state.group)) state.group = names[0];
    const items = groups.get(state.group);
    const full = fullByLength(items);
    const relative = state.y === "relative" && full.size > 0;
    const lengths = distinct(items.map((item) => item.tokens)).sort((a, b) => a - b);
    const shown = curveSeries(items, full, relative, looks);
    // Bars have no room for the sign of what others ship.
    if (lengths.length === 1) for (const series of shown) series.hollow = false;
    const visible = shown.filter((series) => !state.hidden.has(series.name));
    const controls = [
      select("Measure", [[null, order.map((n) => [n, n])]], state.measure, set("measure")),
      select(`Model, machine${ofMany(names.length)}`, [[null, names.map((n) => [n, n])]], state.group, set("group")),
      segmented(
        "Shown as",
        [
          ["value", "value"],
          [
            "relative",
            "full attention = 1",
            full.size ? null : "needs full attention in the same run",
          ],
        ],
        relative ? "relative" : "value",
        set("y"),
      ),
    ];
    if (lengths.length > 1) {
      controls.push(
        segmented(
          "Scale",
          [
            ["log", "log"],
            ["linear", "linear"],
          ],
          state.scale,
          set("scale"),
        ),
      );
    }
    host.replaceChildren(
      make("div", { class: "controls" }, controls),
      make("p", { class: "chosen" }, `${state.measure} · ${state.group}`),
    );
    const spec = curveSpec(visible, items[0], lengths, relative, state);
    (lengths.length > 1 || !visible.length ? drawChart : drawBars)(host, spec);
    const runs = distinct(items.map((item) => item.run)).map((index) => data.runs[index]);
    const covered = lengths.length > 1 ? coveredList(visible, state.scale === "log") : null;
    host.append(
      ...[covered].filter(Boolean),
      legend(shown, state.hidden, () => redraw(host, draw)),
      provenance(runs),
      curveNumbers(items, full),
    );
  }
  draw();
}

const ofMany = (count) => (count > 1 ? ` (one of ${count})` : "");

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

/** At how many lengths something was measured. */
function lengthsOf(items) {
  return distinct(items.map((item) => item.tokens)).length;
}

/** The same of the group (a model on a machine) that was measured at the most. */
function mostLengths(items) {
  return Math.max(...[...groupBy(items, (item) => item.group).values()].map(lengthsOf));
}

/** The best full attention at each length: what others are divided by. */
function fullByLength(items) {
  const full = new Map();
  for (const item of items.filter((one) => one.full)) {
    const best = full.get(item.tokens);
    const better =
      best === undefined || (item.more_is_better ? item.value > best : item.value < best);
    if (better) full.set(item.tokens, item.value);
  }
  return full;
}

const gain = (item, value, full) => (item.more_is_better ? value / full : full / value);

function curveSeries(items, full, relative, looks) {
  const names = distinct(items.map((item) => item.series));
  return names
    .map((name) => {
      const own = items.filter((item) => item.series === name);
      const points = own
        .filter((item) => !relative || full.has(item.tokens))
        .map((item) => curvePoint(item, full, relative));
      return {
        name,
        ours: own[0].ours,
        ...looks.get(name),
        line: true,
        dashed: !own[0].ours,
        hollow: !own[0].ours,
        points,
      };
    })
    .filter((series) => series.points.length);
}

function curvePoint(item, full, relative) {
  const at = relative
    ? (value) => (value === null ? null : gain(item, value, full.get(item.tokens)))
    : (value) => value;
  const bounds = [at(item.low), at(item.high)];
  if (bounds[0] !== null) bounds.sort((a, b) => a - b);
  const best = full.get(item.tokens);
  const times = best === undefined ? null : `${digits(gain(item, item.value, best))}x`;
  return {
    x: item.tokens,
    y: at(item.value),
    low: bounds[0],
    high: bounds[1],
    aside: times && !relative ? `${times}` : "",
    title: item.series,
    lines: [
      `${whole(item.tokens)} tokens`,
      `${quantity(item.value, item.unit, 4)}${item.low === null ? "" : ` (p20 ${quantity(item.low, item.unit, 4)}, p80 ${quantity(item.high, item.unit, 4)})`}`,
      item.note || null,
      times && !item.full ? `${times} against the best full attention here` : null,
    ].filter(Boolean),
  };
}

function curveSpec(series, sample, lengths, relative, state) {
  const values = series.flatMap((item) => item.points.map((point) => point.y));
  const [factor, unit] = relative ? [1, "x"] : unitFor(sample.unit, Math.max(...values, 0));
  const log = state.scale === "log";
  const against =
    { B: "full attention's bytes divided by these", "tok/GiB": "capacity, full attention = 1" }[
      sample.unit
    ] ?? "speed, full attention = 1";
  const binary = sample.unit === "B" && !relative;
  const named = binary ? "" : ` (${unit})`;
  const up = relative ? `${against} (more is better)` : `${sample.measure}${named}`;
  return {
    title: `${sample.measure} against length`,
    series,
    barLabel: `${up}, at ${whole(lengths[0])} tokens`,
    x: {
      label: `tokens${log ? ", log scale" : ""}`,
      log,
      values: lengths,
      min: log ? undefined : 0,
      format: whole,
    },
    y: {
      label: up,
      log,
      binary,
      min: log ? undefined : 0,
      format: (value) => (binary ? bytes(value) : short(value / factor)),
      exact: (value) => `${digits(value / factor, 4)} ${unit}`,
    },
  };
}

function curveNumbers(items, full) {
  const unit = items[0].unit;
  const exact = (value) => (unit === "B" ? whole(value) : digits(value, 4));
  return numbers(
    ["series", "tokens", `median (${unit})`, "p20", "p80", "against full", "note"],
    items.map((item) => [
      item.series,
      whole(item.tokens),
      exact(item.value),
      item.low === null ? null : exact(item.low),
      item.high === null ? null : exact(item.high),
      full.has(item.tokens) ? `${digits(gain(item, item.value, full.get(item.tokens)))}x` : null,
      item.note,
    ]),
  );
}
