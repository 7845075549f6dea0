// One layer of the explorer: the strip it is chosen from, its mask, its phases, a single row.

/** One cell a layer, coloured by what it does; arrow keys choose. */
function layerStrip(plans, state, choose) {
  const counts = groupBy(plans, roleOf);
  const cell = (plan, index) => {
    const [role, chosen] = [roleOf(plan), index === state.layer];
    return html`<button type="button" role="radio" class="layer ${role}" aria-checked="${chosen}"
      tabindex="${chosen ? 0 : -1}" aria-label="layer ${index}, ${ROLES[role]}"
      title="layer ${index}: ${ROLES[role]}" @click="${() => choose(index)}">${index}</button>`;
  };
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const ends = { Home: 0, End: plans.length - 1 };
    const to = ends[event.key] ?? (step && state.layer + step);
    if (to === undefined || to < 0 || to >= plans.length) return;
    event.preventDefault();
    choose(to);
  };
  const key = ([role, name]) =>
    html`<span><i class="layer ${role}"></i>${name}: ${(counts.get(role) ?? []).length}</span>`;
  return html`<div>
    <div class="strip" role="radiogroup" aria-label="Layer" @keydown="${move}">${plans.map(cell)}</div>
    <p class="key">${Object.entries(ROLES).map(key)}</p>
  </div>`;
}

/** The layer's mask; where tokens are many, blocks of them, shaded by the share that is visible. */
function drawGrid(plan, view) {
  const { total, prompt } = view;
  const size = Math.ceil(total / CELLS);
  const counts = blockCounts(plan, prompt, total, size);
  const blocks = counts.length;
  const rows = (at) => Math.min(size, total - at * size);
  const svg = html`<svg viewBox="0 0 ${blocks} ${blocks}" class="grid" role="img"
    aria-label="Mask: ${whole(total)} queries down, ${whole(total)} keys across, cells of ${whole(size)} tokens."></svg>`;
  const draw = (tag, attributes) => {
    const node = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    svg.append(node);
  };
  for (const [i, row] of counts.entries()) {
    const phase = mostRows(plan, i * size, i * size + rows(i), prompt);
    for (const [j, count] of row.entries()) {
      const share = count / (rows(i) * rows(j));
      const shade = { "fill-opacity": share === 1 ? 1 : (0.18 + 0.62 * share).toFixed(3) };
      const data = { "data-query": i, "data-key": j, "data-count": count };
      if (count) draw("rect", { x: j, y: i, width: 0.96, height: 0.96, class: phase, ...shade, ...data });
    }
  }
  const at = prompt / size;
  if (prompt < total) draw("line", { class: "end", x1: 0, x2: blocks, y1: at, y2: at });
  const shown = html`<p class="cell">Point at a cell to count its pairs.</p>`;
  const span = (n) =>
    size === 1 ? whole(n) : `${whole(n * size)}–${whole(Math.min(total, (n + 1) * size) - 1)}`;
  const countPairs = (event) => {
    const frame = svg.getBoundingClientRect();
    const [j, i] = [event.clientX - frame.left, event.clientY - frame.top].map((v) =>
      Math.min(blocks - 1, Math.max(0, Math.floor((v / frame.width) * blocks))),
    );
    shown.textContent = `queries ${span(i)} see ${whole(counts[i][j])} of ${whole(rows(i) * rows(j))} pairs with keys ${span(j)}`;
  };
  svg.addEventListener("pointermove", countPairs);
  svg.addEventListener("pointerdown", countPairs);
  const cell = size === 1 ? "one token" : `${whole(size)} × ${whole(size)} tokens`;
  return html`<figure>
    ${svg}
    <figcaption>queries ↓, keys →; a cell is ${cell}</figcaption>
    ${shown}
  </figure>`;
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
  const row = ([phase, from, until, full]) => html`<tr>
    <th scope="row"><i class="layer ${phase}"></i>${PHASES[phase]}</th>
    <td class="num">${whole(from)}–${whole(until - 1)}</td>
    <td>${sees(full)}</td>
  </tr>`;
  return html`<table class="phases">
    <caption>Layer ${layer}: ${ROLES[roleOf(plan)]}</caption>
    <thead><tr><th scope="col">phase</th><th scope="col">rows</th><th scope="col">sees</th></tr></thead>
    <tbody>${rows.filter(([, from, until]) => until > from).map(row)}</tbody>
  </table>`;
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
  const tokens = plans.length * prompt;
  return html`<dl class="totals">
    <dt>Prompt, all layers: query-key pairs</dt>
    <dd>${whole(pairs)}, ${percent(pairs / all, 2)} of full attention's</dd>
    <dt>Keys kept once the prompt is computed</dt>
    <dd>${whole(kept)} layer-tokens, ${percent(kept / tokens, 2)} of full attention's</dd>
  </dl>`;
}

/** Which keys a single row sees. */
function probe(plan, { prompt, total }, state) {
  const answer = html`<output></output>`;
  const input = html`<input type="text" inputmode="numeric" size="10" name="row"
    value="${state.row ?? prompt - 1}" @input="${() => tell()}">`;
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
  tell();
  return html`<p class="probe">
    <label class="field"><span>Row at position</span>${input}</label>${answer}
  </p>`;
}
