// From values to pixels, and round ticks in between.

/** A linear or logarithmic scale with round ticks: powers of two on a binary axis. */
function scale(axis, values, from, to, wanted) {
  const known = values.filter((value) => Number.isFinite(value) && (!axis.log || value > 0));
  let low = axis.min ?? Math.min(...known);
  let high = axis.max ?? Math.max(...known);
  if (low === high) [low, high] = axis.log ? [low / 2, high * 2] : [low - 1, high + 1];
  if (axis.log) return logScale(axis, low, high, from, to, wanted);
  const step = (axis.binary ? powerOfTwo : roundStep)((high - low) / wanted);
  if (axis.min === undefined) low = Math.floor(low / step) * step;
  if (axis.max === undefined) high = Math.ceil(high / step - 1e-9) * step;
  const at = (value) => from + ((value - low) / (high - low)) * (to - from);
  if (axis.values) return { ticks: thin(axis.values, at), at };
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-6; n++) {
    ticks.push(Number((n * step).toPrecision(12)));
  }
  return { ticks, at };
}

function logScale(axis, low, high, from, to, wanted) {
  const pad = axis.values ? 1.18 : 1.12;
  [low, high] = [low / pad, high * pad];
  const at = (value) => {
    const clipped = Math.max(value, low);
    return from + (Math.log(clipped / low) / Math.log(high / low)) * (to - from);
  };
  if (axis.values) return { ticks: thin(axis.values, at), at };
  if (axis.binary) return { ticks: binaryTicks(low, high, wanted), at };
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    const span = Math.log10(high / low);
    for (const digit of span > 3 ? [1] : span > 1.2 ? [1, 3] : [1, 2, 3, 5, 7]) {
      const value = digit * 10 ** power;
      if (value >= low && value <= high) ticks.push(value);
    }
  }
  return { ticks: ticks.slice(0, wanted * 3), at };
}

/** Ticks that are at least 46 pixels apart, the last one kept. */
function thin(ticks, at) {
  const kept = [];
  for (const tick of [...ticks].reverse()) {
    if (!kept.length || Math.abs(at(kept[0]) - at(tick)) >= 46) kept.unshift(tick);
  }
  return kept;
}

/** Powers of two between two values, with quarters of their steps where few lie there. */
function binaryTicks(low, high, wanted) {
  const octaves = Math.log2(high / low);
  const every = Math.max(1, Math.ceil(octaves / (wanted + 2)));
  const parts = octaves < 1 ? [1, 1.25, 1.5, 1.75] : octaves < 3 ? [1, 1.5] : [1];
  const ticks = [];
  for (let power = Math.floor(Math.log2(low)); power <= Math.log2(high); power++) {
    if (power % every) continue;
    for (const part of parts) {
      const value = part * 2 ** power;
      if (value >= low && value <= high) ticks.push(value);
    }
  }
  return ticks;
}

const powerOfTwo = (raw) => 2 ** Math.ceil(Math.log2(raw * 0.999));

function roundStep(raw) {
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 2.5, 5, 10].map((digit) => digit * power).find((step) => step >= raw * 0.999);
}
