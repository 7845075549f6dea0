// Start: read the results out of the page, draw everything, look after the theme and printing.

function showFacts(host, data) {
  const from = data.runs.map((run) => run.provenance);
  const dates = from.map((one) => day(one.created)).sort();
  const facts = [
    ["Runs", `${data.runs.length}`],
    ["Kinds", distinct(data.runs.map((run) => run.kind)).join(", ") || "none"],
    ["Models", data.models.join("; ") || "none"],
    ["Machines", distinct(from.map((one) => one.device)).join("; ") || "none"],
    ["Dates", dates.length ? distinct([dates[0], dates[dates.length - 1]]).join(" to ") : "none"],
    ["With uncommitted changes", `${from.filter((one) => one.dirty).length} of ${from.length}`],
  ];
  host.replaceChildren(
    ...facts.flatMap(([name, value]) => [
      make("div", {}, make("dt", {}, name), make("dd", {}, value)),
    ]),
  );
}

function showProblems(host, problems) {
  if (!problems.length) return;
  host.replaceChildren(
    make(
      "div",
      { class: "problems", role: "note" },
      make(
        "h2",
        {},
        problems.length === 1 ? "One file needs a look" : `${problems.length} files need a look`,
      ),
      make(
        "ul",
        {},
        problems.map((problem) =>
          make("li", {}, make("a", { href: problem.href }, problem.path), `: ${problem.message}`),
        ),
      ),
    ),
  );
}

function watchTheme(button) {
  const names = ["auto", "light", "dark"];
  let now = "auto";
  button.addEventListener("click", () => {
    now = names[(names.indexOf(now) + 1) % names.length];
    if (now === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = now;
    button.textContent = `Theme: ${now}`;
  });
}

function start() {
  const data = JSON.parse(byId("data").textContent);
  const place = (name) => byId(name).querySelector(".figure");
  showFacts(byId("facts"), data);
  showProblems(byId("problems"), data.problems);
  showPareto(place("accuracy"), data);
  showCurves(place("speed"), data, "speed", [
    "no run timed anything. Write some by",
    "swaa bench kernels",
  ]);
  showCurves(place("memory"), data, "memory", ["no run counted bytes. Write some by", "swaa demo"]);
  showExplorer(place("mask"), data);
  showRuns(place("runs"), data);
  watchTheme(byId("theme"));
  document.documentElement.dataset.ready = "yes";
}

start();
