// The mask explorer: knobs, a strip of layers, and which keys the rows of one layer see.

const CELLS = 64;
const LONGEST = 262144;
const PHASES = {
  prompt: "prompt",
  tail: "dense tail, the prompt's last tokens",
  generated: "generated tokens",
};
const ROLES = { full: "full", decode: "full decode", sliding: "sliding" };

const roleOf = (plan) => (plan.window === null ? "full" : plan.fullDecode ? "decode" : "sliding");

function showExplorer(host, data) {
  const first = data.recipes.find((recipe) => recipe.name === "balanced") ?? data.recipes[0];
  const state = { recipe: first.name, layers: "36", prompt: "8192", generated: "1024", layer: 0, row: null };
  Object.assign(state, knobsOf(first.config));

  const output = make("div", { class: "explorer-output" });
  const inputs = new Map();

  function field(name, label, help) {
    const input = make("input", {
      type: "text",
      inputmode: ["full_layers", "full_decode"].includes(name) ? "text" : "numeric",
      autocomplete: "off",
      spellcheck: "false",
      size: 10,
      value: state[name],
      name,
      title: help,
      oninput: () => {
        state[name] = input.value.trim();
        if (KNOBS.includes(name)) chosen.value = state.recipe = "own";
        draw();
      },
    });
    inputs.set(name, input);
    return make("label", { class: "field" }, make("span", {}, label), input);
  }

  const picker = select(
    "Recipe",
    [[null, [...data.recipes.map((recipe) => [recipe.name, recipe.name]), ["own", "own knobs"]]]],
    state.recipe,
    (name) => {
      state.recipe = name;
      const recipe = data.recipes.find((one) => one.name === name);
      if (recipe) Object.assign(state, knobsOf(recipe.config));
      for (const knob of KNOBS) inputs.get(knob).value = state[knob];
      draw();
    },
  );
  const chosen = picker.querySelector("select");

  function draw() {
    try {
      const view = readState(state);
      drawExplorer(output, data, state, view, draw);
    } catch (error) {
      output.replaceChildren(make("p", { class: "empty", role: "alert" }, error.message));
    }
  }

  host.replaceChildren(
    make(
      "div",
      { class: "controls" },
      picker,
      field("window", "window (keys)", "keys a sliding row sees, itself included; none: every layer is full"),
      field("sink_tokens", "sink_tokens", "first tokens of the prompt, always visible"),
      field("full_layers", "full_layers", "none, 1,3,5 or a rule: odd, even, every:4+1, first:1/4, middle:1/2, last:1/2"),
      field("full_decode", "full_decode", "all, none, 1,3,5 or a rule"),
      field("dense_tail", "dense_tail", "last prompt tokens that see every key"),
      field("layers", "layers of the model", "decoder layers"),
      field("prompt", "prompt (tokens)", "length of the prompt"),
      field("generated", "generated (tokens)", "tokens behind the prompt"),
    ),
    output,
  );
  draw();
}

const KNOBS = ["window", "sink_tokens", "full_layers", "full_decode", "dense_tail"];

/** A configuration as the texts of the knobs. */
function knobsOf(config) {
  const words = (value) => (Array.isArray(value) ? value.join(",") || "none" : value);
  const decode = config.full_decode;
  return {
    window: config.window === null ? "none" : String(config.window),
    sink_tokens: String(config.sink_tokens),
    full_layers: words(config.full_layers),
    full_decode: decode === true ? "all" : decode === false ? "none" : words(decode),
    dense_tail: String(config.dense_tail),
  };
}

/** The knobs' texts as numbers; throws what is wrong with the first that cannot be read. */
function readState(state) {
  const count = (name, least, most) => {
    const value = Number(state[name]);
    if (!/^\d+$/.test(state[name]) || value < least || value > most) {
      throw new Error(`${name}: expected a whole number from ${whole(least)} to ${whole(most)}, got "${state[name]}"`);
    }
    return value;
  };
  const config = {
    window: state.window === "none" ? null : count("window", 1, 2 ** 31),
    sink_tokens: count("sink_tokens", 0, 2 ** 31),
    full_layers: selectionOf(state.full_layers),
    full_decode: state.full_decode === "all" ? true : selectionOf(state.full_decode),
    dense_tail: count("dense_tail", 0, 2 ** 31),
  };
  const layers = count("layers", 1, 512);
  const prompt = count("prompt", 1, LONGEST);
  const generated = count("generated", 0, LONGEST);
  return { config, plans: layerPlans(config, layers), prompt, total: prompt + generated };
}

