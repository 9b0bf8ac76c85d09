// What can be taken out of the page: a method's view of a sample as CSV, JSON and PNG.

const COLUMNS = ["what", "map", "target", "player", "row", "column", "value", "standard_error", "rounded_to"];

/** Every value of a view with its names; rows and columns count from 0. */
function recordsOf(view) {
  return view.kind === "tokens" ? tokenRecords(view) : view.kind === "maps" ? mapRecords(view) : arrayRecords(view);
}

function tokenRecords(view) {
  const names = toldApart(view.tokens),
    first = view.first_order ? Array.from(numbers(view.first_order)) : [];
  return [
    ...first.map((value, i) => ({ what: "first-order attribution", target: names[i], value })),
    ...(view.matrix ? pairRecords(view, names) : []),
  ];
}

/** Influences, or interactions of pairs, each pair once. */
function pairRecords(view, names) {
  const records = matrixRecords(names, numbers(view.matrix), view.error ? numbers(view.error) : null);
  if (view.directed) return records;
  const n = names.length,
    once = records.filter((_, k) => Math.floor(k / n) <= k % n);
  return once.map((record) => ({ ...record, what: "interaction of the pair" }));
}

function matrixRecords(names, matrix, errors, where = {}) {
  const n = names.length;
  return Array.from(matrix, (value, k) => ({
    what: "influence of player on target",
    target: names[Math.floor(k / n)],
    player: names[k % n],
    ...where,
    value,
    standard_error: errors?.[k],
  }));
}

function mapRecords(view) {
  const place = (k) => ({ row: Math.floor(k / view.grid[1]), column: k % view.grid[1] });
  const maps = mapsOf(view).flatMap((map) =>
    Array.from(map.values, (value, k) => ({ what: map.layer, map: map.name, ...place(k), value, standard_error: map.errors?.[k], rounded_to: map.step })),
  );
  const patches = view.influence ? view.grid[0] * view.grid[1] : 0;
  const influence = Array.from({ length: patches }, (_, k) =>
    matrixRecords(view.influence.names, influenceAt(view.influence, k), errorsAt(view.influence, k), {
      ...place(k),
      rounded_to: stepOf(view.influence.values),
    }),
  );
  return [...maps, ...influence.flat()];
}

function arrayRecords(view) {
  return view.arrays.flatMap(({ name, values }) =>
    Array.from(numbers(values), (value, k) => ({
      what: name,
      row: Math.floor(k / values.shape[1]),
      column: k % values.shape[1],
      value,
      rounded_to: stepOf(values),
    })),
  );
}

/** A view as CSV, one value a line; columns that nothing has are left out. */
function csvOf(view) {
  const records = recordsOf(view),
    columns = COLUMNS.filter((name) => records.some((record) => record[name] !== undefined));
  const quote = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  const lines = records.map((record) => columns.map((name) => quote(String(record[name] ?? ""))).join(","));
  return [columns.join(","), ...lines, ""].join("\r\n");
}

function nested(values, shape) {
  if (shape.length < 2) return Array.from(values);
  const size = values.length / shape[0];
  return Array.from({ length: shape[0] }, (_, k) => nested(values.slice(k * size, (k + 1) * size), shape.slice(1)));
}

/** A view with its arrays as nested lists. */
function unpacked(node) {
  if (node === null || typeof node !== "object") return node;
  if (Array.isArray(node)) return node.map(unpacked);
  if (node.data === undefined)
    return Object.fromEntries(Object.entries(node).map(([name, each]) => [name, unpacked(each)]));
  return nested(numbers(node), node.shape);
}

function jsonOf(group, sample, method, view) {
  const { experiment, model, benchmark } = group,
    { id, text, answer } = sample,
    { label, job, key, scores, command } = method,
    { question, ...shown } = view;
  return JSON.stringify(
    {
      ...{ experiment, model, benchmark, command, sample: { id, text, answer }, method: label, question, scores },
      ...{ job, key, exact_arrays: `${job}/arrays/${key}.npz`, rounded_to: largestStep(view) || null, view: unpacked(shown) },
    },
    null,
    1,
  );
}

