// Accuracy against what it costs: our runs, and the paper's as a second, hollow series.

function showPareto(host, data) {
  const own = groupBy(data.answers, (answer) => answer.group);
  const looks = looksOf(data);
  const recipes = new Set(data.recipes.map((recipe) => recipe.name));
  const paper = groupBy(data.paper.answers, (answer) => answer.group);
  const bySize = [...own.keys()].sort(
    (a, b) => own.get(b).length - own.get(a).length || (a < b ? -1 : 1),
  );
  const names = [...paper.keys()];
  const state = {
    group: bySize[0] ?? names[0],
    against: own.size ? "" : names[0],
    x: null,
    y: "accuracy",
    hidden: new Set(),
  };
  const set = (name) => (value) => {
    state[name] = value;
    state.hidden.clear();
    redraw(host, draw);
  };

  function draw() {
    const ours = withoutRepeats(own.get(state.group) ?? paper.get(state.group));
    // The paper gives times only, which are compared as shares of full attention's.
    const timed = ours.some((answer) => answer.full && answer.seconds);
    const theirs =
      timed && state.against !== state.group ? (paper.get(state.against) ?? []) : [];
    const cost = costs(ours, theirs);
    const x = pick(cost, state.x, ours);
    const notes = [];
    const scored = ours.some(hasScore);
    const up = state.y === "score" && !scored ? "accuracy" : state.y;
    const view = { ...state, x, y: up, scored, timed, recipes, looks, of: cost[x]?.of ?? (() => null) };
    const shown = paretoSeries(ours, theirs, view, notes);
    const visible = shown.filter((series) => !state.hidden.has(series.name));
    host.replaceChildren(
      make(
        "div",
        { class: "controls" },
        select("Model, task, machine", groupChoices(bySize, names), state.group, set("group")),
        timed
          ? select(
              "Beside it",
              [[null, [["", "nothing"], ...names.map((n) => [n, n])]]],
              state.against,
              set("against"),
            )
          : null,
        segmented(
          "Cost (x axis)",
          Object.entries(cost).map(([key, c]) => [key, c.text, c.off]),
          x,
          set("x"),
        ),
        segmented(
          "Quality (y axis)",
          [
            ["accuracy", "right answers"],
            ...(scored ? [["score", "mean score"]] : []),
            ["kept", "of full attention"],
          ],
          up,
          set("y"),
        ),
      ),
    );
    host.append(
      make(
        "p",
        { class: "chosen" },
        state.group,
        theirs.length ? ` · beside ${state.against}` : "",
      ),
    );
    if (!own.size) {
      const hint = make("p", { class: "empty" });
      noData(
        hint,
        "no run answered questions; below are the paper's numbers only. Write some by",
        EVAL,
      );
      host.append(...hint.childNodes);
    }
    if (!x) return host.append(...paretoNotes(ours, theirs, view, data, notes), paretoNumbers(ours));
    const spec = paretoSpec(visible, cost[x], view);
    drawChart(host, spec);
    host.append(
      ...[frontList(spec.front, cost[x], view)].filter(Boolean),
      legend(shown, state.hidden, () => redraw(host, draw)),
      ...paretoNotes(ours, theirs, view, data, notes),
      paretoNumbers([...ours, ...theirs]),
    );
  }
  draw();
}

/** Without points that several runs of one setting share in all that is drawn. */
function withoutRepeats(answers) {
  const seen = groupBy(answers, ({ run, ...rest }) => JSON.stringify(rest));
  return [...seen.values()].map((same) => ({ ...same[0], runs: same.map((one) => one.run) }));
}

const EVAL = "swaa eval MODEL --recipes full,fast,balanced --tasks needle,multikey";

const groupChoices = (own, paper) =>
  [
    ["Runs of this folder", own.map((name) => [name, name])],
    ["The paper's own numbers", paper.map((name) => [name, name])],
  ].filter(([, options]) => options.length);

/** Whether parts of an answer count, so that the score says more than right or wrong. */
const hasScore = (answer) =>
  answer.score !== null && Math.abs(answer.score - answer.accuracy) > 1e-9;

function paretoSeries(ours, theirs, state, notes) {
  const make1 = (answers, from, hollow) => {
    const full = answers.find((answer) => answer.full && answer.seconds) ?? fullOf(answers);
    const missing = [];
    if (state.y === "kept" && !full)
      notes.push(`No full attention in ${from}: shares cannot be drawn.`);
    const drawn = answers.flatMap((answer) => {
      const x = state.of(answer, full ?? {}) ?? NaN;
      const up = heightOf(answer, full, state);
      if (!Number.isFinite(x) || !Number.isFinite(up.y)) {
        missing.push([
          answer.setting,
          Number.isFinite(x) ? "full attention answers nothing" : "no such cost known",
        ]);
        return [];
      }
      const looked = hollow
        ? { colour: "var(--paper)", shape: answer.trained ? "diamond" : "circle" }
        : state.looks.get(answer.setting);
      return [
        {
          answer,
          hollow,
          ...looked,
          point: paretoPoint(answer, { x, ...up }, full, hollow, state),
        },
      ];
    });
    for (const [reason, some] of groupBy(missing, ([, why]) => why))
      notes.push(`Not drawn, ${reason}: ${distinct(some.map(([name]) => name)).join(", ")}.`);
    return drawn;
  };
  const own = make1(ours, "this group", String(ours[0]?.group).startsWith("paper:"));
  const other = make1(theirs, "the paper's group", true);
  const items = [...own, ...other];
  const named = items.map((item) => ({
    name: item.hollow
      ? item.answer.trained
        ? "paper, trained"
        : "paper, not trained"
      : item.answer.setting,
    ...item,
  }));
  return [...groupBy(named, (item) => item.name)].map(([name, members]) => ({
    name,
    detail: members.length === 1 ? members[0].answer.detail : null,
    colour: members[0].colour,
    shape: members[0].shape,
    hollow: members[0].hollow,
    points: members.map((member) => member.point),
  }));
}

