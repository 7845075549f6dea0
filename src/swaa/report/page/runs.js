// The table of all runs: filter, sort, open; on a phone each run is a card.

// key, name, what it is sorted by, what is shown (first and second line), where they differ.
const COLUMNS = [
  ["kind", "Kind", (run) => run.kind],
  ["subject", "Measured", (run) => run.subject, (run) => [run.subject, run.setting]],
  ["task", "Task", (run) => run.task],
  ["tokens", "Tokens", (run) => Math.max(0, ...run.tokens), (run) => [lengthRange(run.tokens)]],
  ["outcome", "Outcome", (run) => run.outcome, (run) => run.outcome.split("; ")],
  [
    "device",
    "Machine",
    (run) => run.provenance.device,
    (run) => [run.provenance.device, run.provenance.dtype ?? ""],
  ],
  [
    "date",
    "Date",
    (run) => String(run.provenance.created),
    (run) => [day(run.provenance.created), commitOf(run.provenance)],
  ],
];

function lengthRange(tokens) {
  if (tokens.length < 3) return tokens.map(whole).join(", ");
  return `${whole(Math.min(...tokens))} to ${whole(Math.max(...tokens))}`;
}

const linesOf = (run, [, , value, lines]) => (lines ? lines(run) : [value(run)]).filter(Boolean);

/** A text that may be broken after the signs inside of names. */
function breakable(text) {
  const parts = text.split(/(?<=[-/=]|[a-z]_)(?=[\w:])|(?<=\w)(?=\.[A-Za-z])/);
  return parts.map((part, index) => (index ? html`<wbr>${part}` : part));
}

function showRuns(host, data) {
  if (!data.runs.length)
    return host.replaceChildren(
      noData("this folder holds no result. See what writes some:", "swaa --help"),
    );
  const state = { text: "", kind: "", device: "", subject: "", sort: "kind", down: false };
  const set = (name) => (value) => {
    state[name] = value;
    draw();
  };
  const sortBy = (key) => () => {
    state.down = state.sort === key && !state.down;
    set("sort")(key);
  };
  const heads = COLUMNS.map(
    ([key, name]) => html`<th scope="col"><button type="button" @click="${sortBy(key)}">${name}</button></th>`,
  );
  const choice = (name, label, value) => {
    const values = distinct(data.runs.map(value)).sort();
    return select(label, [["", "all"], ...values.map((text) => [text, text])], "", set(name));
  };
  const search = (event) => set("text")(event.target.value.toLowerCase());
  const body = html`<tbody></tbody>`;
  const shown = html`<p class="count" role="status"></p>`;

  function draw() {
    const runs = sortRuns(data.runs.filter((run) => fits(run, state)), state);
    body.replaceChildren(...runs.flatMap(runRows));
    shown.textContent = `${runs.length} of ${data.runs.length} runs`;
    for (const [at, [key]] of COLUMNS.entries()) {
      const order = state.down ? "descending" : "ascending";
      heads[at].setAttribute("aria-sort", key === state.sort ? order : "none");
    }
  }

  host.replaceChildren(html`<div class="controls">
      <label class="field"><span>Search</span><input type="search" name="search" @input="${search}"></label>
      ${choice("kind", "Kind", (run) => run.kind)}
      ${choice("subject", "Measured", (run) => run.subject)}
      ${choice("device", "Machine", (run) => run.provenance.device)}
    </div>
    ${shown}
    <div class="runs"><table>
      <colgroup>${[...COLUMNS.map(([key]) => key), "files"].map((key) => html`<col class="${key}">`)}</colgroup>
      <thead><tr>${heads}<th scope="col">Files</th></tr></thead>
      ${body}
    </table></div>`);
  draw();
}

function fits(run, state) {
  return (
    (!state.kind || run.kind === state.kind) &&
    (!state.subject || run.subject === state.subject) &&
    (!state.device || run.provenance.device === state.device) &&
    state.text.split(/\s+/).every((word) => searchable(run).includes(word))
  );
}

const searchable = (run) =>
  [run.path, run.setting, ...run.tokens, ...COLUMNS.flatMap((column) => linesOf(run, column))]
    .join(" ")
    .toLowerCase();

function sortRuns(runs, state) {
  const value = COLUMNS.find(([key]) => key === state.sort)[2];
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    const order =
      typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return (state.down ? -order : order) || (a.path < b.path ? -1 : 1);
  };
  return [...runs].sort(compare);
}

/** A run's line, and the one after it with everything its file holds. */
function runRows(run) {
  const more = html`<tr class="more" hidden></tr>`;
  const toggle = ({ currentTarget }) => {
    if (!more.firstChild) more.append(html`<td colspan="${COLUMNS.length + 1}">${runDetails(run)}</td>`);
    more.hidden = !more.hidden;
    currentTarget.setAttribute("aria-expanded", String(!more.hidden));
  };
  const links = [["result", "json"], ["samples", "samples"], ["picture", "picture"]]
    .filter(([name]) => run.files[name])
    .map(([name, text]) => [html`<a href="${run.files[name]}">${text}</a>`, " "]);
  const cell = (column) => {
    const lines = linesOf(run, column).map((line) => html`<span>${breakable(line)}</span>`);
    return html`<td data-name="${column[1]}" class="${column[0]}">${lines}</td>`;
  };
  const line = html`<tr class="run">
    ${COLUMNS.map(cell)}
    <td data-name="Files" class="files">
      ${links} <button type="button" class="quiet" aria-expanded="false" @click="${toggle}">details</button>
    </td>
  </tr>`;
  return [line, more];
}

function runDetails(run) {
  const versions = Object.entries(run.provenance.versions).filter(([, version]) => version);
  // Rows that hold different things have a table each.
  const alike = groupBy(run.rows, (row) => Object.keys(row).sort().join());
  const took = run.provenance.seconds === null ? "" : ` · took ${whole(run.provenance.seconds)} s`;
  const table = (rows) =>
    html`<div class="scroll" tabindex="0" role="region" aria-label="Rows of ${run.path}">${rowsTable(rows)}</div>`;
  return html`<div>
    <p><strong>${run.path}</strong>${took} · ${versions.map((pair) => pair.join(" ")).join(" · ")}</p>
    ${[...alike.values()].map(table)}
    <details><summary>Configuration</summary><pre>${JSON.stringify(run.config, null, 2)}</pre></details>
  </div>`;
}

/** Rows with the same keys; what names a row stands first, what is long last. */
function rowsTable(rows) {
  const long = (value) => value !== null && typeof value === "object" && !("p50" in value);
  const names = (key) => key === "tokens" || rows.some((row) => typeof row[key] === "string");
  const rank = (key) => (rows.some((row) => long(row[key])) ? 2 : names(key) ? 0 : 1);
  const keys = Object.keys(rows[0]).sort((a, b) => rank(a) - rank(b));
  const kind = (value) => (typeof value === "number" ? "num" : long(value) ? "long" : "text");
  const cell = (value) => html`<td class="${kind(value)}">${cellText(value)}</td>`;
  return html`<table>
    <thead><tr>${keys.map((key) => html`<th scope="col">${key}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${keys.map((key) => cell(row[key]))}</tr>`)}</tbody>
  </table>`;
}

/** A value of a row as text; of a spread its median, and from where to where it lies. */
function cellText(value) {
  if (value === undefined || value === null) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? whole(value) : digits(value, 5);
  if (typeof value !== "object") return String(value);
  if (typeof value.p50 !== "number") return JSON.stringify(value);
  return `${digits(value.p50, 4)} (${digits(value.p20, 4)} to ${digits(value.p80, 4)})`;
}
