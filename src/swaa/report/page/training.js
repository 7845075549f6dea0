// What a training changed: right answers of the full model, of the recipe before it, and after.

const STATES = ["full", "s1", "s0", "s2", "s3", "s4"].map((name) => `var(--${name})`);

function showTraining(host, data) {
  const trainings = [...groupBy(data.trainings, (item) => item.run)];
  if (!trainings.length)
    return host.replaceChildren(noData("no run trained a model. Write some by", "swaa train"));
  const made = (run) => data.runs[run].provenance.created;
  // What asked the most prompts first; of equals, the newest.
  trainings.sort(
    ([a, [one]], [b, [other]]) => other.samples - one.samples || made(b).localeCompare(made(a)),
  );
  const title = (run, items) => {
    const { subject, setting, path } = data.runs[run];
    return `${subject}, ${setting}, ${items[0].recipe} (${path.split("/").pop()})`;
  };
  const options = trainings.map(([run, items], at) => [String(at), title(run, items)]);
  panel(host, { at: "0" }, () => [["at", "Training", options]], ({ at }) => {
    const [run, items] = trainings[at];
    return html`<p class="chosen">${title(run, items)}</p>
      ${chart("Right answers before and after training", (width) => trainingSpec(items, width))}
      ${provenance([data.runs[run]])}
      ${numbers(["task", "state", "right", "accuracy", "95 % interval"], items.map(trainingRow))}`;
  });
}

const trainingRow = ({ task, state, right, samples, low, high }) => [
  task,
  state,
  `${right} of ${samples}`,
  percent(right / samples),
  `${percent(low)} to ${percent(high)}`,
];

function trainingSpec(items, width) {
  const names = distinct(items.map((item) => item.state));
  const colours = STATES.map((colour) => ({ colour, shape: "square" }));
  const looks = new Map(names.map((name, at) => [name, colours[at % colours.length]]));
  const values = items.map((item) => {
    const [task, state, right, , interval] = trainingRow(item);
    const told = tell(`${task}: ${state}`, [`${right} right, 95 % interval ${interval}`]);
    return { ...item, name: state, y: item.right / item.samples, ...told };
  });
  return {
    height: width < 520 ? 260 : 300,
    data: { values },
    encoding: {
      x: nominal("task", { axis: { labelAngle: 0, ...INK } }),
      xOffset: nominal("name", { sort: names }),
      y: amount("y", {
        title: "right answers",
        axis: { format: ".0%" },
        scale: { domain: [0, 1] },
      }),
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
