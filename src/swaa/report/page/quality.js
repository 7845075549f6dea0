// Right answers against what the prompt costs: our runs, and the paper's numbers as hollow marks.

const BY_ARITHMETIC = "by arithmetic, divided by full attention's (less is better)";

/** What can price a prompt: name, title of its axis, value of an answer, given full attention's. */
const COSTS = {
  relative: {
    text: "time, full attention = 1",
    of: (answer, full) => ratio(answer.seconds, full.seconds),
    label: "prompt time, divided by full attention's (less is better)",
  },
  flops: {
    text: "FLOPs, full attention = 1",
    of: (answer) => answer.flops_share,
    label: `FLOPs of the prompt ${BY_ARITHMETIC}`,
  },
  keys: {
    text: "keys visited, full attention = 1",
    of: (answer) => answer.keys_share,
    label: `keys that the prompt's queries visit, ${BY_ARITHMETIC}`,
  },
  seconds: { text: "seconds", of: (answer) => answer.seconds, label: "prompt time (seconds)" },
  kv: {
    text: "KV, full attention = 1",
    of: (answer, full) => answer.kv_share ?? ratio(answer.kv_bytes, full.kv_bytes),
    label: "keys and values held after the prompt, divided by full attention's (less is better)",
  },
};

const QUALITIES = {
  accuracy: "right answers",
  score: "mean score",
  kept: "share of full attention's answers",
};

const ratio = (value, base) => (value && base ? value / base : null);

const fullOf = (answers) =>
  answers.find((one) => one.full && one.seconds) ?? answers.find((one) => one.full) ?? {};

/** Costs that price some of the settings, the one that prices the most first. */
function pricing(answers) {
  const full = fullOf(answers);
  const others = answers.filter((answer) => !answer.full);
  const counted = others.length ? others : answers;
  const count = (name) => counted.filter((one) => (COSTS[name].of(one, full) ?? null) !== null).length;
  return Object.keys(COSTS).filter(count).sort((a, b) => count(b) - count(a));
}

