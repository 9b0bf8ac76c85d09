// The browser: what is chosen, its controls, and two methods side by side. The choice is kept in the URL's fragment.

const MOST_PAIRS = 60;
const KINDS = {
  tokens: { limits: tokenLimits, draw: drawTokens },
  maps: { limits: mapLimits, draw: drawMaps },
  arrays: { limits: arrayLimits, draw: drawArrays },
};
const state = {
  experiment: null,
  group: null,
  sample: null,
  question: null,
  a: null,
  b: null,
  item: null,
  patch: null,
  token: null,
  pairs: 10,
  scale: "shared",
  search: null,
  score: null,
  order: DATA.compares ? "-change" : null,
  from: null,
  to: null,
};
let last = null; // the sample that was shown before
const controls = document.getElementById("controls"),
  panels = document.getElementById("panels");

/** Set what the fragment gives; the names of that. */
function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1)),
    names = Object.keys(state).filter((name) => given.has(name));
  for (const name of names) {
    const value = given.get(name);
    state[name] = name === "token" || name === "pairs" ? Math.max(0, parseInt(value, 10) || 0) : value;
  }
  return names;
}

const PLAIN = { ...state }; // what needs not be said
let relevant = new Set(); // names of what has a meaning for what is shown

function writeFragment() {
  const told = ([name, value]) => value !== null && value !== "" && value !== PLAIN[name] && relevant.has(name);
  const kept = Object.entries(state).filter(told);
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

function change(some) {
  Object.assign(state, some);
  keepPlace(() => render(Object.keys(some)));
  writeFragment();
}

/** The element of a list whose name is chosen, else the first one (or the one at `otherwise`). */
function pick(list, name, of, otherwise = 0) {
  return list.find((each) => of(each) === name) ?? list[Math.min(otherwise, list.length - 1)];
}

const groupName = (group) => `${group.model}, ${group.benchmark}`;

/** Labels of samples; those that share an id and are not the same are numbered. */
function sampleNames(samples) {
  return toldApart(samples.map((sample) => sample.id));
}

/** Whether text and picture agree: another experiment may call another sample by the same id. */
function isSame(one, other) {
  const known = one.text !== null || one.picture !== null;
  return known && ["id", "text", "picture"].every((each) => one[each] === other[each]);
}

/** Choose the sample: the one before where it is in the group, too. What was chosen in another sample is forgotten. */
function resolveSample(group, given) {
  const names = sampleNames(group.samples),
    moved = last !== null && !group.samples.includes(last);
  if (moved && !given.includes("sample")) state.sample = names[group.samples.findIndex((each) => isSame(each, last))];
  state.sample = pick(names, state.sample, (name) => name);
  const sample = group.samples[names.indexOf(state.sample)];
  if (last !== null && sample !== last && !isSame(sample, last)) {
    const gone = last.present.includes(state.item) && !sample.present.includes(state.item),
      chosen = moved ? ["question", "item", "patch", "token"] : ["patch", "token", gone ? "item" : "token"];
    for (const name of chosen.filter((each) => !given.includes(each))) state[name] = null;
  }
  last = sample;
  return { names, sample };
}

/** How many kinds of values a method has of a sample. */
function richness(method) {
  return Math.max(
    0,
    ...method.views.map((view) => (view.matrix ? 1 : 0) + (view.influence ? 1 : 0) + (view.layers?.length ?? 0)),
  );
}

/** Where the method is that A is first compared with: itself in the other run, or one that tells more, or the next. */
function rivalOf(a, methods) {
  const itself = methods.findIndex(({ base, run }) => base === a.base && run !== a.run);
  if (itself >= 0) return itself;
  const richer = methods.findIndex((method) => richness(method) > richness(a));
  return richer >= 0
    ? richer
    : Math.max(
        0,
        methods.findIndex((method) => method !== a),
      );
}

/** The name of a question, with its players where there are few. */
function questionName(question, methods) {
  const layers = methods
    .flatMap((method) => method.views.filter((view) => view.question === question))
    .flatMap((view) => view.layers ?? []);
  const names = layers.find((layer) => layer.players)?.names.join(", ") ?? "";
  return !names || names.length > 40 || question.includes(names) ? question : `${question}: ${names}`;
}

/** Experiment, model and sample. */
function resolvePlace(given) {
  const experiments = [...new Set(DATA.groups.map((group) => group.experiment))];
  state.experiment = pick(experiments, state.experiment, (name) => name);
  const groups = DATA.groups.filter((group) => group.experiment === state.experiment);
  const group = pick(groups, state.group, groupName);
  state.group = groupName(group);
  return { experiments, groups, group, ...resolveSample(group, given) };
}

/** What else is shown of the sample, whose views are there. */
function resolve(place) {
  const { group, sample } = place;
  const a = pick(sample.methods, state.a, (method) => method.label);
  const b = pick(sample.methods, state.b, (method) => method.label, rivalOf(a, sample.methods));
  const questions = [...new Set(sample.methods.flatMap((method) => method.views.map((view) => view.question)))];
  state.question = pick(questions, state.question, (name) => name) ?? null;
  Object.assign(state, { a: a.label, b: b.label });
  const shown = [a, b].map((method) => ({
    method,
    view: method.views.find((view) => view.question === state.question),
  }));
  const items = drawnNames(shown);
  const first = items.findIndex((name) => sample.present.includes(name));
  if (items.length) state.item = pick(items, state.item, (name) => name, Math.max(0, first));
  state.score = pick(scoreNames(group), state.score, (name) => name) ?? null;
  return { ...place, questions, shown };
}

/** Whether A and B can share a scale: both have views, of one kind. */
function areAlike(shown) {
  return shown.every(({ view }) => view && view.kind === shown[0].view?.kind);
}

/** Names of the maps that A and B have. */
function drawnNames(shown) {
  return mapNames(shown.filter(({ view }) => view?.kind === "maps").map(({ view }) => view));
}

/** A list to choose from; `also` is what changes with it. */
function choice(id, label, options, value, name = (option) => option, also = {}) {
  const select = html(
    "select",
    { id, onchange: (event) => change({ [id]: event.target.value, ...also }) },
    options.map((option) => html("option", { value: option, selected: option === value }, name(option) || "–")),
  );
  return html("label", { class: "control", for: id }, html("span", {}, label), select);
}

/** Names of those choices that what is shown depends on. */
function relevantNames({ group, questions, shown, sample }) {
  const views = shown.map(({ view }) => view).filter(Boolean),
    influenced = views.some((view) => view.influence),
    withPairs = influenced || views.some((view) => view.matrix);
  const when = (is, ...names) => (is ? names : []);
  return new Set([
    ...["experiment", "group", "sample", "a", "scale", "search"],
    ...when(sample.methods.length > 1, "b"),
    ...when(questions.length > 1, "question"),
    ...when(drawnNames(shown).length > 0, "item"),
    ...when(withPairs, "pairs"),
    ...when(withPairs || views.some((view) => view.tokens), "token"),
    ...when(influenced, "patch"),
    ...when(scoreNames(group).length > 0, "order", "from", "to"),
    ...when(state.score !== scoreNames(group)[0], "score"),
  ]);
}

function drawControls(found) {
  const { experiments, groups, group, names, sample, questions, shown } = found;
  const methods = sample.methods.map((method) => method.label),
    drawn = shown.filter(({ view }) => view);
  const items = drawnNames(shown),
    withPairs = drawn.some(({ view }) => view.matrix || view.influence),
    scale = areAlike(shown) ? state.scale : "own";
  const radio = (value, text) =>
    html(
      "label",
      {},
      html("input", {
        type: "radio",
        name: "scale",
        id: `scale-${value}`,
        value,
        checked: scale === value,
        disabled: value === "shared" && !areAlike(shown),
        onchange: () => change({ scale: value }),
      }),
      text,
    );
  controls.replaceChildren(
    html(
      "div",
      { class: "row" },
      choice("experiment", "Experiment", experiments, state.experiment),
      choice("group", "Model and benchmark", groups.map(groupName), state.group),
      questions.length > 1
        ? choice("question", "Question", questions, state.question, (question) =>
            questionName(question, sample.methods),
          )
        : null,
    ),
    html(
      "div",
      { class: "row" },
      choice("a", "Method A", methods, state.a, undefined, DATA.compares ? { b: null } : {}),
      methods.length > 1 ? choice("b", "Method B", methods, state.b) : null,
      items.length
        ? choice("item", "Word or concept", items, state.item, (name) =>
            sample.present.includes(name) ? `${name} ✓` : name,
          )
        : null,
      withPairs
        ? html(
            "label",
            { class: "control", for: "pairs" },
            html("span", {}, `Arrows: the ${state.pairs} strongest`),
            html("input", {
              id: "pairs",
              type: "range",
              min: 0,
              max: MOST_PAIRS,
              value: state.pairs,
              oninput: (event) => change({ pairs: Number(event.target.value) }),
            }),
          )
        : null,
      html(
        "fieldset",
        { class: "control" },
        html("legend", {}, "Scale"),
        radio("shared", "shared by A and B"),
        radio("own", "each its own (units may differ)"),
      ),
    ),
    ...(names.length > 1 ? [drawPicker(group, names)] : []),
  );
}

function drawSubject(sample) {
  const line = (name, text) => (text ? html("p", {}, html("strong", {}, `${name}: `), text) : null);
  const image = sample.picture
    ? html("img", { src: DATA.pictures[sample.picture], alt: `picture of the sample ${sample.id}`, class: "picture" })
    : null;
  document.getElementById("subject").replaceChildren(
    ...[
      image,
      html(
        "div",
        {},
        html("p", { class: "title" }, titleOf(sample)),
        titleOf(sample) === sample.id ? null : line("Sample", sample.id),
        line("Answer", sample.answer),
        sample.present.length ? line("In the picture", sample.present.join(", ")) : null,
        sample.annotated_pairs.length
          ? line("Annotated pairs", sample.annotated_pairs.map((pair) => pair.join(" + ")).join("; "))
          : null,
        sample.notes.map((note) => html("p", { class: "error" }, note)),
      ),
    ].filter(Boolean),
  );
}

const FEW_SCORES = 4;

/** The numbers that the benchmark gave the sample; more than a few are folded. */
function drawScores(scores) {
  const texts = Object.entries(scores).map(([name, value]) => `${name} ${format(value).replace("+", "")}`);
  if (!texts.length) return null;
  const first = html("p", { class: "scores" }, texts.slice(0, FEW_SCORES).join(" · "));
  if (texts.length <= FEW_SCORES) return first;
  const rest = html("summary", {}, `All ${texts.length} scores`);
  return [first, html("details", { class: "all-scores" }, rest, html("p", { class: "scores" }, texts.join(" · ")))];
}

/** Where a method's answer lies, and the command that made it. */
function drawSource(method) {
  const { command } = method,
    job = method.job.split("/").map(encodeURIComponent).join("/");
  const line = (name, ...content) => [html("dt", {}, name), html("dd", {}, ...content)];
  return html(
    "details",
    { class: "source" },
    html("summary", {}, "Where this comes from"),
    html(
      "dl",
      {},
      line("Job", html("a", { href: `${job}/` }, method.job.replace(/^(\.\.\/)+/, ""))),
      line("Record", html("code", {}, method.key), ", in the job’s records.jsonl"),
      command ? line("Command", html("code", {}, command), " ", copyButton("Copy", command)) : null,
    ),
  );
}

function drawPanels(group, sample, shown) {
  const share = {
    maps: [],
    move: (down, right) => share.maps.forEach((map) => map.point(down, right)),
    choose: (down, right) => change({ patch: `${down.toFixed(4)},${right.toFixed(4)}` }),
  };
  const alike = areAlike(shown);
  const all = shown.map(({ view }) => view);
  const made = shown.map(({ method, view }, place) => {
    const letter = html("span", { class: "letter" }, "AB"[place]),
      title = html("h3", {}, letter, html("span", { class: "name" }, method.label));
    const panel = (...content) =>
      html(
        "section",
        { class: "panel", "data-panel": "ab"[place], "aria-label": `${"AB"[place]}: ${method.label}` },
        title,
        ...content,
      );
    if (place === 1 && method === shown[0].method)
      return panel(html("p", { class: "hint" }, "A and B are the same method: choose another for B above."));
    const scores = drawScores(method.scores),
      source = drawSource(method);
    if (!view)
      return panel(
        scores,
        html("p", { class: "error" }, method.error ?? "This method was not asked this question."),
        source,
      );
    const { limits, draw } = KINDS[view.kind];
    return panel(
      scores,
      draw(view, limits(alike && state.scale === "shared" ? all : [view], state), state, change, sample, share),
      roundingNote(view),
      takeOut(group, sample, method, view),
      source,
    );
  });
  // a method alone is not shown beside itself
  panels.replaceChildren(...made.slice(0, sample.methods.length));
  for (const panel of panels.children) nameParts(panel, panel.dataset.panel);
}

/** Show what is chosen; `given` are the names of what was chosen just now. */
function render(given = []) {
  if (!DATA.groups.length) {
    panels.replaceChildren(html("p", {}, "No job has kept arrays of its samples yet."));
    return;
  }
  const place = resolvePlace(given),
    { group, sample } = place;
  if (sample.part) {
    panels.ariaBusy = "true";
    fillPart(group, sample.part).then(() => last === sample && change({}));
    return;
  }
  panels.ariaBusy = "false";
  const found = resolve(place);
  relevant = relevantNames(found);
  drawControls(found);
  drawSubject(found.sample);
  drawPanels(found.group, found.sample, found.shown);
}

function follow() {
  if (!location.hash.includes("=")) return;
  render(readFragment());
  document.getElementById("browser").scrollIntoView();
}

addEventListener("hashchange", follow);
follow();
render();
// of two runs, the sample that changed most
if (DATA.compares && !location.hash) document.querySelector("[data-sample]")?.click();
