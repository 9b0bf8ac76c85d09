// Tokens that are players and targets.

/** For each token its first-order attribution, or the sum of its row where the method has none; null of interactions. */
function tokenSums(view) {
  if (view.first_order) return { values: Array.from(numbers(view.first_order)), title: "first-order attribution" };
  if (!view.directed) return null;
  const n = view.tokens.length;
  return {
    values: Array.from({ length: n }, (_, i) => row(view.matrix, i).reduce((a, b) => a + b, 0)),
    title: "sum of the row",
  };
}

function offDiagonal(view) {
  const n = view.tokens.length;
  return view.matrix ? numbers(view.matrix).filter((_, k) => k % (n + 1) !== 0) : [];
}

/** Scales that the views share: of entries, arrows and bars. */
function tokenLimits(views) {
  return {
    entry: clippedLimit(views.filter((view) => view.matrix).map((view) => numbers(view.matrix))),
    arrow: Math.max(...views.map((view) => largest(offDiagonal(view)))) || 1,
    sum: Math.max(...views.map((view) => largest(tokenSums(view)?.values ?? []))) || 1,
  };
}

function drawTokens(view, limits, state, change) {
  const n = view.tokens.length,
    matrix = view.matrix ? numbers(view.matrix) : null,
    sums = tokenSums(view);
  const { line, say } = readout(
    matrix
      ? `Point at an entry, or at ${view.directed ? "an arrow" : "a line"}, for its value; choose a token to see its own only.`
      : "This method has no second-order values: one attribution for each token.",
  );
  const focus = state.token !== null && state.token < n ? state.token : null;
  const { picture, pairs } = arrowRow({
    names: view.tokens,
    directed: view.directed,
    tints: sums?.values,
    tintLimit: limits.sum,
    matrix,
    limit: limits.arrow,
    count: state.pairs,
    only: focus,
    annotated: view.annotated,
    onFocus: (token) => change({ token }),
    say,
  });
  return [
    html(
      "p",
      { class: "hint" },
      (sums ? `Tokens are tinted by their ${sums.title}.` : "") +
        (matrix && !view.directed
          ? " Lines are interactions of pairs, which have no direction. Solid: positive; dashed: negative. Width: size."
          : "") +
        (matrix && view.directed
          ? " Arrows above: to a later token; below: to an earlier one. Solid: positive; dashed: negative. Width: size."
          : "") +
        (view.annotated.length ? " Framed in green: pairs that are annotated as interacting." : ""),
    ),
    picture,
    line,
    matrix ? pairList(view.tokens, pairs, view.directed) : null,
    matrixMap({
      names: view.tokens,
      directed: view.directed,
      matrix,
      errors: view.error ? numbers(view.error) : null,
      limit: limits.entry,
      bars: sums?.values,
      barLimit: limits.sum,
      barTitle: sums?.title,
      annotated: view.annotated,
      say,
    }),
    matrix ? legend(limits.entry, "entry of the matrix", true) : null,
    sums ? legend(limits.sum, `token: ${sums.title}`, false) : null,
  ];
}
