// What all figures share: choices, a legend that switches series, provenance, the numbers as table.

/** A labelled choice of one out of many; `groups` is [[heading, [[value, text]]]]. */
function select(label, groups, value, change) {
  const node = make(
    "select",
    { onchange: (event) => change(event.target.value) },
    groups.map(([heading, options]) => {
      const made = options.map(([key, text]) =>
        make("option", { value: key, selected: key === value }, text),
      );
      return heading ? make("optgroup", { label: heading }, made) : made;
    }),
  );
  return make("label", { class: "field" }, make("span", {}, label), node);
}

/** A choice out of few, as buttons side by side. */
function segmented(label, options, value, change) {
  return make(
    "fieldset",
    { class: "segmented" },
    make("legend", {}, label),
    options.map(([key, text, off]) =>
      make(
        "button",
        {
          type: "button",
          "aria-pressed": String(key === value),
          disabled: off,
          title: off || null,
          onclick: () => change(key),
        },
        text,
      ),
    ),
  );
}

/** Buttons that show and hide series; many are folded away where the window is small. */
function legend(series, hidden, change) {
  const every = make(
    "button",
    {
      type: "button",
      class: "every",
      onclick: () => {
        if (hidden.size) hidden.clear();
        else for (const item of series) hidden.add(item.name);
        change();
      },
    },
    hidden.size ? "show all" : "hide all",
  );
  const marks = make(
    "div",
    { class: "legend", role: "group", "aria-label": "Series shown" },
    series.length > MANY ? every : null,
    series.map((item) => {
      const swatch = make(
        "svg",
        { viewBox: "0 0 18 16", width: 18, height: 16, "aria-hidden": "true" },
        make(
          "g",
          { class: "point", style: `color:${item.colour}` },
          shape(item.shape, 9, 8, 5, item.hollow),
        ),
      );
      return make(
        "button",
        {
          type: "button",
          "aria-pressed": String(!hidden.has(item.name)),
          title: item.detail || null,
          onclick: () => {
            if (!hidden.delete(item.name)) hidden.add(item.name);
            change();
          },
        },
        swatch,
        item.name,
      );
    }),
  );
  if (series.length <= MANY) return marks;
  return make(
    "details",
    { class: "marks", open: !matchMedia(SMALL).matches },
    make("summary", {}, `Marks: ${series.length} settings to show or hide`),
    marks,
  );
}

const MANY = 8;
const SMALL = "(max-width: 720px)";

/** Where the drawn numbers come from: machine, precision, commit, date and files. */
function provenance(runs) {
  const groups = groupBy(runs, (run) => {
    const from = run.provenance;
    return [from.device, from.dtype, commitOf(from), day(from.created)].filter(Boolean).join(" · ");
  });
  return make(
    "ul",
    { class: "provenance", "aria-label": "Provenance" },
    [...groups].map(([name, members]) =>
      make(
        "li",
        {},
        `${name} · `,
        members.length === 1
          ? fileLink(members[0])
          : make(
              "details",
              { class: "run-files" },
              make("summary", {}, `${members.length} run files`),
              make(
                "ul",
                {},
                members.map((run) => make("li", {}, fileLink(run))),
              ),
            ),
      ),
    ),
  );
}

const fileLink = (run) => make("a", { href: run.files.result }, run.path.split("/").pop());

/** The numbers of a figure, folded away. */
function numbers(headers, rows) {
  const cell = (tag, text) =>
    make(
      tag,
      { class: typeof text === "number" || /^[\d−-]/.test(text) ? "num" : null },
      String(text ?? "–"),
    );
  return make(
    "details",
    { class: "numbers" },
    make("summary", {}, "The same as numbers"),
    make(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers" },
      make(
        "table",
        {},
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            headers.map((text) => make("th", { scope: "col" }, text)),
          ),
        ),
        make(
          "tbody",
          {},
          rows.map((row) =>
            make(
              "tr",
              {},
              row.map((text) => cell("td", text)),
            ),
          ),
        ),
      ),
    ),
  );
}

/** What a figure says as long as no run has data for it. */
function noData(host, what, command) {
  host.replaceChildren(
    make("p", { class: "empty" }, `No data yet: ${what} `, make("code", {}, command)),
  );
}

/** Draw anew and put the focus back on the control that asked for it. */
function redraw(host, draw) {
  const place = (node) => [...host.querySelectorAll("button,select,input,summary")].indexOf(node);
  const at = place(document.activeElement);
  const open = new Map(
    [...host.querySelectorAll("details")].map((node) => [node.className, node.open]),
  );
  draw();
  for (const node of host.querySelectorAll("details"))
    node.open = open.get(node.className) ?? node.open;
  if (at >= 0) host.querySelectorAll("button,select,input,summary")[at]?.focus();
}