function showQuality(host, data) {
  const recipes = data.recipes.map((recipe) => recipe.name);
  const shipped = (answer) => answer.full || recipes.includes(answer.setting);
  const own = groupBy(data.answers, (answer) => answer.group);
  const paper = groupBy(data.paper.answers, (answer) => answer.group);
  const known = (name) => own.get(name).filter((one) => shipped(one) && !one.full).length;
  // What asked the recommended recipe first; of equals, what compares the most recipes, then what
  // asked the longest prompts.
  const length = (name) => Math.max(0, ...data.runs[own.get(name)[0].run].tokens);
  const named = (name) => Number(own.get(name).some((one) => one.setting === data.start));
  const groups = [...own.keys()].sort(
    (a, b) => named(b) - named(a) || known(b) - known(a) || length(b) - length(a) || (a < b ? -1 : 1),
  );
  const theirs = [...paper.keys()];
  const first = groups[0] ?? theirs[0];
  const state = { group: first, shown: "recipes", beside: "", cost: "", up: "accuracy" };

  const answersOf = (group) => withoutRepeats(own.get(group) ?? paper.get(group));
  const timed = (answers) => answers.some((answer) => answer.full && answer.seconds);

  function choices() {
    const answers = answersOf(state.group);
    const few = answers.filter(shipped);
    const some = few.some((answer) => !answer.full) ? few : answers;
    const costs = pricing(answers);
    if (!timed(answers) || state.beside === state.group) state.beside = "";
    const usable = state.beside ? costs.filter((name) => name === "relative") : costs;
    if (!usable.includes(state.cost)) [state.cost = null] = usable;
    const qualities = Object.keys(QUALITIES).filter((name) => name !== "score" || answers.some(hasScore));
    if (!qualities.includes(state.up)) state.up = "accuracy";
    const named = (names, of) => names.map((name) => [name, of(name)]);
    return [
      ["group", "Model, task, machine", [
        ...(groups.length ? [["Runs of this folder", named(groups, (name) => name)]] : []),
        ["The paper's own numbers", named(theirs, (name) => name)],
      ]],
      ...shownChoice(some.length, answers.length),
      ["cost", "Cost, to the right", named(usable, (name) => COSTS[name].text)],
      ["up", "Quality, upwards", named(qualities, (name) => QUALITIES[name])],
      ...(timed(answers)
        ? [["beside", "Next to it", [["", "nothing"], ...named(theirs, (name) => name)]]]
        : []),
    ];
  }

  function draw() {
    const all = answersOf(state.group);
    const few = all.filter(shipped);
    const some = state.shown === "recipes" && few.some((answer) => !answer.full) ? few : all;
    const hollow = state.beside ? paper.get(state.beside) : [];
    const view = { ...state, scored: all.some(hasScore), recipes };
    const points = [...pointsOf(some, view, false), ...pointsOf(hollow, view, true)];
    const drawn = new Set(points.map((point) => point.answer));
    const missing = [...some, ...hollow].filter((answer) => !drawn.has(answer));
    const texts = qualityNotes(all, hollow, missing, view, data);
    const runs = distinct(some.flatMap((answer) => answer.runs)).filter((run) => run !== undefined);
    const front = frontOf(points.filter((point) => !point.hollow));
    const spec = (width) => qualitySpec(points, front, view, width);
    return html`${groups.length ? null : noData("no run answered questions; write some by", EVAL)}
      <p class="chosen">${state.group}${state.beside ? ` · next to ${state.beside}` : ""}</p>
      ${state.cost ? chart("Quality against cost", spec) : null}
      ${state.cost ? frontList(front, view) : null}
      ${notes(texts)}
      ${runs.length ? provenance(runs.map((run) => data.runs[run])) : null}
      ${qualityNumbers([...some, ...hollow])}`;
  }

  panel(host, state, choices, draw);
}

const EVAL = "swaa eval MODEL --recipes full,fast,balanced --tasks needle,multikey";

/** Without points that several runs of one setting share in all that is drawn. */
function withoutRepeats(answers) {
  const same = groupBy(answers, ({ run, ...rest }) => JSON.stringify(rest));
  return [...same.values()].map((some) => ({ ...some[0], runs: some.map((one) => one.run) }));
}

/** Whether parts of an answer count, so that the score says more than right or wrong. */
const hasScore = (answer) =>
  answer.score !== null && Math.abs(answer.score - answer.accuracy) > 1e-9;

/** How far up an answer lies, and its interval; a mean score has none. */
function heightOf(answer, full, { up, scored }) {
  const score = scored ? answer.score : null;
  if (up === "score") return { y: score ?? answer.accuracy, low: null, high: null };
  if (up === "accuracy") return { y: answer.accuracy, low: answer.low, high: answer.high };
  if (score !== null) return { y: ratio(score, full.score), low: null, high: null };
  const [y, low, high] = ["accuracy", "low", "high"].map((key) => ratio(answer[key], full.accuracy));
  return { y: full.accuracy ? (y ?? 0) : null, low, high };
}

function pointsOf(answers, view, hollow) {
  const full = fullOf(answers);
  return answers.flatMap((answer) => {
    const x = view.cost ? (COSTS[view.cost].of(answer, full) ?? null) : null;
    const height = heightOf(answer, full, view);
    if (x === null || height.y === null) return [];
    const spread = ["relative", "seconds"].includes(view.cost) && answer.seconds_low !== null;
    const unit = view.cost === "relative" ? full.seconds : 1;
    const name = !hollow ? answer.setting : answer.trained ? "paper, trained" : "paper, not trained";
    return {
      answer, hollow, name, x, ...height,
      near: spread ? answer.seconds_low / unit : null,
      far: spread ? answer.seconds_high / unit : null,
      ...tell(answer.setting, answerLines(answer, full, hollow)),
    };
  });
}

