// Lines that another one hides are named below their chart.

/** Values so near, as a share of the axis, have marks that cover one another. */
const NEAR = 0.015;

/** One list item for each line that hides others, or nothing. */
function coveredList(series, log) {
  const values = series.flatMap((one) => one.points.map((point) => point.y));
  const height = log ? (y) => Math.log(y) : (y) => y;
  const [low, high] = [log ? Math.min(...values) : 0, Math.max(...values)];
  const near = NEAR * (height(high) - height(low));
  const hides = (top, one) =>
    one.points.every((point) => {
      const above = top.points.find((other) => other.x === point.x);
      return above && Math.abs(height(above.y) - height(point.y)) <= near;
    });
  // Ours are drawn above the others', and of those the first.
  const order = [...series.filter((one) => one.ours), ...series.filter((one) => !one.ours)];
  const hidden = new Map();
  for (const one of order) {
    const top = [...hidden.keys()].find((other) => hides(other, one));
    if (top) hidden.get(top).push(one);
    else hidden.set(one, []);
  }
  const items = [...hidden].filter(([, under]) => under.length);
  if (!items.length) return null;
  return make(
    "ul",
    { class: "notes covered" },
    items.map(([top, under]) =>
      make(
        "li",
        {},
        under.flatMap((one, index) => [
          index ? (index < under.length - 1 ? ", " : " and ") : "",
          make("strong", {}, one.name),
        ]),
        under.length > 1 ? " lie under " : " lies under ",
        make("strong", {}, top.name),
        `: ${howFar(top, under)}.`,
      ),
    ),
  );
}

/** The largest difference between a line and those that it hides. */
function howFar(top, under) {
  const at = new Map(top.points.map((point) => [point.x, point.y]));
  const apart = under.flatMap((one) =>
    one.points.map((point) => Math.abs(point.y / at.get(point.x) - 1)),
  );
  const most = Math.max(...apart);
  return most === 0 ? "the same values" : `at most ${digits(100 * most, 2)} % apart`;
}
