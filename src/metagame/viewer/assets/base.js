// What all views share: the data, elements, numbers, colours.

const DATA = JSON.parse(document.getElementById("data").textContent);
const POSITIVE = "var(--positive)",
  NEGATIVE = "var(--negative)";
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const NAMED = { map: ".map", patch: ".large canvas", token: "[data-token]", matrix: ".matrix", "": "details" };

/** Name what can have the focus or be unfolded in a part of the page, so that it is found again when it is drawn anew. */
function nameParts(part, name) {
  for (const [kind, selector] of Object.entries(NAMED))
    part.querySelectorAll(selector).forEach((node, k) => {
      node.id = `${name}-${kind ? `${kind}-${k}` : node.className}`;
      if (!kind) node.querySelector("summary").id = `${node.id}-summary`;
    });
}

/** Draw anew, with the focus where it was and what was unfolded unfolded. */
function keepPlace(draw) {
  const focused = document.activeElement?.id,
    open = [...document.querySelectorAll("#panels details[open]")].map((node) => node.id);
  draw();
  for (const node of open.map((id) => document.getElementById(id))) if (node) node.open = true;
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

const loads = new Map();

/** What a file of samples beside the page holds. It is a script, since browsers do not let a local page read files. */
function loadPart(name) {
  const asked = (resolve, reject) => {
    const failed = () => {
      loads.delete(name);
      reject(new Error(`samples/${name}.js cannot be read. Keep the folder samples beside the page.`));
    };
    document.head.append(
      html("script", { src: `samples/${name}.js`, onload: () => resolve(globalThis.parts[name]), onerror: failed }),
    );
  };
  if (!loads.has(name)) loads.set(name, new Promise(asked));
  return loads.get(name);
}

/** Give the samples of a part their views, or the reason why there are none. */
async function fillPart(group, name) {
  const samples = group.samples.filter((sample) => sample.part === name);
  try {
    const { views, pictures } = await loadPart(name);
    Object.assign(DATA.pictures, pictures);
    samples.forEach(({ methods }, i) => methods.forEach((method, k) => Object.assign(method, { views: views[i][k] })));
  } catch (error) {
    samples.flatMap(({ methods }) => methods).forEach((method) => Object.assign(method, { error: error.message }));
  }
  for (const sample of samples) sample.part = null;
}

const decoded = new WeakMap();

/** The numbers of a packed array, row by row. */
function numbers(packed) {
  if (!decoded.has(packed)) {
    const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const read =
      packed.type === "int16" ? (k) => view.getInt16(2 * k, true) * packed.scale : (k) => view.getFloat32(4 * k, true);
    const size = packed.shape.reduce((a, b) => a * b, 1);
    decoded.set(
      packed,
      Float64Array.from({ length: size }, (_, k) => read(k)),
    );
  }
  return decoded.get(packed);
}

/** The step to whose multiples a packed array is rounded; undefined where it is exact. */
function stepOf(packed) {
  return packed.type === "int16" ? packed.scale : undefined;
}

/** The largest such step of a view's arrays; 0 where all are exact. */
function largestStep(node) {
  if (node === null || typeof node !== "object") return 0;
  return node.data === undefined ? Math.max(0, ...Object.values(node).map(largestStep)) : (stepOf(node) ?? 0);
}

/** What is said beside a view whose values are rounded. */
function roundingNote(view) {
  const step = largestStep(view);
  return step ? html("p", { class: "hint" }, `Values of large arrays are rounded to steps of ${step.toPrecision(2)}.`) : null;
}

/** Row k of a packed array of two axes. */
function row(packed, k) {
  const width = packed.shape[1];
  return numbers(packed).subarray(k * width, (k + 1) * width);
}

function format(value) {
  const size = Math.abs(value);
  const text =
    size === 0 ? "0" : size >= 1e5 || size < 1e-4 ? value.toExponential(2) : value.toPrecision(size >= 1000 ? 5 : 3);
  return (value > 0 ? "+" : "") + text.replace("-", "−");
}

/** Two standard errors behind a value. */
function plusMinus(error) {
  return error === undefined ? "" : ` ± ${format(2 * error).replace("+", "")}`;
}

/** The limit of a colour scale, as in the figures: the largest hundredth of sizes is clipped. */
function clippedLimit(lists) {
  const sizes = Float64Array.from(lists.flatMap((list) => Array.from(list, Math.abs))).sort();
  if (!sizes.length) return 1;
  const place = 0.99 * (sizes.length - 1),
    low = Math.floor(place);
  const quantile = sizes[low] + (place - low) * ((sizes[low + 1] ?? sizes[low]) - sizes[low]);
  return quantile || sizes[sizes.length - 1] || 1;
}

function largest(values) {
  return Array.from(values).reduce((found, value) => Math.max(found, Math.abs(value)), 0);
}

const RGB = DATA.palette.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));

function rgb(value, limit) {
  const share = Math.min(1, Math.max(-1, value / limit));
  return RGB[Math.round(((share + 1) / 2) * (RGB.length - 1))];
}

function color(value, limit) {
  return `rgb(${rgb(value, limit).join(",")})`;
}

/** Black or white, whichever has more contrast with the colour of a value, as WCAG defines it: at least 4.5. */
function ink(value, limit) {
  const [red, green, blue] = rgb(value, limit).map((each) =>
    each <= 10 ? each / 3294.6 : ((each / 255 + 0.055) / 1.055) ** 2.4,
  );
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 ? "#fff" : "#000";
}

/** A bar of the colours from -limit to limit, with numbers. */
function legend(limit, what, clips) {
  const bar = html("canvas", { width: RGB.length, height: 1, class: "bar", "aria-hidden": "true" });
  const context = bar.getContext("2d");
  RGB.forEach((each, place) => {
    context.fillStyle = `rgb(${each.join(",")})`;
    context.fillRect(place, 0, 1, 1);
  });
  const end = (value) => (clips ? (value < 0 ? "≤ " : "≥ ") : "") + format(value);
  const ends = html(
    "span",
    { class: "ends" },
    html("span", {}, end(-limit)),
    html("span", {}, "0"),
    html("span", {}, end(limit)),
  );
  return html("div", { class: "legend", "data-limit": limit }, html("span", { class: "what" }, what), bar, ends);
}

const ruler = document.createElement("canvas").getContext("2d");

function textWidth(text, size) {
  ruler.font = `${size}px system-ui, sans-serif`;
  return ruler.measureText(text).width;
}

/** A line that says what is under the pointer or the cursor. */
function readout(hint) {
  const line = html("output", { class: "readout", "aria-live": "polite" }, hint);
  return {
    line,
    say: (text) => {
      line.textContent = text ?? hint;
    },
  };
}
