// What all figures share: choices, provenance, the numbers as a table.

/** A labelled choice; `options` holds names, or pairs of value and text, or [heading, options]. */
function select(label, options, value, change) {
  const option = (one) => {
    const [key, text] = Array.isArray(one) ? one : [one, one];
    if (!Array.isArray(text))
      return html`<option value="${key}">${text}</option>`;
    return html`<optgroup label="${key}">${text.map(option)}</optgroup>`;
  };
  const node = html`<label class="field"
    ><span>${label}</span><select @change="${(event) => change(event.target.value)}">
      ${options.map(option)}
    </select></label>`;
  node.querySelector("select").value = value;
  return node;
}

/**
 * A figure with choices above. `choices(state)` lists [name, label, options], and puts right what
 * an earlier choice ruled out; `draw(state)` returns what is shown below.
 */
function panel(host, state, choices, draw) {
  const [bar, output] = [html`<div class="controls"></div>`, html`<div class="output"></div>`];
  const kept = new Map();
  const update = () => {
    const fields = choices(state).map(([name, label, options]) => {
      const key = JSON.stringify([label, options]);
      if (kept.get(name)?.key !== key) {
        const change = (value) => {
          state[name] = value;
          update();
        };
        kept.set(name, { key, node: select(label, options, state[name], change) });
      }
      const { node } = kept.get(name);
      Object.assign(node.querySelector("select"), { name, value: state[name] });
      return node;
    });
    if (fields.some((node, at) => node !== bar.children[at]) || fields.length < bar.children.length) {
      const focused = document.activeElement;
      bar.replaceChildren(...fields);
      focused.focus();
    }
    output.replaceChildren(draw(state));
  };
  host.replaceChildren(bar, output);
  update();
}

/** Where the drawn numbers come from: machine, precision, commit, date and files. */
function provenance(runs) {
  const groups = groupBy(runs, ({ provenance: from }) =>
    [from.device, from.dtype, commitOf(from), day(from.created)].filter(Boolean).join(" · "),
  );
  const link = (run) => html`<a href="${run.files.result}">${run.path.split("/").pop()}</a>`;
  const files = (members) =>
    members.length === 1
      ? link(members[0])
      : html`<details>
          <summary>${members.length} run files</summary>
          <ul>${members.map((run) => html`<li>${link(run)}</li>`)}</ul>
        </details>`;
  return html`<ul class="provenance" aria-label="Provenance">
    ${[...groups].map(([name, members]) => html`<li>${name} · ${files(members)}</li>`)}
  </ul>`;
}

/** The numbers of a figure, folded away. */
function numbers(headers, rows) {
  const cell = (value) =>
    html`<td class="${/^[\d−-]/.test(value) ? "num" : "text"}">${value ?? "–"}</td>`;
  return html`<details class="numbers">
    <summary>The same as numbers</summary>
    <div class="scroll" tabindex="0" role="region" aria-label="Numbers">
      <table>
        <thead><tr>${headers.map((text) => html`<th scope="col">${text}</th>`)}</tr></thead>
        <tbody>${rows.map((row) => html`<tr>${row.map(cell)}</tr>`)}</tbody>
      </table>
    </div>
  </details>`;
}

/** The choice between what is shipped and everything, where there is more. */
const shownChoice = (few, all) =>
  few === all
    ? []
    : [["shown", "Settings", [
        ["recipes", `shipped recipes (${few})`],
        ["all", `all that were measured (${all})`],
      ]]];

const notes = (texts) =>
  texts.length ? html`<ul class="notes">${texts.map((text) => html`<li>${text}</li>`)}</ul>` : null;

/** What a figure says as long as no run has data for it. */
const noData = (what, command) =>
  html`<p class="empty">No data yet: ${what} <code>${command}</code></p>`;