function answerLines(answer, full, hollow) {
  const share = (value, what) => (value === null ? null : `${percent(value)} of ${what}`);
  const interval =
    answer.low === null
      ? "no interval given"
      : `95 % interval ${percent(answer.low)} to ${percent(answer.high)}`;
  return [
    answer.detail === answer.setting ? null : answer.detail,
    `${percent(answer.accuracy)} right (${answer.count}), ${interval}`,
    hasScore(answer) ? `mean score ${percent(answer.score)}` : null,
    answer.seconds === null ? null : `${quantity(answer.seconds, "s")}: ${answer.time}`,
    full.seconds && answer.seconds
      ? `${digits(full.seconds / answer.seconds)}x as fast as full attention`
      : null,
    answer.kv_bytes === null ? null : `${quantity(answer.kv_bytes, "B", 4)} of keys and values`,
    share(answer.kv_share, "full attention's KV"),
    share(answer.flops_share, "full attention's prefill FLOPs"),
    share(answer.keys_share, "the keys that full attention visits"),
    hollow ? "as the paper reports it" : null,
  ];
}

/** The points that no other one beats in both directions, by cost. */
function frontOf(points) {
  let best = -Infinity;
  return [...points]
    .sort((a, b) => a.x - b.x || b.y - a.y)
    .filter((point) => point.y > best && ((best = point.y), true));
}

function qualitySpec(points, front, view, width) {
  const names = distinct(points.map((point) => point.name));
  const full = points.filter((point) => point.answer.full && !point.hollow).map((point) => point.name);
  const looks = looksOf(names, distinct(full), view.recipes);
  for (const name of names.filter((one) => one.startsWith("paper, ")))
    looks.set(name, { colour: "var(--paper)", shape: name.endsWith("not trained") ? "circle" : "diamond" });
  const least = view.cost === "seconds" ? 0 : 1;
  const most = Math.max(least, ...points.map((point) => point.far ?? point.x)) || 1;
  const kept = `${QUALITIES[view.scored ? "score" : "accuracy"]}, full attention = 100 %`;
  const up = view.up === "kept" ? kept : QUALITIES[view.up];
  const tallest = Math.max(1, ...points.map((point) => point.high ?? point.y));
  const height = width < 520 ? 300 : 380;
  const at = ({ x, y }) => [(x / most) * (width - 80), (1 - y / tallest) * height];
  const grey = (point) => looks.get(point.name).colour === GREY;
  // What is shipped lies above the rest, and has its name and its interval.
  const values = points
    .map(({ answer, ...point }) => point)
    .sort((a, b) => grey(b) - grey(a) || a.hollow - b.hollow);
  const main = values.filter((point) => !grey(point));
  const marks = (filled) => over(values.filter((point) => point.hollow !== filled), {
    mark: { type: "point", filled, size: 90, strokeWidth: 2 },
    ...(filled ? { params: [CHOSEN] } : {}),
    encoding: { ...encodeNames(names, looks, width), ...TOLD, opacity: FADED },
  });
  const text = Object.fromEntries(["align", "dx", "dy"].map((name) => [name, { expr: `datum.${name}` }]));
  return {
    height,
    encoding: {
      x: amount("x", {
        title: wrap(COSTS[view.cost].label, width),
        axis: { tickCount: width < 520 ? 5 : 10 },
        scale: { domain: [0, most] },
      }),
      y: amount("y", { title: up, axis: { format: ".0%" }, scale: { domain: [0, tallest] } }),
    },
    layer: [
      ...over(front.map(({ x, y }) => ({ x, y })), {
        mark: { type: "line", interpolate: "step-after", strokeDash: [2, 3], color: "var(--muted)" },
      }),
      ...whiskers(main, "y", "low", "high"),
      ...whiskers(main, "x", "near", "far"),
      ...marks(true),
      ...marks(false),
      ...over(labelled(main.filter((point) => !point.hollow), at, width - 80), {
        mark: { type: "text", ...text },
        encoding: { text: { field: "name" }, opacity: FADED },
      }),
    ],
  };
}

