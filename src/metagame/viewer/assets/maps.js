// Maps of patches on the picture, small ones of all words and a large one of the chosen word.

const SMALL = 104,
  LARGE = 336;
const TRUTH = [0.35, 0.85, 0.7]; // shares of red, green and blue where the annotation has a name

/** The maps of a view, in order: { name, layer, values, errors, step }. */
function mapsOf(view) {
  return view.layers.flatMap((layer) =>
    layer.names.map((name, k) => ({
      name,
      layer: layer.title,
      values: row(layer.values, k),
      errors: layer.error && row(layer.error, k),
      step: stepOf(layer.values),
    })),
  );
}

/** Names of maps, those of players first. */
function mapNames(views) {
  const layers = views.flatMap((view) => view.layers).sort((a, b) => b.players - a.players);
  return [...new Set(layers.flatMap((layer) => layer.names))];
}

/** The map of that name, or else the first. */
function chosenMap(view, name) {
  const maps = mapsOf(view);
  return maps.find((map) => map.name === name) ?? maps[0];
}

function mapLimit(views) {
  return clippedLimit(views.flatMap((view) => mapsOf(view).map((map) => map.values)));
}

const loaded = new Map();

/** A picture's greys by key, at a size: resolves to an array, or null where there is no picture. */
async function greys(key, size, smooth = true) {
  if (!key) return null;
  const name = `${key} ${size}`;
  if (!loaded.has(name)) {
    const image = new Image();
    image.src = DATA.pictures[key];
    loaded.set(
      name,
      image.decode().then(() => {
        const canvas = html("canvas", { width: size, height: size });
        const context = canvas.getContext("2d");
        context.imageSmoothingEnabled = smooth && image.width > size;
        context.drawImage(image, 0, 0, size, size);
        const pixels = context.getImageData(0, 0, size, size).data;
        return Float32Array.from(
          { length: size * size },
          (_, k) => (0.299 * pixels[4 * k] + 0.587 * pixels[4 * k + 1] + 0.114 * pixels[4 * k + 2]) / 255,
        );
      }),
    );
  }
  return loaded.get(name);
}

/** The picture in pale grey, tinted by the map, as in the figures. */
async function paint(canvas, values, [rows, columns], limit, picture) {
  const size = canvas.width,
    context = canvas.getContext("2d"),
    image = context.createImageData(size, size);
  const grey = await greys(picture, size);
  const tints = Array.from(values, (value) => rgb(value, limit));
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const k = y * size + x,
        tint = tints[Math.floor((y * rows) / size) * columns + Math.floor((x * columns) / size)];
      const share = grey ? 0.72 + 0.28 * grey[k] : 1;
      for (let channel = 0; channel < 3; channel++) image.data[4 * k + channel] = tint[channel] * share;
      image.data[4 * k + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  canvas.dataset.painted = "yes";
}

/**
 * The large map; `point(row, column)` of the returned object moves its cursor. `share` tells of moves by hand, and of the
 * patch that is chosen, where there is something to see of single patches.
 */
function largeMap(map, wanted, grid, limit, picture, share, chooses) {
  const [rows, columns] = grid;
  const canvas = html("canvas", {
    width: LARGE,
    height: LARGE,
    tabindex: 0,
    role: "img",
    "aria-label": `map of ${map.name}; arrow keys go from patch to patch${chooses ? ", Enter chooses one" : ""}`,
  });
  const cursor = html("div", { class: "cursor", hidden: true });
  const { line, say } = readout("Point at a patch for its value.");
  paint(canvas, map.values, grid, limit, picture);
  let at = [-1, 0];
  function point(down, right) {
    at = [Math.min(rows - 1, Math.floor(down * rows)), Math.min(columns - 1, Math.floor(right * columns))];
    cursor.hidden = false;
    const share = (patches, of) => `${(100 * patches) / of}%`;
    const size = { width: share(1, columns), height: share(1, rows) };
    Object.assign(cursor.style, size, { top: share(at[0], rows), left: share(at[1], columns) });
    const k = at[0] * columns + at[1];
    say(`${map.name}, row ${at[0]}, column ${at[1]}: ${format(map.values[k])}${plusMinus(map.errors?.[k])}`);
  }
  const relative = (event) => {
    const box = canvas.getBoundingClientRect(),
      inside = (value) => Math.min(0.9999, Math.max(0, value));
    return [inside((event.clientY - box.top) / box.height), inside((event.clientX - box.left) / box.width)];
  };
  canvas.addEventListener("mousemove", (event) => share.move(...relative(event)));
  canvas.addEventListener("click", (event) => share[chooses ? "choose" : "move"](...relative(event)));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step && event.key !== "Enter") return;
    event.preventDefault();
    const next = at[0] < 0 || !step ? [Math.max(0, at[0]), at[1]] : [at[0] + step[0], at[1] + step[1]];
    if (next.some((each, axis) => each < 0 || each >= grid[axis])) return;
    share[step || !chooses ? "move" : "choose"]((next[0] + 0.5) / rows, (next[1] + 0.5) / columns);
  });
  const caption = map.name === wanted ? map.name : `${map.name} (there is no map of “${wanted}”)`;
  return {
    node: html(
      "figure",
      { class: "large" },
      html("figcaption", {}, caption),
      html("div", { class: "canvas" }, canvas, cursor),
      line,
    ),
    point,
  };
}

