// Arrays of a kind that no other view knows.

function drawArrays(view, limits) {
  return view.arrays.map((each) => {
    const [rows, columns] = each.values.shape,
      scale = Math.max(1, Math.floor(320 / Math.max(rows, columns)));
    const canvas = html("canvas", { width: columns * scale, height: rows * scale, class: "array" }),
      context = canvas.getContext("2d");
    const values = numbers(each.values),
      limit = limits.get(each.name),
      { line, say } = readout("Point at an entry for its value.");
    values.forEach((value, k) => {
      context.fillStyle = color(value, limit);
      context.fillRect((k % columns) * scale, Math.floor(k / columns) * scale, scale, scale);
    });
    canvas.addEventListener("mousemove", (event) => {
      const box = canvas.getBoundingClientRect();
      const i = Math.min(rows - 1, Math.floor(((event.clientY - box.top) / box.height) * rows));
      const j = Math.min(columns - 1, Math.floor(((event.clientX - box.left) / box.width) * columns));
      if (i >= 0 && j >= 0) say(`${each.name}, row ${i}, column ${j}: ${format(values[i * columns + j])}`);
    });
    return html(
      "div",
      { class: "layer" },
      html("h4", {}, `${each.name} (${each.shape.join(" × ")})`),
      canvas,
      line,
      legend(limit, each.name, true),
    );
  });
}

/** A scale for each name of an array. */
function arrayLimits(views) {
  const arrays = views.flatMap((view) => view.arrays);
  return new Map(
    arrays.map(({ name }) => [
      name,
      clippedLimit(arrays.filter((each) => each.name === name).map((each) => numbers(each.values))),
    ]),
  );
}