const selectionOf = (text) => {
  if (text === "none" || text === "") return [];
  return /^[\d\s,]+$/.test(text) ? text.split(",").map(Number) : text;
};

function drawExplorer(output, data, state, view, draw) {
  state.layer = Math.min(state.layer, view.plans.length - 1);
  const plan = view.plans[state.layer];
  const recipe = data.recipes.find((one) => one.name === state.recipe);
  const grid = drawGrid(plan, view);
  output.replaceChildren(
    make("p", { class: "about" }, recipe ? recipe.description : "Own knobs."),
    layerStrip(view.plans, state, (layer) => {
      state.layer = layer;
      draw();
      output.querySelector('.strip [tabindex="0"]').focus();
    }),
    make(
      "div",
      { class: "mask" },
      grid,
      make("div", {}, phaseTable(plan, view, state.layer), totals(view), probe(plan, view, state)),
    ),
  );
}

/** One cell a layer, coloured by what it does; arrow keys choose. */
function layerStrip(plans, state, choose) {
  const counts = groupBy(plans, roleOf);
  const cells = plans.map((plan, index) =>
    make("button", {
      type: "button",
      role: "radio",
      class: `layer ${roleOf(plan)}`,
      "aria-checked": String(index === state.layer),
      tabindex: index === state.layer ? "0" : "-1",
      "aria-label": `layer ${index}, ${ROLES[roleOf(plan)]}`,
      title: `layer ${index}: ${ROLES[roleOf(plan)]}`,
      onclick: () => choose(index),
    }, String(index)),
  );
  const strip = make("div", { class: "strip", role: "radiogroup", "aria-label": "Layer" }, cells);
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? plans.length - 1 : step && state.layer + step;
    if (to === undefined || to < 0 || to >= plans.length) return;
    event.preventDefault();
    choose(to);
  });
  const key = Object.entries(ROLES).map(([role, name]) =>
    make("span", {}, make("i", { class: `layer ${role}` }), `${name}: ${(counts.get(role) ?? []).length}`),
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
      svg.append(make("rect", {
        x: j, y: i, width: 0.96, height: 0.96, class: phase,
        "fill-opacity": share === 1 ? null : (0.18 + 0.62 * share).toFixed(3),
        "data-query": i, "data-key": j, "data-count": count,
      }));
    }
  }
  const at = prompt / size;
  if (prompt < total) svg.append(make("line", { class: "end", x1: 0, x2: blocks, y1: at, y2: at }));
  const caption = make("figcaption", {}, `queries ↓, keys →; a cell is ${size === 1 ? "one token" : `${whole(size)} × ${whole(size)} tokens`}`);
  const shown = make("p", { class: "cell" }, "Point at a cell to count its pairs.");
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const [j, i] = [event.clientX - frame.left, event.clientY - frame.top].map((v) =>
      Math.min(blocks - 1, Math.max(0, Math.floor((v / frame.width) * blocks))));
    const span = (n) => size === 1 ? whole(n) : `${whole(n * size)}–${whole(Math.min(total, (n + 1) * size) - 1)}`;
    shown.textContent = `queries ${span(i)} see ${whole(counts[i][j])} of ${whole(rows(i) * rows(j))} pairs with keys ${span(j)}`;
  });
  return make("figure", {}, svg, caption, shown);
}

/** The phase that most rows of a cell belong to. */
function mostRows(plan, first, end, prompt) {
  const tail = plan.window === null ? prompt : Math.max(0, prompt - plan.denseTail);
  const spans = [["prompt", 0, tail], ["tail", tail, prompt], ["generated", prompt, Infinity]];
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
  const rows = [["prompt", 0, prompt - tail, false], ["tail", prompt - tail, prompt, true], ["generated", prompt, total, plan.fullDecode]];
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
    make("thead", {}, make("tr", {}, ["phase", "rows", "sees"].map((text) => make("th", { scope: "col" }, text)))),
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
    make("dd", {}, `${whole(kept)} layer-tokens, ${percent(kept / (plans.length * prompt), 2)} of full attention's`),
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
    const words = spans.map(([first, end]) => (end - first === 1 ? whole(first) : `${whole(first)}–${whole(end - 1)}`));
    answer.textContent = `${PHASES[phaseOf(plan, row, prompt)]}; sees keys ${words.join(" and ")}: ${whole(spanLength(spans))} of ${whole(row + 1)}`;
  };
  const input = make("input", { type: "text", inputmode: "numeric", size: 10, name: "row", value: state.row ?? String(prompt - 1), oninput: tell });
  tell();
  return make("p", { class: "probe" }, make("label", { class: "field" }, make("span", {}, "Row at position"), input), answer);
}
