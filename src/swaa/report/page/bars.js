// One value a series, when there is a single length: bars from zero, with whiskers.

/** Draw bars into `host`; spec as for drawChart, with one point a series. */
function drawBars(host, spec) {
  const points = spec.series.flatMap((series) =>
    series.points.map((point) => ({ ...point, series })),
  );
  const most = Math.max(...points.map((point) => point.high ?? point.y)) || 1;
  const list = make("ul", { class: "bars", "aria-label": spec.title });
  for (const point of points) {
    const share = (value) => `${(100 * Math.max(0, value)) / most}%`;
    const track = make(
      "span",
      { class: "track", "aria-hidden": "true" },
      make("span", {
        class: "fill",
        style: `width:${share(point.y)};color:${point.series.colour}`,
      }),
    );
    if (point.low !== null && point.low !== undefined) {
      const from = `left:${share(point.low)};width:${share(point.high - point.low)}`;
      track.append(make("span", { class: "range", style: from }));
    }
    list.append(
      make(
        "li",
        { tabindex: "0", title: [point.title, ...point.lines].join("\n") },
        make("span", { class: "what" }, point.series.name),
        track,
        make("span", { class: "value" }, spec.y.exact(point.y)),
        make("span", { class: "aside" }, point.aside || ""),
      ),
    );
  }
  host.append(list, make("p", { class: "axis-name" }, spec.barLabel));
}
