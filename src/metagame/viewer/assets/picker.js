// The samples of a model and benchmark as a table: found by words, sorted by scores, a page at a time.

const PER_PAGE = 8;
const turned = { names: null, page: null }; // the page that was turned to, of which list

/** What a sample is called: its text, or what is in its picture, or its id. */
function titleOf(sample) {
  return sample.text ?? (sample.present.join(", ") || sample.id);
}

/** Names of all scores of a group, those of its first methods first. */
function scoreNames(group) {
  return [...new Set(group.samples.flatMap(({ methods }) => methods.flatMap(({ scores }) => Object.keys(scores))))];
}

/** Each sample with the chosen score of A and B, those that the search and the range leave, in the chosen order. */
function listedSamples(group, names) {
  const of = (sample, label) => sample.methods.find((method) => method.label === label)?.scores[state.score];
  const rows = group.samples.map((sample, k) => {
    const a = of(sample, state.a),
      b = of(sample, state.b);
    const difference = a === undefined || b === undefined ? undefined : b - a;
    return { sample, name: names[k], a, b, difference, change: difference && Math.abs(difference) };
  });
  const wanted = (state.search ?? "").trim().toLowerCase(),
    limit = (text) => (text === null || text === "" ? null : Number(text)),
    [from, to] = [limit(state.from), limit(state.to)];
  const found = rows.filter(
    ({ sample, a }) =>
      [sample.id, titleOf(sample), sample.answer].some((text) => text?.toLowerCase().includes(wanted)) &&
      (from === null || a >= from) &&
      (to === null || a <= to),
  );
  if (!state.order) return found;
  const key = state.order.replace("-", ""),
    sign = state.order.startsWith("-") ? -1 : 1;
  const [known, unknown] = [(row) => row[key] !== undefined, (row) => row[key] === undefined].map((is) =>
    found.filter(is),
  );
  return [...known.sort((one, other) => sign * (one[key] - other[key])), ...unknown];
}

function drawPicker(group, names) {
  const rows = html("div", { id: "samples" }),
    refresh = () => drawRows(rows, group, names);
  const field = (name, label, attributes) =>
    html(
      "label",
      { class: "control", for: name },
      html("span", {}, label),
      html("input", {
        id: name,
        value: state[name] ?? "",
        autocomplete: "off",
        ...attributes,
        oninput: (event) => {
          state[name] = event.target.value;
          turned.page = 0;
          refresh();
          writeFragment();
        },
      }),
    );
  const scores = scoreNames(group);
  if (turned.names === null || turned.names.join() !== names.join()) Object.assign(turned, { names, page: null });
  refresh();
  return html(
    "section",
    { class: "picker", "aria-label": "samples" },
    html(
      "div",
      { class: "row" },
      field("search", `Search the ${names.length} samples`, { type: "search" }),
      scores.length > 1 ? choice("score", "Score", scores, state.score) : null,
      scores.length ? field("from", "Score of A from", { type: "number", step: "any" }) : null,
      scores.length ? field("to", "to", { type: "number", step: "any" }) : null,
    ),
    rows,
  );
}

function drawRows(node, group, names) {
  const found = listedSamples(group, names),
    place = found.findIndex(({ name }) => name === state.sample),
    pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  const page = Math.min(pages - 1, turned.page ?? Math.floor(Math.max(0, place) / PER_PAGE));
  const turn = (by) => {
    turned.page = page + by;
    drawRows(node, group, names);
    node.querySelector(`#page${by}:not(:disabled), .pager button:not(:disabled)`)?.focus();
  };
  const columns = state.score === null ? [] : state.a === state.b ? ["a"] : ["a", "b", "difference"];
  const titles = { a: `A: ${state.a}`, b: `B: ${state.b}`, difference: "B − A" };
  const arrow = (by, text) => {
    const disabled = page + by < 0 || page + by >= pages;
    return html("button", { type: "button", id: `page${by}`, disabled, onclick: () => turn(by) }, text);
  };
  const head = columns.map((key) => heading(key, titles[key])),
    shown = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  node.replaceChildren(
    html(
      "div",
      { class: "scroll" },
      html(
        "table",
        {},
        html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "Sample"), head)),
        html(
          "tbody",
          {},
          shown.map((row) => sampleRow(row, columns)),
        ),
      ),
    ),
    html(
      "p",
      { class: "pager" },
      arrow(-1, "← Previous"),
      ` ${found.length ? `page ${page + 1} of ${pages}` : "No sample matches."} `,
      arrow(1, "Next →"),
    ),
  );
}

/** The heading of a column of scores; pressing it sorts: by size of the change, largest first, smallest, not at all. */
function heading(key, title) {
  const orders = [null, ...(key === "difference" ? ["-change"] : []), `-${key}`, key],
    place = Math.max(0, orders.indexOf(state.order)),
    next = orders[(place + 1) % orders.length];
  const marks = { "-change": " ↓ by size", [`-${key}`]: " ↓", [key]: " ↑" },
    mark = place === 0 ? "" : marks[orders[place]],
    sorted = place === 0 ? "none" : orders[place] === key ? "ascending" : "descending";
  const press = () => {
    turned.page = 0;
    change({ order: next });
  };
  return html(
    "th",
    { scope: "col", class: "number", "aria-sort": sorted },
    html("button", { type: "button", id: `order-${key}`, title: "sort", onclick: press }, title + mark),
  );
}

function sampleRow(row, columns) {
  const { sample, name } = row,
    title = titleOf(sample) === sample.id ? name : titleOf(sample),
    chosen = name === state.sample,
    failed = sample.methods.some(({ error }) => error !== null);
  return html(
    "tr",
    { class: chosen ? "chosen" : null },
    html(
      "td",
      {},
      html(
        "button",
        {
          type: "button",
          id: `sample-${name}`,
          "data-sample": name,
          "aria-pressed": String(chosen),
          title,
          onclick: () => change({ sample: name }),
        },
        title,
      ),
      title === name ? null : html("small", {}, name),
      failed ? html("small", {}, "not every method succeeded") : null,
    ),
    columns.map((key) => html("td", { class: "number" }, row[key] === undefined ? "–" : scoreText(key, row[key]))),
  );
}

function scoreText(key, value) {
  return key === "difference" ? format(value) : format(value).replace("+", "");
}
