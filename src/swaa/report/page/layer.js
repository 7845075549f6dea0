// One layer of the explorer: the strip it is chosen from, its mask, its phases, a single row.

/** One cell a layer, coloured by what it does; arrow keys choose. */
function layerStrip(plans, state, choose) {
  const counts = groupBy(plans, roleOf);
  const cells = plans.map((plan, index) =>
    make(
      "button",
      {
        type: "button",
        role: "radio",
        class: `layer ${roleOf(plan)}`,
        "aria-checked": String(index === state.layer),
        tabindex: index === state.layer ? "0" : "-1",
        "aria-label": `layer ${index}, ${ROLES[roleOf(plan)]}`,
        title: `layer ${index}: ${ROLES[roleOf(plan)]}`,
        onclick: () => choose(index),
      },
      String(index),
    ),
  );
  const strip = make("div", { class: "strip", role: "radiogroup", "aria-label": "Layer" }, cells);
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const to =
      event.key === "Home"
        ? 0
        : event.key === "End"
          ? plans.length - 1
          : step && state.layer + step;
    if (to === undefined || to < 0 || to >= plans.length) return;
    event.preventDefault();
    choose(to);
  });
  const key = Object.entries(ROLES).map(([role, name]) =>
    make(
      "span",
      {},
      make("i", { class: `layer ${role}` }),
      `${name}: ${(counts.get(role) ?? []).length}`,
    ),
  );
  return make("div", {}, strip, make("p", { class: "key" }, key));
}

/** The layer's mask; where tokens are many, blocks of them, shaded by the share that is visible. */
function drawGrid(plan, view) {
  const { total, prompt } = view;
  const size = Math.ceil(total / CELLS);
  const counts = blockCounts(plan, prompt, total, size);
  const blocks = counts.length;
  const rows = (at) => Math.min(size, total - at * size);
  const svg = make("svg", {
    viewBox: `0 0 ${blocks} ${blocks}`,
    class: "grid",
    role: "img",
    "aria-label": `Mask: ${whole(total)} queries down, ${whole(total)} keys across, cells of ${whole(size)} tokens.`,
  });
  for (const [i, row] of counts.entries()) {
    const phase = mostRows(plan, i * size, i * size + rows(i), prompt);
    for (const [j, count] of row.entries()) {
      if (!count) continue;
      const share = count / (rows(i) * rows(j));
      svg.append(
        make("rect", {
          x: j,
          y: i,
          width: 0.96,
          height: 0.96,
          class: phase,
          "fill-opacity": share === 1 ? null : (0.18 + 0.62 * share).toFixed(3),
          "data-query": i,
          "data-key": j,
          "data-count": count,
        }),
      );
    }
  }
  const at = prompt / size;
  if (prompt < total) svg.append(make("line", { class: "end", x1: 0, x2: blocks, y1: at, y2: at }));
  const caption = make(
    "figcaption",
    {},
    `queries ↓, keys →; a cell is ${size === 1 ? "one token" : `${whole(size)} × ${whole(size)} tokens`}`,
  );
  const shown = make("p", { class: "cell" }, "Point at a cell to count its pairs.");
  const countPairs = (event) => {
    const frame = svg.getBoundingClientRect();
    const [j, i] = [event.clientX - frame.left, event.clientY - frame.top].map((v) =>
      Math.min(blocks - 1, Math.max(0, Math.floor((v / frame.width) * blocks))),
    );
    const span = (n) =>
      size === 1 ? whole(n) : `${whole(n * size)}–${whole(Math.min(total, (n + 1) * size) - 1)}`;
    shown.textContent = `queries ${span(i)} see ${whole(counts[i][j])} of ${whole(rows(i) * rows(j))} pairs with keys ${span(j)}`;
  };
  svg.addEventListener("pointermove", countPairs);
  svg.addEventListener("pointerdown", countPairs);
  return make("figure", {}, svg, caption, shown);
}

