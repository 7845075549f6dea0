// One colour and mark a name, the same in every chart of the page.

const SHAPES = ["circle", "square", "diamond", "up", "down", "cross", "plus", "bar"];
const COLOURS = 8;
const INK = { colour: "var(--full)", shape: "circle" };

// Each round of colours gets other shapes: all 64 differ in one or the other.
const LOOKS = Array.from({ length: COLOURS * SHAPES.length }, (_, at) => ({
  colour: `var(--s${at % COLOURS})`,
  shape: SHAPES[(at + 1 + Math.floor(at / COLOURS) * 3) % SHAPES.length],
}));

/**
 * Colour and shape of every setting and series, by name: full attention is ink, and a circle;
 * recipes choose first. Where names are more than looks, two of one look share no chart.
 */
function looksOf(data) {
  const answered = [...groupBy(data.answers, (one) => one.group).values()].map((items) =>
    items.map((one) => [one.setting, one.full]),
  );
  const place = (one) => [one.chart, one.measure, one.group].join();
  const measured = [...groupBy(data.measurements, place).values()].map((items) =>
    items.map((one) => [one.series, one.full]),
  );
  const charts = [...answered, ...measured];
  const looks = new Map([...inked(answered, measured)].map((name) => [name, INK]));
  const recipes = data.recipes.map((recipe) => recipe.name);
  const others = charts.flatMap((items) => items.map(([name]) => name)).sort();
  const names = charts.map((items) => new Set(items.map(([name]) => name)));
  const uses = LOOKS.map(() => 0);
  for (const name of distinct([...recipes, ...others])) {
    if (looks.has(name)) continue;
    const at = freest(names.filter((chart) => chart.has(name)), looks, uses);
    uses[at] += 1;
    looks.set(name, LOOKS[at]);
  }
  return looks;
}

/** Names of full attention; where a chart measures several, they must be told apart. */
function inked(answered, measured) {
  const fulls = (items) => distinct(items.filter(([, full]) => full).map(([name]) => name));
  const several = new Set(measured.map(fulls).filter((names) => names.length > 1).flat());
  const all = [...answered, ...measured].flatMap(fulls);
  return new Set(["full", ...all.filter((name) => !several.has(name))]);
}

/** The look that is hardest to mistake in these charts: another colour, above all in small ones. */
function freest(charts, looks, uses) {
  const blame = uses.map((count) => count / 20);
  for (const chart of charts) {
    for (const other of chart) {
      const taken = looks.get(other);
      if (taken === undefined) continue;
      for (const [at, look] of LOOKS.entries()) {
        if (look === taken) blame[at] += 1000;
        else if (look.colour === taken.colour) blame[at] += 1 / chart.size;
      }
    }
  }
  return blame.indexOf(Math.min(...blame));
}
