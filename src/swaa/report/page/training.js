// What a training changed: right answers of the full model, of the recipe before it, and after.

const STATES = ["var(--full)", "var(--s1)", "var(--s0)", "var(--s2)", "var(--s3)", "var(--s4)"];

function showTraining(host, data) {
  const runs = groupBy(data.trainings, (item) => item.run);
  if (!runs.size)
    return host.replaceChildren(noData("no run trained a model. Write some by", "swaa train"));
  // The newest of those with the most prompts first.
  const order = [...runs.keys()].sort(
    (a, b) => runs.get(b)[0].samples - runs.get(a)[0].samples || data.runs[b].provenance.created.localeCompare(data.runs[a].provenance.created),
  );
  const title = (run) => {
    const { subject, setting, path } = data.runs[run];
    return `${subject}, ${setting}, ${runs.get(run)[0].recipe} (${path.split("/").pop()})`;
  };
  const state = { run: String(order[0]) };
  const options = order.map((run) => [String(run), title(run)]);
  panel(host, state, () => [["run", "Training", options]], () => {
    const items = runs.get(Number(state.run));
    return html`<p class="chosen">${title(Number(state.run))}</p>
      ${chart("Right answers before and after training", (width) => trainingSpec(items, width))}
      ${provenance([data.runs[state.run]])}
      ${numbers(
        ["task", "state", "right", "accuracy", "95 % interval"],
        items.map((one) => [one.task, one.state, `${one.right} of ${one.samples}`, percent(one.right / one.samples),
          `${percent(one.low)} to ${percent(one.high)}`]),
      )}`;
  });
}

function trainingSpec(items, width) {
  const names = distinct(items.map((item) => item.state));
  const looks = new Map(names.map((name, at) => [name, { colour: STATES[at % STATES.length], shape: "square" }]));
  const values = items.map((item) => ({
    name: item.state, task: item.task, y: item.right / item.samples, low: item.low, high: item.high,
    ...tell(`${item.task}: ${item.state}`, [
      `${item.right} of ${item.samples} right, 95 % interval ${percent(item.low)} to ${percent(item.high)}`,
    ]),
  }));
  return {
    height: width < 520 ? 260 : 300,
    data: { values },
    encoding: {
      x: { field: "task", type: "nominal", sort: null, title: null, axis: { labelAngle: 0, labelColor: "var(--ink)" } },
      xOffset: { field: "name", type: "nominal", sort: names },
      y: { field: "y", type: "quantitative", title: "right answers", axis: { format: ".0%" }, scale: { domain: [0, 1] } },
    },
    layer: [
      {
        mark: { type: "bar", width: { band: 0.85 } },
        params: [CHOSEN],
        encoding: { color: encodeNames(names, looks, width).color, ...TOLD, opacity: FADED },
      },
      ...whiskers(values, "y", "low", "high"),
    ],
  };
}
