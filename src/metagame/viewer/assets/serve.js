// The served page: a question is sent, its progress is followed, and its answer drawn as the browser of samples does.

const KINDS = { tokens: [tokenLimits, drawTokens], maps: [mapLimits, drawMaps] };
const HINTS = {
  tokens:
    "An arrow from j to i, and the entry in row i and column j, say by how much token j changes the attribution of" +
    " token i. Orange is positive, purple is negative. Each row sums to the token’s first-order attribution.",
  maps:
    "Orange: the patch counts more for the match of picture and caption when the word is there; purple: less." +
    " The map of all words is the first-order attribution, and that of no word belongs to an empty caption.",
};
const PAUSE = 200; // milliseconds between two looks at the progress
const forms = [...document.querySelectorAll("form")],
  told = document.getElementById("told"),
  panels = document.getElementById("panels");

function showError(text) {
  told.replaceChildren(html("p", { class: "error" }, text));
}

function showProgress({ message, done, planned }) {
  const counted = planned ? `${message}: ${done} of ${planned}` : `${message} …`;
  told.replaceChildren(
    html("p", {}, html("progress", planned ? { max: planned, value: done, "aria-label": message } : {}), ` ${counted}`),
  );
}

/** Within: questions cannot be sent. */
async function busily(work) {
  const parts = forms.map((form) => form.querySelector("fieldset"));
  panels.ariaBusy = "true";
  panels.replaceChildren();
  for (const part of parts) part.disabled = true;
  try {
    await work();
  } catch (error) {
    const gone = error instanceof TypeError; // as fetch has it
    showError(gone ? "The server does not answer. Start it again: metagame serve." : error.message);
  }
  for (const part of parts) part.disabled = false;
  panels.ariaBusy = "false";
}

async function asked(path, settings) {
  const response = await fetch(path, settings);
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

async function inBase64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 4096) text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  return btoa(text);
}

async function ask(form, given) {
  const file = given.get("picture") === "own" ? given.get("file") : null;
  if (file && file.size > DATA.largest)
    throw new Error(`${file.name} is larger than ${Math.floor(DATA.largest / 1e6)} MB: choose a smaller file.`);
  const content = file ? await inBase64(file) : "";
  const [text, method, picture] = ["text", "method", "picture"].map((name) => given.get(name) ?? "");
  const body = JSON.stringify({ kind: form.dataset.kind, text, method, picture, file: content });
  await follow(await asked("/explain", { method: "POST", headers: { "Content-Type": "application/json" }, body }));
}

/** Show the progress of a question until it is answered. */
async function follow(number) {
  for (;;) {
    const state = await asked("/state");
    if (state.number !== number) throw new Error("Another window has asked since: ask again.");
    if (state.status === "failed") throw new Error(state.message);
    if (state.status === "done") {
      told.replaceChildren();
      drawAnswer(state.answer, number);
      return;
    }
    showProgress(state);
    await new Promise((done) => setTimeout(done, PAUSE));
  }
}

function drawAnswer(answer, number) {
  const { view, picture } = answer,
    [limits, draw] = KINDS[view.kind],
    choice = { pairs: 10, token: null, item: view.layers?.[0].names[0], patch: null },
    sample = { picture: picture && number, present: [], mask: null },
    drawn = html("div", {});
  if (picture) DATA.pictures[number] = picture;
  const change = (some) => {
    Object.assign(choice, some);
    const move = (down, right) => share.maps.forEach((map) => map.point(down, right)),
      share = { maps: [], move, choose: move };
    keepPlace(() => {
      drawn.replaceChildren();
      fill(drawn, {}, draw(view, limits([view], choice), choice, change, sample, share));
      nameParts(drawn, "drawn");
    });
  };
  change({});
  panels.replaceChildren(
    html(
      "section",
      { class: "panel", "aria-labelledby": "answer" },
      html("h2", { id: "answer", tabindex: -1 }, answer.text),
      picture ? html("img", { src: picture, alt: "the picture that was explained", class: "picture" }) : null,
      answer.output ? html("p", {}, html("strong", {}, "Answer of the model: "), answer.output) : null,
      html("p", {}, html("strong", {}, `${answer.method}. `), answer.reading),
      answer.note ? html("p", { class: "error" }, answer.note) : null,
      html("p", { class: "hint" }, HINTS[view.kind]),
      drawn,
      roundingNote(view),
      html(
        "details",
        {},
        html("summary", {}, "The same in Python"),
        html("pre", { class: "scroll" }, html("code", {}, answer.code)),
      ),
    ),
  );
  document.getElementById("answer").focus();
}

for (const form of forms) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const question = new FormData(form); // before its fields are disabled
    busily(() => ask(form, question));
  });
  form.elements.file?.addEventListener("change", () => {
    form.elements.picture.value = "own";
  });
}

// a page that is loaded again goes on with what it asked
asked("/state").then((state) => {
  if (state.status === "running") busily(() => follow(state.number));
});
