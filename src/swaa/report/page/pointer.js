// A point tells its values to the mouse, to a finger and to the keyboard.

/** Show a point's values when the pointer is near it, or the keyboard chose it. */
function connect(svg, points, marks, tip) {
  const order = points
    .map((_, index) => index)
    .sort((a, b) => points[a].left - points[b].left || points[a].top - points[b].top);
  let current = -1;
  const show = (index, aloud) => {
    if (current >= 0) marks[current].classList.remove("on");
    current = index;
    if (index < 0) return tip.hide();
    marks[index].classList.add("on");
    marks[index].parentNode.append(marks[index]); // above its neighbours
    const lines = [...points[index].lines, ...beneath(points, index)];
    tip.show({ ...points[index], lines }, svg);
    if (aloud) say([points[index].title, ...lines].join("; "));
  };
  svg.addEventListener("pointermove", (event) => show(nearest(event)));
  svg.addEventListener("pointerdown", (event) => show(nearest(event)));
  svg.addEventListener("pointerleave", (event) => {
    // A finger leaves as soon as it has tapped.
    if (event.pointerType !== "touch") show(-1);
  });
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    const at = order.indexOf(current);
    const next = {
      ArrowRight: Math.min(order.length - 1, at + 1),
      ArrowDown: Math.min(order.length - 1, at + 1),
      ArrowLeft: Math.max(0, at - 1),
      ArrowUp: Math.max(0, at - 1),
      Home: 0,
      End: order.length - 1,
    }[event.key];
    if (event.key === "Escape") show(-1);
    else if (next !== undefined && order.length) show(order[next], true);
    else return;
    event.preventDefault();
  });

  function nearest(event) {
    const frame = svg.getBoundingClientRect();
    const ratio = svg.viewBox.baseVal.width / frame.width;
    const [x, y] = [(event.clientX - frame.left) * ratio, (event.clientY - frame.top) * ratio];
    let best = -1;
    let least = 32 ** 2;
    for (const [index, point] of points.entries()) {
      const away = (point.left - x) ** 2 + (point.top - y) ** 2;
      if (away < least) [best, least] = [index, away];
    }
    return best;
  }
}

/** What else lies under a point: marks may cover one another. */
function beneath(points, index) {
  const { left, top } = points[index];
  const near = points.filter(
    (point, other) => other !== index && Math.hypot(point.left - left, point.top - top) < 7,
  );
  return near.map((point) => `also here: ${point.title}, ${point.lines[1] ?? point.lines[0]}`);
}

/** The box with a point's values. */
function makeTip(box) {
  const node = make("div", { class: "tip", hidden: true });
  box.append(node);
  return {
    hide: () => {
      node.hidden = true;
    },
    show: (point, svg) => {
      node.replaceChildren(
        make("strong", {}, point.title),
        ...point.lines.map((line) => make("div", {}, line)),
      );
      node.hidden = false;
      const ratio = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      const [x, y] = [point.left * ratio, point.top * ratio];
      const left = x + 14 + node.offsetWidth > box.clientWidth ? x - 14 - node.offsetWidth : x + 14;
      node.style.left = `${Math.max(0, Math.min(left, box.clientWidth - node.offsetWidth))}px`;
      node.style.top = `${Math.max(0, y - node.offsetHeight - 10)}px`;
    },
  };
}
