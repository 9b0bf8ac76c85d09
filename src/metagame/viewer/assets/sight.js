// How the page is looked at: dark or light, figures in full size, everything unfolded on paper.

const THEME = "metagame-theme";

/** What was kept of an earlier visit; browsers may keep nothing for local pages. */
function keptTheme() {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null;
  }
}

function keepTheme(theme) {
  try {
    localStorage.setItem(THEME, theme);
  } catch {
    // then the next visit begins as the system has it
  }
}

function drawTheme() {
  const root = document.documentElement,
    system = matchMedia("(prefers-color-scheme: dark)"),
    dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const button = html("button", { type: "button", id: "theme" }),
    name = () => {
      button.textContent = dark() ? "Light colours" : "Dark colours";
    };
  const kept = keptTheme();
  if (kept) root.dataset.theme = kept;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    keepTheme(root.dataset.theme);
    name();
  });
  system.addEventListener("change", name);
  name();
  document.querySelector("header").prepend(button);
}

/** A figure in a window of its own, at its own size to begin with. */
function openFigure(figure) {
  let scale = 1;
  const image = html("img", { src: figure.src, alt: figure.alt }),
    resize = (factor) => {
      scale = Math.min(8, Math.max(0.1, scale * factor));
      image.style.width = `${scale * figure.naturalWidth}px`;
    };
  const frame = html("div", { class: "window", tabindex: 0, role: "region", "aria-label": figure.alt }, image),
    button = (name, act) => html("button", { type: "button", class: "action", onclick: act }, name);
  const dialog = html(
    "dialog",
    { class: "zoom", "aria-label": figure.alt, onclose: () => dialog.remove() },
    html(
      "p",
      { class: "actions" },
      button("Larger", () => resize(1.25)),
      button("Smaller", () => resize(0.8)),
      button("Whole", () => resize(frame.clientWidth / image.clientWidth)),
      button("Close", () => dialog.close()),
    ),
    frame,
  );
  const turn = (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    resize(event.deltaY < 0 ? 1.1 : 1 / 1.1);
  };
  frame.addEventListener("wheel", turn, { passive: false });
  document.body.append(dialog);
  dialog.showModal();
}

function letFiguresOpen() {
  for (const figure of document.querySelectorAll(".plot img")) {
    fill(figure, { tabindex: 0, role: "button", title: "Show in full size", onclick: () => openFigure(figure) }, []);
    figure.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      openFigure(figure);
    });
  }
}

/** On paper nothing can be unfolded. */
function unfoldForPrint() {
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll(".experiment details:not([open])")];
    for (const each of folded) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of folded) each.open = false;
  });
}

drawTheme();
letFiguresOpen();
unfoldForPrint();