/** Points whose names have room next to them, and where: first come, first named. */
function labelled(points, at, right) {
  const taken = points.map((point) => at(point)).map(([x, y]) => [x - 6, y - 6, x + 6, y + 6]);
  const spots = [["left", 8, -9], ["right", -8, -9], ["left", 8, 13], ["right", -8, 13], ["left", 8, -24]];
  const spotOf = (point) => {
    const [x, y] = at(point);
    const long = point.name.length * 7;
    for (const [align, dx, dy] of spots) {
      const from = align === "left" ? x + dx : x + dx - long;
      const box = [from, y + dy - 6, from + long, y + dy + 5];
      const free = taken.every((t) => box[2] < t[0] || box[0] > t[2] || box[3] < t[1] || box[1] > t[3]);
      if (!free || from < 0 || box[2] > right) continue;
      taken.push(box);
      return [{ ...point, align, dx, dy }];
    }
    return [];
  };
  return points.flatMap(spotOf);
}

/** A title in lines that fit. */
function wrap(text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (7 * (lines.at(-1).length + word.length) > width - 60) lines.push("");
    lines[lines.length - 1] += `${word} `;
  }
  return lines.map((line) => line.trim());
}

/** The settings of the front in words. */
function frontList(front, { cost, up }) {
  if (front.length < 2) return null;
  const price = (value) => (cost === "seconds" ? quantity(value, "s") : percent(value));
  const of = cost === "seconds" ? cost : `share of full attention's ${COSTS[cost].text.split(",")[0]}`;
  const items = front.map(
    ({ answer, x, y }) =>
      html`<li><strong>${answer.setting}</strong> ${percent(y, 0)} at ${price(x)}</li>`,
  );
  return html`<div class="front-list">
    <p>Best for their cost (the dotted line), ${QUALITIES[up]} at ${of}:</p>
    <ol>${items}</ol>
  </div>`;
}

function qualityNotes(answers, hollow, missing, view, data) {
  const paper = hollow.length || view.group.startsWith("paper:");
  const times = distinct(answers.map((answer) => answer.time)).filter((time) => time !== "not timed");
  const reason = view.cost ? "its cost or full attention's answer is not known" : "no cost is known";
  return [
    ...(missing.length
      ? [`Not drawn, because ${reason}: ${distinct(missing.map((one) => one.setting)).join(", ")}.`]
      : []),
    ...times.map((time) => `Time: ${time}.`),
    ...(view.up === "kept" && !view.scored
      ? ["Intervals are those of the setting alone; full attention's own is not in them."]
      : []),
    ...(paper ? [`${hollow.length ? "Hollow marks" : "These numbers"}: ${data.paper.source}; not measured here.`, ...data.paper.notes] : []),
  ];
}

function qualityNumbers(answers) {
  const known = (value, text) => (value === null ? null : text(value));
  return numbers(
    ["setting", "what it does", "right", "accuracy", "mean score", "95 % interval", "seconds",
      "p20 to p80", "KV MiB", "KV share", "FLOPs share", "keys share"],
    answers.map((a) => [
      a.setting,
      a.detail,
      a.count,
      percent(a.accuracy),
      known(a.score, percent),
      known(a.low, (low) => `${percent(low)} to ${percent(a.high)}`),
      known(a.seconds, (seconds) => digits(seconds, 4)),
      known(a.seconds_low, (low) => `${digits(low, 4)} to ${digits(a.seconds_high, 4)}`),
      known(a.kv_bytes, (size) => digits(size / 2 ** 20, 4)),
      ...[a.kv_share, a.flops_share, a.keys_share].map((share) => known(share, percent)),
    ]),
  );
}
