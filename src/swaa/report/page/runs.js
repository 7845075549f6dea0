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

/** A text that may be broken behind the signs inside of names. */
function breakable(text) {
  const parts = text.split(/(?<=[-/=]|[a-z]_)(?=[\w:])|(?<=\w)(?=\.[A-Za-z])/);
  return parts.flatMap((part, index) => (index ? [make("wbr"), part] : [part]));
}

function showRuns(host, data) {
  if (!data.runs.length)
    return noData(host, "this folder holds no result. See what writes some:", "swaa --help");
  const state = { text: "", kind: "", device: "", subject: "", sort: "kind", down: false };
  const body = make("tbody");
  const shown = make("p", { class: "count", role: "status" });
  const heads = new Map();

  const headers = COLUMNS.map(([key, name]) => {
    const head = make(
      "th",
      { scope: "col" },
      make(
        "button",
        {
          type: "button",
          onclick: () => {
            state.down = state.sort === key ? !state.down : false;
            state.sort = key;
            draw();
          },
        },
        name,
      ),
    );
    heads.set(key, head);
    return head;
  });

  function draw() {
    const runs = sortRuns(
      data.runs.filter((run) => fits(run, state)),
      state,
    );
    body.replaceChildren(...runs.flatMap((run) => runRows(run)));
    shown.textContent = `${runs.length} of ${data.runs.length} runs`;
    for (const [key, head] of heads) {
      head.setAttribute(
        "aria-sort",
        key !== state.sort ? "none" : state.down ? "descending" : "ascending",
      );
    }
  }

  const choice = (name, label, value) => {
    const values = distinct(data.runs.map(value)).sort();
    const options = [["", "all"], ...values.map((text) => [text, text])];
    return select(label, [[null, options]], "", (picked) => {
      state[name] = picked;
      draw();
    });
  };
  const search = make("input", {
    type: "search",
    name: "search",
    oninput: (event) => {
      state.text = event.target.value.toLowerCase();
      draw();
    },
  });
  host.replaceChildren(
    make(
      "div",
      { class: "controls" },
      make("label", { class: "field" }, make("span", {}, "Search"), search),
      choice("kind", "Kind", (run) => run.kind),
      choice("subject", "Measured", (run) => run.subject),
      choice("device", "Machine", (run) => run.provenance.device),
    ),
    shown,
    make(
      "div",
      { class: "runs" },
      make(
        "table",
        {},
        make(
          "colgroup",
          {},
          [...COLUMNS.map(([key]) => key), "files"].map((key) => make("col", { class: key })),
        ),
        make("thead", {}, make("tr", {}, headers, make("th", { scope: "col" }, "Files"))),
        body,
      ),
    ),
  );
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

/** A run's line, and the one behind it with everything its file holds. */
function runRows(run) {
  const more = make("tr", { class: "more", hidden: true });
  const open = make(
    "button",
    {
      type: "button",
      class: "quiet",
      "aria-expanded": "false",
      onclick: () => {
        if (!more.firstChild)
          more.append(make("td", { colspan: COLUMNS.length + 1 }, runDetails(run)));
        more.hidden = !more.hidden;
        open.setAttribute("aria-expanded", String(!more.hidden));
      },
    },
    "details",
  );
  const links = [
    ["result", "json"],
    ["samples", "samples"],
    ["picture", "picture"],
  ]
    .filter(([name]) => run.files[name])
    .map(([name, text]) => [make("a", { href: run.files[name] }, text), " "]);
  return [
    make(
      "tr",
      { class: "run" },
      COLUMNS.map((column) =>
        make(
          "td",
          { "data-name": column[1], class: column[0] },
          linesOf(run, column).map((line) => make("span", {}, breakable(line))),
        ),
      ),
      make("td", { "data-name": "Files", class: "files" }, links, open),
    ),
    more,
  ];
}

function runDetails(run) {
  const versions = Object.entries(run.provenance.versions).filter(([, version]) => version);
  // Rows that hold different things have a table each.
  const alike = groupBy(run.rows, (row) => Object.keys(row).sort().join());
  return make(
    "div",
    {},
    make(
      "p",
      {},
      make("strong", {}, run.path),
      run.provenance.seconds === null ? "" : ` · took ${whole(run.provenance.seconds)} s`,
      ` · ${versions.map(([name, version]) => `${name} ${version}`).join(" · ")}`,
    ),
    [...alike.values()].map((rows) =>
      make(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": `Rows of ${run.path}` },
        rowsTable(rows),
      ),
    ),
    make(
      "details",
      {},
      make("summary", {}, "Configuration"),
      make("pre", {}, JSON.stringify(run.config, null, 2)),
    ),
  );
}

/** Rows with the same keys; what names a row stands first, what is long last. */
function rowsTable(rows) {
  const long = (value) => value !== null && typeof value === "object" && !("p50" in value);
  const names = (key) => key === "tokens" || rows.some((row) => typeof row[key] === "string");
  const rank = (key) => (rows.some((row) => long(row[key])) ? 2 : names(key) ? 0 : 1);
  const keys = Object.keys(rows[0]).sort((a, b) => rank(a) - rank(b));
  const cells = (row) =>
    keys.map((key) =>
      make(
        "td",
        { class: typeof row[key] === "number" ? "num" : long(row[key]) ? "long" : "text" },
        cellText(row[key]),
      ),
    );
  return make(
    "table",
    {},
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        keys.map((key) => make("th", { scope: "col" }, key)),
      ),
    ),
    make(
      "tbody",
      {},
      rows.map((row) => make("tr", {}, cells(row))),
    ),
  );
}

/** A value of a row as text; of a spread its median, and from where to where it lies. */
function cellText(value) {
  if (value === undefined || value === null) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? whole(value) : digits(value, 5);
  if (typeof value !== "object") return String(value);
  if (typeof value.p50 !== "number") return JSON.stringify(value);
  return `${digits(value.p50, 4)} (${digits(value.p20, 4)} to ${digits(value.p80, 4)})`;
}
