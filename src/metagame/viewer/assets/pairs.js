// Pairs: names in a row with arrows between them, or lines where they have no direction, and the matrix behind them.

/**
 * The off-diagonal entries of largest size, as { player, target, value }; only those that touch `only` if it is given.
 * Pairs without a direction are there once.
 */
function strongestPairs(matrix, n, count, only, directed) {
  const pairs = [];
  for (let target = 0; target < n; target++) {
    for (let player = 0; player < (directed ? n : target); player++) {
      const value = matrix[target * n + player];
      const wanted = only === null || only === target || only === player;
      if (target !== player && value !== 0 && wanted) pairs.push({ player, target, value });
    }
  }
  return pairs.sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, count);
}

function pairText(names, pair, directed) {
  return `${names[pair.player]} ${directed ? "→" : "↔"} ${names[pair.target]}: ${format(pair.value)}`;
}

/** Names that occur again with their place, counted from 1. */
function toldApart(names) {
  return names.map((name, k) => (names.indexOf(name) !== names.lastIndexOf(name) ? `${name} (${k + 1})` : name));
}

const FONT = 14,
  BOX = 26;
const MOST_WRITTEN = 6; // names: numbers are written into the matrix

function boxes(names) {
  let x = 6;
  return names.map((name) => {
    const width = Math.max(30, textWidth(name, FONT) + 14);
    const box = { x, width, center: x + width / 2 };
    x += width + 6;
    return box;
  });
}

/**
 * Arrows player → target: above the names where the target comes later, below where it comes earlier. Pairs without a
 * direction are lines above the names.
 */
function arrowRow({ names, directed, tints, tintLimit, matrix, limit, count, only, annotated = [], onFocus, say }) {
  const n = names.length,
    apart = toldApart(names),
    places = boxes(names);
  const pairs = matrix ? strongestPairs(matrix, n, count, only, directed) : [];
  const height = (pair) => 14 + 0.26 * Math.min(420, Math.abs(places[pair.player].center - places[pair.target].center));
  const room = (later) =>
    Math.max(12, ...pairs.filter((p) => p.target > p.player === later).map((p) => height(p) + 12));
  const top = room(true),
    bottom = room(false);
  const width = places[n - 1].x + places[n - 1].width + 6,
    total = top + BOX + bottom;
  const picture = svg("svg", {
    width,
    height: total,
    viewBox: `0 0 ${width} ${total}`,
    class: "arrows",
    role: "group",
    "aria-label": directed ? "arrows from players to targets" : "lines between pairs",
  });
  [...pairs].reverse().forEach((pair) => {
    const later = pair.target > pair.player,
      away = later ? -1 : 1;
    const edge = later ? top : top + BOX,
      side = later ? 4 : -4;
    const from = places[pair.player].center + side,
      to = places[pair.target].center - side;
    const peak = edge + away * height(pair) * 1.33,
      tip = edge + away * 1,
      neck = directed ? edge + away * 9 : edge;
    const size = Math.abs(pair.value) / limit,
      stroke = pair.value > 0 ? POSITIVE : NEGATIVE;
    const d = `M${from} ${edge}C${from} ${peak},${to} ${peak},${to} ${neck}`;
    const text = pairText(apart, pair, directed),
      half = 3.5 + 2.5 * size;
    picture.append(
      svg(
        "g",
        {
          class: "pair",
          "data-player": pair.player,
          "data-target": pair.target,
          "data-value": pair.value,
          onmouseenter: () => say(text),
          onmouseleave: () => say(null),
        },
        svg("path", {
          d,
          fill: "none",
          stroke,
          "stroke-width": 0.8 + 4.2 * size,
          "stroke-opacity": 0.8,
          "stroke-dasharray": pair.value > 0 ? null : "6 4",
          class: "line",
        }),
        ...(directed
          ? [
              svg("polygon", {
                points: `${to - half},${neck} ${to + half},${neck} ${to},${tip}`,
                fill: stroke,
                class: "head",
              }),
            ]
          : []),
        svg("path", { d, fill: "none", stroke: "transparent", "stroke-width": 12 }),
        svg("title", {}, text),
      ),
    );
  });
  names.forEach((name, k) => {
    const tint = tints ? tints[k] : 0,
      focus = () => onFocus(only === k ? null : k);
    picture.append(
      svg(
        "g",
        {
          class: `token${only === k ? " focused" : ""}${annotated.flat().includes(k) ? " annotated" : ""}`,
          "data-token": k,
          tabindex: 0,
          role: "button",
          "aria-pressed": String(only === k),
          "aria-label": tints ? `${apart[k]}, ${format(tint)}` : apart[k],
          onclick: focus,
          onkeydown: (event) => {
            if (event.key === "Enter" || event.key === " ") {
              event.preventDefault();
              focus();
            }
          },
        },
        svg("rect", {
          x: places[k].x,
          y: top,
          width: places[k].width,
          height: BOX,
          rx: 5,
          fill: tints ? color(tint, tintLimit) : "#fff",
        }),
        svg(
          "text",
          {
            x: places[k].center,
            y: top + 18,
            "text-anchor": "middle",
            "font-size": FONT,
            fill: tints ? ink(tint, tintLimit) : "#111",
          },
          name,
        ),
        svg("title", {}, tints ? `${apart[k]}: ${format(tint)}` : apart[k]),
      ),
    );
  });
  return { picture: html("div", { class: "scroll" }, picture), pairs };
}

