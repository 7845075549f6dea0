// The rule of the mask and the knobs that make it, as in swaa/attention/mask.py and swaa/config.py.
// A test compares both on many configurations.

/** Layers that a list or a rule names, of a model with `count` layers; throws on a bad rule. */
function resolveLayers(selection, count) {
  const all = Array.from({ length: count }, (_, index) => index);
  if (Array.isArray(selection)) return all.filter((index) => selection.includes(index));
  const [word, ...rest] = selection.split(":");
  const argument = rest.join(":");
  if (selection === "all") return all;
  if (selection === "odd" || selection === "even") {
    return all.filter((index) => index % 2 === (selection === "odd" ? 1 : 0));
  }
  if (word === "every") {
    const match = /^(\d+)(?:\+(\d*))?$/.exec(argument);
    const step = match ? Number(match[1]) : 0;
    const offset = match ? Number(match[2] || 0) : 0;
    if (!step || offset >= step) throw new Error(`"${selection}": write every:4 or every:4+1`);
    return all.filter((index) => index % step === offset);
  }
  if (["first", "middle", "last"].includes(word)) {
    const [top, bottom] = fraction(argument, selection);
    const taken = Math.floor((2 * top * count + bottom) / (2 * bottom));
    const first = { first: 0, middle: Math.floor((count - taken) / 2), last: count - taken }[word];
    return all.slice(first, first + taken);
  }
  throw new Error(`"${selection}" is not a rule; write odd, even, every:4+1, first:1/4, middle:1/2`);
}

function fraction(text, rule) {
  const match = /^(\d+)(?:\/(\d+)|\.(\d+))?$/.exec(text);
  let top = match ? Number(match[1]) : 0;
  let bottom = match && match[2] !== undefined ? Number(match[2]) : 1;
  if (match && match[3] !== undefined) {
    bottom = 10 ** match[3].length;
    top = top * bottom + Number(match[3]);
  }
  if (!(top > 0 && top <= bottom)) throw new Error(`"${rule}" needs a fraction, as in middle:1/2`);
  return [top, bottom];
}

/**
 * What each layer does: window null is full; else window, sinks, fullDecode, denseTail and
 * selectedKeys, how many older keys prompt rows see by content besides.
 */
function layerPlans(config, count) {
  const full = new Set(resolveLayers(config.full_layers, count));
  const decode =
    typeof config.full_decode === "boolean"
      ? new Set(config.full_decode ? resolveLayers("every:1", count) : [])
      : new Set(resolveLayers(config.full_decode, count));
  const selected = new Set(resolveLayers(config.selected_layers ?? [], count));
  return Array.from({ length: count }, (_, index) =>
    config.window === null || full.has(index)
      ? { window: null, sinks: 0, fullDecode: false, denseTail: 0, selectedKeys: 0 }
      : {
          window: config.window,
          sinks: config.sink_tokens,
          fullDecode: decode.has(index) || selected.has(index),
          denseTail: config.dense_tail,
          selectedKeys: selected.has(index) ? config.selected_keys : 0,
        },
  );
}

/** Leftmost key, sinks apart, that the query at position i sees. */
function leftBound(plan, i, promptLength) {
  if (plan.window === null) return 0;
  const tail = i >= promptLength - plan.denseTail && i < promptLength;
  return tail || (plan.fullDecode && i >= promptLength) ? 0 : i - plan.window + 1;
}

/** Keys that the query at position i sees, as half-open spans [first, end), in order. */
function visibleSpans(plan, i, promptLength) {
  const left = Math.max(0, leftBound(plan, i, promptLength));
  const sinks = Math.min(plan.sinks, i + 1);
  if (sinks >= left) return [[0, i + 1]];
  return sinks > 0
    ? [
        [0, sinks],
        [left, i + 1],
      ]
    : [[left, i + 1]];
}

const spanLength = (spans) => spans.reduce((sum, [first, end]) => sum + end - first, 0);

/** Pairs of a query in [first, end) and a key that it sees. */
function visiblePairs(plan, promptLength, first, end) {
  let pairs = 0;
  for (let i = first; i < end; i++) pairs += spanLength(visibleSpans(plan, i, promptLength));
  return pairs;
}

/** Visible pairs of each block of `size` queries and `size` keys, row by row. */
function blockCounts(plan, promptLength, total, size) {
  const blocks = Math.ceil(total / size);
  const counts = Array.from({ length: blocks }, () => new Array(blocks).fill(0));
  for (let i = 0; i < total; i++) {
    const row = counts[Math.floor(i / size)];
    for (const [first, end] of visibleSpans(plan, i, promptLength)) {
      for (let at = Math.floor(first / size); at * size < end; at++) {
        row[at] += Math.min(end, (at + 1) * size) - Math.max(first, at * size);
      }
    }
  }
  return counts;
}

/** Which phase a row belongs to, in a layer: what the explorer's colours mean. */
function phaseOf(plan, i, promptLength) {
  if (i >= promptLength) return "generated";
  return plan.window !== null && i >= promptLength - plan.denseTail ? "tail" : "prompt";
}

/** Tokens whose keys stay in the cache once the prompt is computed. */
function keptTokens(plan, promptLength) {
  if (plan.window === null || plan.fullDecode) return promptLength;
  return Math.min(promptLength, plan.window + plan.sinks);
}
