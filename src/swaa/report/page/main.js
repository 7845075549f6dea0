// Start: read the results out of the page, draw everything, look after the theme.

function showTiles(host, data) {
  const tile = ({ title, value, text, run }) =>
    html`<div class="tile">
      <h2>${title}</h2>
      <p class="value">${value}</p>
      <p>${text}</p>
      ${run === null ? null : html`<p><a href="${data.runs[run].files.result}">the run's file</a></p>`}
    </div>`;
  host.replaceChildren(...data.tiles.map(tile));
}

function showFacts(host, data) {
  const from = data.runs.map((run) => run.provenance);
  const dates = from.map((one) => day(one.created)).sort();
  const facts = [
    ["Runs", data.runs.length],
    ["Kinds", distinct(data.runs.map((run) => run.kind)).join(", ")],
    ["Models", data.models.join("; ")],
    ["Machines", distinct(from.map((one) => one.device)).join("; ")],
    ["Dates", distinct([dates[0], dates.at(-1)]).filter(Boolean).join(" to ")],
    ["With uncommitted changes", `${from.filter((one) => one.dirty).length} of ${from.length}`],
  ];
  host.replaceChildren(
    ...facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value || "none"}</dd></div>`),
  );
}

function showProblems(host, problems) {
  if (!problems.length) return;
  const count = problems.length;
  host.replaceChildren(html`<div class="problems" role="note">
    <h2>${count === 1 ? "One file needs a look" : `${count} files need a look`}</h2>
    <ul>${problems.map((one) => html`<li><a href="${one.href}">${one.path}</a>: ${one.message}</li>`)}</ul>
  </div>`);
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

async function start() {
  const data = JSON.parse(byId("data").textContent);
  const place = (name) => byId(name).querySelector(".figure");
  showTiles(byId("tiles"), data);
  showProblems(byId("problems"), data.problems);
  showQuality(place("quality"), data);
  showCurves(place("speed"), data, "speed", ["no run timed anything. Write some by", "swaa bench kernels"]);
  showCurves(place("memory"), data, "memory", ["no run counted bytes. Write some by", "swaa demo"]);
  showTraining(place("training"), data);
  showExplorer(place("mask"), data);
  showRuns(place("runs"), data);
  showFacts(byId("facts"), data);
  watchTheme(byId("theme"));
  await drawn();
  document.documentElement.dataset.ready = "yes";
}

// The library is a module, which runs before this.
addEventListener("DOMContentLoaded", start);