/** Influence of concepts on each other: at the chosen patch, or the mean over patches. */
function influenceAt(influence, patch) {
  const n = influence.names.length,
    size = influence.values.shape[2],
    values = numbers(influence.values);
  return Float64Array.from({ length: n * n }, (_, k) => {
    if (patch !== null) return values[k * size + patch];
    return values.subarray(k * size, (k + 1) * size).reduce((a, b) => a + b, 0) / size;
  });
}

/** Standard errors of that at a patch; null where they are not known, as those of the mean. */
function errorsAt(influence, patch) {
  return influence.error && patch !== null ? influenceAt({ ...influence, values: influence.error }, patch) : null;
}

/** The patch that was chosen, in the grid of this view; null for none. */
function chosenPatch(view, state) {
  if (!state.patch) return null;
  const [down, right] = state.patch.split(",").map(Number),
    [rows, columns] = view.grid;
  return Math.floor(down * rows) * columns + Math.floor(right * columns);
}

/** Where the annotation has the name, or any for null: in colour, elsewhere pale; striped where nobody said. */
async function paintTruth(canvas, sample, name) {
  const size = canvas.width,
    context = canvas.getContext("2d"),
    level = sample.present.indexOf(name) + 1,
    any = name === null;
  const [mask, grey] = await Promise.all([greys(sample.mask, size, false), greys(sample.picture, size)]);
  const image = context.createImageData(size, size);
  for (let k = 0; k < size * size; k++) {
    const found = Math.round(mask[k] * 255),
      unlabelled = found === 255,
      bright = 255 * (0.72 + 0.28 * (grey ? grey[k] : 1));
    const striped = unlabelled && ((k % size) + Math.floor(k / size)) % 8 < 4;
    const shown = any ? found > 0 && !unlabelled : level > 0 && found === level;
    const tint = shown ? TRUTH : striped ? [0.6, 0.6, 0.6] : [1, 1, 1];
    for (let channel = 0; channel < 3; channel++) image.data[4 * k + channel] = bright * tint[channel];
    image.data[4 * k + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  canvas.dataset.painted = "yes";
}

/** The annotation beside a map: where the chosen player is, or all that are, where the map is of no player. */
function truthFigure(view, sample, wanted) {
  if (!sample.mask) return null;
  const players = view.layers.filter((layer) => layer.players).flatMap((layer) => layer.names),
    there = sample.present.includes(wanted),
    name = there || players.includes(wanted) ? wanted : null,
    what = name ?? sample.present.join(", "),
    size = { width: LARGE / 2, height: LARGE / 2 },
    canvas = html("canvas", { ...size, role: "img", "aria-label": `annotation of ${what}` });
  paintTruth(canvas, sample, name);
  const caption = there || name === null ? `annotated: ${what}` : `annotated: no ${what}`;
  return html("figure", { class: "truth" }, html("figcaption", {}, caption), canvas);
}

function drawMaps(view, limits, state, change, sample, share) {
  const { picture } = sample,
    map = chosenMap(view, state.item),
    large = largeMap(map, state.item, view.grid, limits.map, picture, share, Boolean(view.influence));
  share.maps.push(large);
  if (view.influence && state.patch) large.point(...state.patch.split(",").map(Number));
  const layers = view.layers.map((layer) =>
    html(
      "div",
      { class: "layer" },
      html("h4", {}, layer.title),
      html(
        "div",
        { class: "multiples" },
        layer.names.map((name, k) => {
          const canvas = html("canvas", { width: SMALL, height: SMALL, "aria-hidden": "true" });
          paint(canvas, row(layer.values, k), view.grid, limits.map, picture);
          const chosen = name === map.name;
          return html(
            "button",
            {
              type: "button",
              class: `map${chosen ? " chosen" : ""}${sample.present.includes(name) ? " present" : ""}`,
              "data-name": name,
              "aria-pressed": String(chosen),
              onclick: () => change({ item: name }),
            },
            canvas,
            html("span", {}, name),
          );
        }),
      ),
    ),
  );
  return [
    html("div", { class: "beside" }, large.node, truthFigure(view, sample, state.item)),
    legend(limits.map, "value of a patch", true),
    layers,
    view.influence ? drawInfluence(view, limits, state, change) : null,
  ];
}

function drawInfluence(view, limits, state, change) {
  const { names } = view.influence,
    patch = chosenPatch(view, state),
    matrix = influenceAt(view.influence, patch);
  const { line, say } = readout(
    "Point at an arrow or an entry for its value; choose a concept to see its arrows only.",
  );
  const focus = state.token !== null && state.token < names.length ? state.token : null;
  const { picture, pairs } = arrowRow({
    names,
    directed: true,
    tints: null,
    matrix,
    limit: limits.arrow,
    count: state.pairs,
    only: focus,
    onFocus: (token) => change({ token }),
    say,
  });
  const where =
    patch === null
      ? "mean over all patches"
      : `patch in row ${Math.floor(patch / view.grid[1])}, column ${patch % view.grid[1]}`;
  return html(
    "div",
    { class: "influence" },
    html("h4", {}, `How concepts move each other's maps: ${where}`),
    html(
      "p",
      { class: "hint" },
      "Choose a patch in a large map above to see it there. " +
        "On the diagonal: the map of a concept without rivals. Arrows below lead to an earlier name of the row. Solid: positive; dashed: negative.",
      patch === null
        ? null
        : html(
            "button",
            { type: "button", class: "plain", onclick: () => change({ patch: null }) },
            "Back to the mean",
          ),
    ),
    picture,
    line,
    pairList(names, pairs, true),
    matrixMap({ names, directed: true, matrix, errors: errorsAt(view.influence, patch), limit: limits.influence, bars: null, say }),
    legend(limits.influence, "influence", true),
  );
}

/** Scales that the views share. */
function mapLimits(views, state) {
  const matrices = views
    .filter((view) => view.influence)
    .map((view) => [view.influence.names.length, influenceAt(view.influence, chosenPatch(view, state))]);
  const between = matrices.flatMap(([n, matrix]) => Array.from(matrix).filter((_, k) => k % (n + 1) !== 0));
  return {
    map: mapLimit(views),
    influence: clippedLimit(matrices.map(([, matrix]) => matrix)),
    arrow: largest(between) || 1,
  };
}