/** The phase that most rows of a cell belong to. */
function mostRows(plan, first, end, prompt) {
  const tail = plan.window === null ? prompt : Math.max(0, prompt - plan.denseTail);
  const spans = [
    ["prompt", 0, tail],
    ["tail", tail, prompt],
    ["generated", prompt, Infinity],
  ];
  const sizes = spans.map(([name, from, to]) => [Math.min(end, to) - Math.max(first, from), name]);
  return sizes.reduce((best, one) => (one[0] > best[0] ? one : best))[1];
}

/** What each phase of a layer sees, in words. */
function phaseTable(plan, { prompt, total }, layer) {
  const sees = (full) => {
    if (full || plan.window === null) return "every key up to itself";
    const sinks = plan.sinks ? `, and the first ${whole(plan.sinks)}` : "";
    return `${whole(plan.window)} keys, itself included${sinks}`;
  };
  const tail = plan.window === null ? 0 : Math.min(plan.denseTail, prompt);
  const rows = [
    ["prompt", 0, prompt - tail, false],
    ["tail", prompt - tail, prompt, true],
    ["generated", prompt, total, plan.fullDecode],
  ];
  const body = rows
    .filter(([, from, until]) => until > from)
    .map(([phase, from, until, full]) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, make("i", { class: `layer ${phase}` }), PHASES[phase]),
        make("td", { class: "num" }, `${whole(from)}–${whole(until - 1)}`),
        make("td", {}, sees(full)),
      ),
    );
  return make(
    "table",
    { class: "phases" },
    make("caption", {}, `Layer ${layer}: ${ROLES[roleOf(plan)]}`),
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        ["phase", "rows", "sees"].map((text) => make("th", { scope: "col" }, text)),
      ),
    ),
    make("tbody", {}, body),
  );
}

/** What all layers together compute and keep, counted from the mask. */
function totals({ plans, prompt }) {
  const kinds = groupBy(plans, (plan) => JSON.stringify(plan));
  let pairs = 0;
  let kept = 0;
  for (const members of kinds.values()) {
    pairs += members.length * visiblePairs(members[0], prompt, 0, prompt);
    kept += members.length * keptTokens(members[0], prompt);
  }
  const all = (plans.length * prompt * (prompt + 1)) / 2;
  return make(
    "dl",
    { class: "totals" },
    make("dt", {}, "Prompt, all layers: query-key pairs"),
    make("dd", {}, `${whole(pairs)}, ${percent(pairs / all, 2)} of full attention's`),
    make("dt", {}, "Keys kept once the prompt is computed"),
    make(
      "dd",
      {},
      `${whole(kept)} layer-tokens, ${percent(kept / (plans.length * prompt), 2)} of full attention's`,
    ),
  );
}

/** Which keys a single row sees. */
function probe(plan, { prompt, total }, state) {
  const answer = make("output", {});
  const tell = () => {
    const row = Number(input.value);
    state.row = input.value;
    if (!/^\d+$/.test(input.value) || row >= total) {
      answer.textContent = `give a position from 0 to ${whole(total - 1)}`;
      return;
    }
    const spans = visibleSpans(plan, row, prompt);
    const words = spans.map(([first, end]) =>
      end - first === 1 ? whole(first) : `${whole(first)}–${whole(end - 1)}`,
    );
    answer.textContent = `${PHASES[phaseOf(plan, row, prompt)]}; sees keys ${words.join(" and ")}: ${whole(spanLength(spans))} of ${whole(row + 1)}`;
  };
  const input = make("input", {
    type: "text",
    inputmode: "numeric",
    size: 10,
    name: "row",
    value: state.row ?? String(prompt - 1),
    oninput: tell,
  });
  tell();
  return make(
    "p",
    { class: "probe" },
    make("label", { class: "field" }, make("span", {}, "Row at position"), input),
    answer,
  );
}
