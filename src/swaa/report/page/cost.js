// What the points of accuracy are priced in, and which of them no other one beats.

/** Costs that price some of the points; `off` says why one cannot be chosen. */
function costs(ours, theirs) {
  const full = ours.find((answer) => answer.full && answer.seconds) ?? fullOf(ours) ?? {};
  const timed = ours.filter((answer) => answer.seconds !== null);
  const time = distinct(timed.map((answer) => answer.time)).join("; ");
  const untimed = theirs.length ? "the paper gives times only" : null;
  const exact = "by arithmetic, divided by full attention's (less is better)";
  const all = {
    relative: {
      text: "time, full = 1",
      label: `${time}, divided by full attention's (less is better)`,
      of: (answer, base) => ratio(answer.seconds, base.seconds),
    },
    seconds: {
      text: "seconds",
      label: `${time} (seconds)`,
      of: (answer) => answer.seconds,
      off: theirs.length ? "other machine, other task: seconds cannot be compared" : null,
    },
    flops: {
      text: "FLOPs, full = 1",
      label: `FLOPs of the prompt ${exact}`,
      of: (answer) => answer.flops_share,
      off: untimed,
    },
    keys: {
      text: "keys, full = 1",
      label: `keys that the prompt's queries visit, ${exact}`,
      of: (answer) => answer.keys_share,
      off: untimed,
    },
    kv: {
      text: "KV, full = 1",
      label: "keys and values held after the prompt, divided by full attention's (less is better)",
      of: (answer, base) => answer.kv_share ?? ratio(answer.kv_bytes, base.kv_bytes),
      off: untimed,
    },
  };
  const priced = ([, cost]) => countPriced(ours, cost, full) > 0;
  return Object.fromEntries(Object.entries(all).filter(priced));
}

const fullOf = (answers) => answers.find((answer) => answer.full);

const ratio = (value, base) => (value && base ? value / base : null);

/** How many settings beside full attention have a cost; where there is no other, that one counts. */
function countPriced(answers, cost, full) {
  const others = answers.filter((answer) => !answer.full);
  const known = (answer) => (cost.of(answer, full) ?? null) !== null;
  return (others.length ? others : answers).filter(known).length;
}

/** The cost asked for, or the one that prices the most points: of equals, measured time first. */
function pick(cost, name, answers) {
  if (cost[name] && !cost[name].off) return name;
  const full = fullOf(answers) ?? {};
  const usable = ["relative", "flops", "keys", "seconds", "kv"].filter(
    (key) => cost[key] && !cost[key].off,
  );
  const count = (key) => countPriced(answers, cost[key], full);
  return usable.reduce((best, key) => (count(key) > count(best) ? key : best), usable[0]);
}

/** The spread of the cost, where it was measured more than once. */
function across(answer, full, x) {
  if (!["relative", "seconds"].includes(x) || answer.seconds_low === null) return {};
  const unit = x === "relative" ? full.seconds : 1;
  return { near: answer.seconds_low / unit, far: answer.seconds_high / unit };
}

/** The points that no other one beats in both directions, by cost. */
function paretoFront(points) {
  let best = -Infinity;
  return [...points]
    .sort((a, b) => a.x - b.x || b.y - a.y)
    .filter((point) => point.y > best && ((best = point.y), true));
}

/** The settings of the front in words: a crowded chart has no room for all names. */
function frontList(front, cost, { x, y }) {
  if (front.length < 2) return null;
  const price = (value) => (x === "seconds" ? quantity(value, "s") : percent(value));
  const items = front.map((point) =>
    make("li", {}, make("strong", {}, point.title), ` ${percent(point.y, 0)} at ${price(point.x)}`),
  );
  const up = {
    accuracy: "right answers",
    score: "mean score",
    kept: "share of full attention's answers",
  }[y];
  const of = x === "seconds" ? x : `share of full attention's ${cost.text.split(",")[0]}`;
  return make(
    "div",
    { class: "front-list" },
    make("p", {}, `On the line, ${up} at ${of}:`),
    make("ol", {}, items),
  );
}
