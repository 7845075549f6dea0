// The mask explorer: knobs, a strip of layers, and which keys the rows of one layer see.

const CELLS = 64;
const LONGEST = 262144;
const PHASES = {
  prompt: "prompt",
  tail: "dense tail, the prompt's last tokens",
  generated: "generated tokens",
};
const ROLES = {
  full: "full",
  selected: "selected",
  decode: "full decode",
  sliding: "sliding",
};

const roleOf = (plan) => {
  if (plan.window === null) return "full";
  if (plan.selectedKeys) return "selected";
  return plan.fullDecode ? "decode" : "sliding";
};

const FIELDS = [
  ["window", "window (keys)", "keys a sliding row sees, itself included; none: every layer is full"],
  ["sink_tokens", "sink_tokens", "first tokens of the prompt, always visible"],
  ["full_layers", "full_layers", "none, 1,3,5 or a rule: odd, even, every:4+1, first:1/4, last:1/2"],
  ["full_decode", "full_decode", "all, none, 1,3,5 or a rule"],
  ["dense_tail", "dense_tail", "last prompt tokens that see every key"],
  ["selected_layers", "selected_layers", "layers whose prompt tokens also see older keys by content: none, all, 1,3,5 or a rule"],
  ["selected_keys", "selected_keys", "how many older keys they see, a multiple of 64"],
  ["layers", "layers of the model", "decoder layers"],
  ["prompt", "prompt (tokens)", "length of the prompt"],
  ["generated", "generated (tokens)", "tokens after the prompt"],
];

function showExplorer(host, data) {
  const first = data.recipes.find((recipe) => recipe.name === "balanced") ?? data.recipes[0];
  const sizes = { layers: "36", prompt: "8192", generated: "1024" };
  const state = { recipe: first.name, ...sizes, layer: 0, row: null, ...knobsOf(first.config) };
  const output = html`<div class="explorer-output"></div>`;
  const known = new Map([...data.recipes, ...data.settings].map((one) => [one.name, one]));

  const field = ([name, label, help]) => {
    const typed = (event) => {
      state[name] = event.target.value.trim();
      if (KNOBS.includes(name)) chosen.value = state.recipe = "own";
      draw();
    };
    const mode = /full_|layers$/.test(name) && name !== "layers" ? "text" : "numeric";
    return html`<label class="field" title="${help}">
      <span>${label}</span>
      <input type="text" inputmode="${mode}" autocomplete="off" spellcheck="false" size="10"
        value="${state[name]}" name="${name}" @input="${typed}">
    </label>`;
  };
  const fields = FIELDS.map(field);
  const names = (items) => items.map((one) => [one.name, one.name]);
  const options = [
    ["own", "own knobs"],
    ["Recipes", names(data.recipes)],
    ["Settings of the runs here", names(data.settings)],
  ];
  const picker = select("Recipe", options.filter(([, some]) => some.length), state.recipe, (name) => {
    state.recipe = name;
    if (known.has(name)) Object.assign(state, knobsOf(known.get(name).config));
    for (const input of fields.map((one) => one.querySelector("input"))) input.value = state[input.name];
    draw();
  });
  const chosen = picker.querySelector("select");

  function draw() {
    try {
      drawExplorer(output, known.get(state.recipe), state, readState(state), draw);
    } catch (error) {
      output.replaceChildren(html`<p class="empty" role="alert">${error.message}</p>`);
    }
  }

  host.replaceChildren(html`<div class="controls">${picker} ${fields}</div>`, output);
  draw();
}

const KNOBS = FIELDS.slice(0, 7).map(([name]) => name);

/** A configuration as the texts of the knobs. */
function knobsOf(config) {
  const words = (value) => {
    if (Array.isArray(value)) return value.join(",") || "none";
    if (typeof value !== "object") return value;
    // KV heads by layer, as --full-decode takes them.
    return Object.entries(value)
      .map(([layer, heads]) => `${layer}:${heads.join("+")}`)
      .join(",");
  };
  const decode = config.full_decode;
  return {
    window: config.window === null ? "none" : String(config.window),
    sink_tokens: String(config.sink_tokens),
    full_layers: words(config.full_layers),
    full_decode: decode === true ? "all" : decode === false ? "none" : words(decode),
    dense_tail: String(config.dense_tail),
    selected_layers: words(config.selected_layers ?? []),
    selected_keys: String(config.selected_keys ?? 0),
  };
}

/** The knobs' texts as numbers; throws what is wrong with the first that cannot be read. */
function readState(state) {
  const count = (name, least, most) => {
    const value = Number(state[name]);
    if (!/^\d+$/.test(state[name]) || value < least || value > most) {
      throw new Error(
        `${name}: expected a whole number from ${whole(least)} to ${whole(most)}, got "${state[name]}"`,
      );
    }
    return value;
  };
  const config = {
    window: state.window === "none" ? null : count("window", 1, 2 ** 31),
    sink_tokens: count("sink_tokens", 0, 2 ** 31),
    full_layers: selectionOf(state.full_layers),
    full_decode: state.full_decode === "all" ? true : selectionOf(state.full_decode),
    dense_tail: count("dense_tail", 0, 2 ** 31),
    selected_layers: selectionOf(state.selected_layers),
    selected_keys: count("selected_keys", 0, 2 ** 31),
  };
  const layers = count("layers", 1, 512);
  const prompt = count("prompt", 1, LONGEST);
  const generated = count("generated", 0, LONGEST);
  return { config, plans: layerPlans(config, layers), prompt, total: prompt + generated };
}

const selectionOf = (text) => {
  if (/^\d+:\d/.test(text)) {
    throw new Error(`"${text}" names KV heads, which are not drawn here: give whole layers`);
  }
  if (text === "none" || text === "") return [];
  return /^[\d\s,]+$/.test(text) ? text.split(",").map(Number) : text;
};

function drawExplorer(output, recipe, state, view, draw) {
  state.layer = Math.min(state.layer, view.plans.length - 1);
  const plan = view.plans[state.layer];
  const choose = (layer) => {
    state.layer = layer;
    draw();
    output.querySelector('.strip [tabindex="0"]').focus();
  };
  const about = recipe ? (recipe.description ?? "A setting that runs here measured.") : "Own knobs.";
  const selected =
    `Prompt tokens of this layer also see up to ${whole(plan.selectedKeys)} older keys. Which ones` +
    " depends on what the prompt says: they are neither drawn nor counted.";
  output.replaceChildren(html`<p class="about">${about}</p>
    ${layerStrip(view.plans, state, choose)}
    <div class="mask">
      ${drawGrid(plan, view)}
      <div>
        ${plan.selectedKeys ? html`<p class="about">${selected}</p>` : null}
        ${phaseTable(plan, view, state.layer)} ${totals(view)} ${probe(plan, view, state)}
      </div>
    </div>`);
}