function pairList(names, pairs, directed) {
  const apart = toldApart(names);
  return html(
    "details",
    { class: "pairs" },
    html("summary", {}, `The ${pairs.length} ${directed ? "arrows" : "lines"} as a list`),
    html(
      "ol",
      {},
      pairs.map((pair) => html("li", {}, pairText(apart, pair, directed))),
    ),
  );
}

/** The heat map of a matrix (null: none), rows = targets, and a bar for each row beside it. */
function matrixMap({ names, directed, matrix, errors, limit, bars, barLimit, barTitle, annotated = [], say }) {
  const n = names.length,
    apart = toldApart(names),
    columns = matrix ? n : 0;
  const labels = Math.min(120, Math.max(...apart.map((name) => textWidth(name, 12)))) + 10;
  const cell = matrix ? Math.max(12, Math.min(n <= MOST_WRITTEN ? 48 : 34, (380 - labels) / n)) : 24,
    top = matrix ? labels * 0.85 + 22 : 22;
  const barX = labels + columns * cell + 16,
    barWidth = bars ? 104 : 0;
  const width = barX + barWidth + 64,
    height = top + n * cell + 8;
  const picture = svg("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    class: "matrix",
    role: "img",
    tabindex: matrix ? 0 : null,
    "aria-label": matrix ? "matrix; arrow keys go from entry to entry" : barTitle,
  });
  const label = (x, y, text, attributes) =>
    picture.append(svg("text", { x, y, "font-size": Math.min(12, cell + 1), ...attributes }, text));
  const describe = (i, j) =>
    say(
      `${apart[j]} ${directed ? "→" : "↔"} ${apart[i]} (row ${i + 1}, column ${j + 1}): ${format(matrix[i * n + j])}` +
        plusMinus(errors?.[i * n + j]),
    );
  const cells = [];
  for (let i = 0; i < n; i++) {
    label(labels - 4, top + (i + 0.5) * cell + 4, apart[i], { "text-anchor": "end" });
    for (let j = 0; j < columns; j++) {
      const value = matrix[i * n + j];
      const square = svg("rect", {
        x: labels + j * cell,
        y: top + i * cell,
        width: cell,
        height: cell,
        fill: color(value, limit),
        stroke: "#ddd",
        "stroke-width": 0.5,
        "data-row": i,
        "data-column": j,
        "data-value": value,
        onmouseenter: () => describe(i, j),
      });
      cells.push(square);
      picture.append(square);
      if (n <= MOST_WRITTEN)
        label(labels + (j + 0.5) * cell, top + (i + 0.5) * cell + 4, format(value).replace(/^([+−]?)0\./, "$1."), {
          "text-anchor": "middle",
          "font-size": 9.5,
          fill: ink(value, limit),
          class: "number",
        });
    }
  }
  for (const [i, j] of matrix ? annotated.flatMap(([one, other]) => [[one, other], [other, one]]) : [])
    picture.append(
      svg("rect", { x: labels + j * cell, y: top + i * cell, width: cell, height: cell, class: "annotated" }),
    );
  for (let j = 0; j < columns; j++) {
    const x = labels + (j + 0.5) * cell + 3;
    label(x, top - 5, apart[j], { transform: `rotate(-55 ${x} ${top - 5})` });
  }
  if (matrix) label(2, 12, directed ? "row: target i, column: player j" : "entry: interaction of i and j", { class: "axis" });
  if (bars) drawBars(picture, { bars, barLimit, barTitle, barX, barWidth, top, cell, apart, label });
  picture.addEventListener("mouseleave", () => say(null));
  if (matrix) moveWithKeys(picture, cells, n, describe);
  return html("div", { class: "scroll" }, picture);
}

function drawBars(picture, { bars, barLimit, barTitle, barX, barWidth, top, cell, apart, label }) {
  const middle = barX + barWidth / 2;
  label(barX, top - 6, barTitle, { class: "axis" });
  bars.forEach((value, i) => {
    const length = (Math.abs(value) / barLimit) * (barWidth / 2),
      y = top + (i + 0.15) * cell;
    picture.append(
      svg(
        "rect",
        {
          x: value < 0 ? middle - length : middle,
          y,
          width: length,
          height: cell * 0.7,
          fill: value < 0 ? NEGATIVE : POSITIVE,
          class: "value",
          "data-target": i,
          "data-value": value,
        },
        svg("title", {}, `${apart[i]}: ${format(value)}`),
      ),
    );
    label(barX + barWidth + 4, top + (i + 0.5) * cell + 4, format(value), { class: "number" });
  });
  picture.append(svg("line", { x1: middle, x2: middle, y1: top, y2: top + bars.length * cell, stroke: "#666" }));
}

function moveWithKeys(picture, cells, n, describe) {
  const steps = { ArrowUp: -n, ArrowDown: n, ArrowLeft: -1, ArrowRight: 1 };
  let at = -1;
  picture.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = at < 0 ? 0 : at + steps[event.key];
    if (next < 0 || next >= cells.length) return;
    if (at >= 0) cells[at].classList.remove("here");
    at = next;
    cells[at].classList.add("here");
    describe(Math.floor(at / n), at % n);
  });
}