function download(name, content) {
  const url = URL.createObjectURL(content);
  html("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

/** The text in the clipboard; browsers without permission are asked in the old way. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = html("textarea", { class: "unseen" }, text);
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) throw new Error("the browser does not allow it");
  }
}

/** A button that says for a moment what became of its action. */
function actionButton(name, act) {
  const button = html("button", { type: "button", class: "action" }, name);
  button.addEventListener("click", async () => {
    const [done, failed] = name.startsWith("Copy") ? ["Copied", "Could not copy"] : ["Saved", "Could not save"];
    try {
      await act(button);
      button.textContent = done;
    } catch (error) {
      button.textContent = `${failed}: ${error.message}`;
    }
    setTimeout(() => {
      button.textContent = name;
    }, 1500);
  });
  return button;
}

function copyButton(name, text) {
  return actionButton(name, () => copy(text));
}

function takeOut(group, sample, method, view) {
  const parts = [group.experiment, sample.id, method.label, view.question].filter(Boolean).join("-");
  const name = parts.replace(/[^\p{L}\p{N}.-]+/gu, "_").slice(0, 120);
  return html(
    "p",
    { class: "actions" },
    actionButton("Copy as CSV", () => copy(csvOf(view))),
    actionButton("Save JSON", () =>
      download(`${name}.json`, new Blob([jsonOf(group, sample, method, view)], { type: "application/json" })),
    ),
    actionButton("Save PNG", async (button) => download(`${name}.png`, await panelPicture(button.closest(".panel")))),
  );
}

const PIXELS = 2; // of a picture for each of the screen, fewer where the limits below, which browsers have, are met
const LARGEST_SIDE = 16384;
const MOST_PIXELS = 2 ** 26;
const MARGIN = 14;
const WRITTEN = "h3 .name, h4, .scores, figcaption, .map span, .legend .what, .legend .ends span";
const DRAWN = "fill stroke stroke-width stroke-opacity stroke-dasharray font-size font-family font-weight color".split(
  " ",
);

/** An SVG with the page's style in its own attributes, as an image. */
async function svgImage(node) {
  const copied = node.cloneNode(true),
    copies = [copied, ...copied.querySelectorAll("*")];
  [node, ...node.querySelectorAll("*")].forEach((each, k) => {
    const style = getComputedStyle(each);
    for (const name of DRAWN) copies[k].setAttribute(name, style.getPropertyValue(name));
  });
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copied))}`;
  await image.decode();
  return image;
}

/** Write an element's text where it stands, broken at the same width. */
function writeText(context, node, x, y, width) {
  const style = getComputedStyle(node),
    size = parseFloat(style.fontSize);
  context.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  context.fillStyle = style.color;
  let line = "";
  for (const word of node.textContent.split(/(?<=\s)/)) {
    if (line && context.measureText(line + word).width > width + 1) {
      context.fillText(line, x, y + size);
      y += 1.2 * size;
      line = "";
    }
    line += word;
  }
  context.fillText(line, x, y + size);
}

/** What a panel shows, as a PNG of twice the screen's resolution where that can be drawn; what is scrolled out of sight
 * is in it. */
async function panelPicture(panel) {
  const frame = panel.getBoundingClientRect(),
    seen = [...panel.querySelectorAll(`canvas, svg, ${WRITTEN}`)].filter((node) => node.getClientRects().length);
  const placed = seen.map((node) => {
    const box = node.getBoundingClientRect(),
      scrolled = node.closest(".scroll");
    const x = box.left - frame.left + (scrolled?.scrollLeft ?? 0),
      y = box.top - frame.top + (scrolled?.scrollTop ?? 0);
    return { node, x, y, width: box.width, height: box.height };
  });
  const far = (end) => Math.max(...placed.map(end)) + MARGIN;
  const wide = Math.max(frame.width, far(({ x, width }) => x + width)),
    high = far(({ y, height }) => y + height);
  const pixels = Math.min(PIXELS, LARGEST_SIDE / wide, LARGEST_SIDE / high, Math.sqrt(MOST_PIXELS / (wide * high)));
  const canvas = html("canvas", { width: pixels * wide, height: pixels * high });
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.documentElement).backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.scale(pixels, pixels);
  context.imageSmoothingEnabled = false;
  for (const { node, x, y, width, height } of placed) {
    if (node instanceof HTMLCanvasElement) context.drawImage(node, x, y, width, height);
    else if (node instanceof SVGElement) context.drawImage(await svgImage(node), x, y, width, height);
    else writeText(context, node, x, y, width);
  }
  return new Promise((resolve) => canvas.toBlob(resolve));
}
