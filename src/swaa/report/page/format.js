// Numbers and elements: what every part of the page uses.

const byId = (id) => document.getElementById(id);

/**
 * Nodes from a template. Texts are escaped, so none is ever read as HTML: keep quotes around
 * attributes. Nodes and lists take their place, null leaves nothing, `@click="${listener}"` listens.
 */
function html(parts, ...values) {
  const [nodes, listeners] = [[], []];
  const place = (value) => {
    if (value === null || value === undefined || value === false) return "";
    if (Array.isArray(value)) return value.map(place).join("");
    if (value instanceof Node) return `<template data-at="${nodes.push(value) - 1}"></template>`;
    if (typeof value === "function") return listeners.push(value) - 1;
    return String(value).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  };
  const holder = document.createElement("template");
  holder.innerHTML = String.raw({ raw: parts }, ...values.map(place)).trim();
  for (const node of holder.content.querySelectorAll("*")) {
    for (const { name, value } of [...node.attributes].filter((one) => one.name[0] === "@")) {
      node.addEventListener(name.slice(1), listeners[value]);
      node.removeAttribute(name);
    }
    if (node.dataset.at !== undefined) node.replaceWith(nodes[node.dataset.at]);
  }
  const { content } = holder;
  return content.childNodes.length === 1 ? content.firstChild : content;
}

/** Significant digits, with thousands separated: 1234.5 at 3 digits is 1,230. */
function digits(value, count = 3) {
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(count));
  const after = Math.max(0, count - 1 - Math.floor(Math.log10(Math.abs(rounded))));
  const fraction = Math.min(after, 9);
  return rounded.toLocaleString("en-US", {
    minimumFractionDigits: fraction,
    maximumFractionDigits: fraction,
  });
}

const whole = (value) => Math.round(value).toLocaleString("en-US");

const UNITS = {
  s: [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]],
  B: [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]],
  share: [[0.01, "%"]],
};

/** A step of a unit that suits values around one: [factor, name]. */
function unitFor(unit, value) {
  const steps = UNITS[unit] ?? [[1, unit]];
  return steps.find(([factor]) => Math.abs(value) >= factor) ?? steps.at(-1);
}

function quantity(value, unit, count = 3) {
  const [factor, name] = unitFor(unit, value);
  return `${digits(value / factor, count)} ${name}`;
}

const percent = (share, count = 1) => `${(100 * share).toFixed(count)} %`;

const day = (created) => String(created).slice(0, 10);

function commitOf(provenance) {
  const commit = provenance.commit ? String(provenance.commit).slice(0, 7) : "unknown commit";
  return provenance.dirty ? `${commit} + changes` : commit;
}

/** Distinct values in their first order. */
const distinct = (values) => [...new Set(values)];

const groupBy = (items, key) => Map.groupBy(items, key);