/** How far up a point lies, and its interval; a mean score has none. */
function heightOf(answer, full, state) {
  const score = state.scored ? answer.score : null;
  if (state.y === "score") return { y: score ?? answer.accuracy, low: null, high: null };
  if (state.y === "accuracy") return { y: answer.accuracy, low: answer.low, high: answer.high };
  if (score !== null) return { y: score / (full?.score || NaN), low: null, high: null };
  const of = (value) => (value === null ? null : value / (full?.accuracy || NaN));
  return { y: of(answer.accuracy), low: of(answer.low), high: of(answer.high) };
}

function paretoPoint(answer, place, full, hollow, state) {
  const interval =
    answer.low === null
      ? "no interval given"
      : `95 % interval ${percent(answer.low)} to ${percent(answer.high)}`;
  return {
    ...place,
    ...across(answer, full, state.x),
    label: hollow ? "" : answer.setting,
    first: answer.full ? 2 : state.recipes.has(answer.setting) ? 1 : 0,
    title: answer.setting,
    lines: [
      answer.detail === answer.setting ? null : answer.detail,
      `${percent(answer.accuracy)} right (${answer.count}), ${interval}`,
      hasScore(answer) ? `mean score ${percent(answer.score)}` : null,
      answer.seconds === null ? null : `${quantity(answer.seconds, "s")}: ${answer.time}`,
      full?.seconds && answer.seconds
        ? `${digits(full.seconds / answer.seconds)}x as fast as full attention`
        : null,
      answer.kv_bytes === null ? null : `${quantity(answer.kv_bytes, "B", 4)} of keys and values`,
      answer.kv_share === null ? null : `${percent(answer.kv_share)} of full attention's KV`,
      answer.flops_share === null
        ? null
        : `${percent(answer.flops_share)} of full attention's prefill FLOPs`,
      answer.keys_share === null
        ? null
        : `${percent(answer.keys_share)} of the keys that full attention visits`,
      hollow ? "as the paper reports it" : null,
    ].filter(Boolean),
  };
}

function paretoSpec(series, cost, state) {
  const points = series.filter((item) => !item.hollow).flatMap((item) => item.points);
  const all = series.flatMap((item) => item.points);
  const most = Math.max(0, ...all.map((point) => Math.max(point.y, point.high ?? 0)));
  const front = paretoFront(points.length ? points : all);
  for (const point of front) point.first = 3;
  const [least, dearest] = [Math.min, Math.max].map((end) => end(...all.map((point) => point.x)));
  return {
    title: "Accuracy against cost",
    series,
    front,
    // From zero, unless that leaves half of the chart empty.
    x: {
      label: cost.label,
      min: least > dearest / 2 && least < dearest ? undefined : 0,
      format: (value) => short(value),
    },
    y: {
      label: {
        accuracy: "right answers (%)",
        score: "mean score (%)",
        kept: `${state.scored ? "mean score" : "right answers"}, full attention = 100 %`,
      }[state.y],
      min: 0,
      max: state.y !== "kept" ? 1 : Math.max(1, Math.ceil(most * 5) / 5),
      format: (value) => `${Math.round(100 * value)} %`,
    },
  };
}

function paretoNotes(ours, theirs, state, data, notes) {
  const runs = distinct(ours.flatMap((answer) => answer.runs)).filter((run) => run !== undefined);
  const paper = theirs.length || String(state.group).startsWith("paper:");
  const why = distinct(ours.map((answer) => answer.time)).filter((time) => time.includes(": "));
  const texts = [
    ...notes,
    ...why.map((time) => `${time[0].toUpperCase()}${time.slice(1)}.`),
    ...(state.timed
      ? []
      : ["The paper gives times only: nothing of it can lie beside runs without them."]),
    ...(state.y === "kept" && !state.scored
      ? ["Intervals are those of the setting alone; full attention's own is not in them."]
      : []),
    ...(paper
      ? [`Hollow marks: ${data.paper.source}; not measured here.`, ...data.paper.notes]
      : []),
  ];
  return [
    texts.length
      ? make(
          "ul",
          { class: "notes" },
          texts.map((text) => make("li", {}, text)),
        )
      : null,
    runs.length ? provenance(runs.map((index) => data.runs[index])) : null,
  ].filter(Boolean);
}

function paretoNumbers(answers) {
  return numbers(
    [
      "setting",
      "what it does",
      "right",
      "accuracy",
      "mean score",
      "95 % interval",
      "seconds",
      "p20 to p80",
      "KV MiB",
      "KV share",
      "FLOPs share",
      "keys share",
    ],
    answers.map((a) => [
      a.setting,
      a.detail,
      a.count,
      percent(a.accuracy),
      a.score === null ? null : percent(a.score),
      a.low === null ? null : `${percent(a.low)} to ${percent(a.high)}`,
      a.seconds === null ? null : digits(a.seconds, 4),
      a.seconds_low === null ? null : `${digits(a.seconds_low, 4)} to ${digits(a.seconds_high, 4)}`,
      a.kv_bytes === null ? null : digits(a.kv_bytes / 2 ** 20, 4),
      a.kv_share === null ? null : percent(a.kv_share),
      a.flops_share === null ? null : percent(a.flops_share),
      a.keys_share === null ? null : percent(a.keys_share),
    ]),
  );
}
