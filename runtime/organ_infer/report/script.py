"""The script of the page: filters, sorting and keys. Without it, the page shows all rows, the least certain first."""

__all__ = ["SCRIPT"]

SCRIPT = """
(() => {
  "use strict";
  const list = document.getElementById("rows");
  const controls = document.getElementById("controls");
  if (!list || !controls) return;
  const field = name => document.getElementById("f-" + name);
  const rows = Array.from(list.children, element => ({
    element,
    number: Number(element.dataset.i),
    name: element.dataset.n || "",
    truth: element.dataset.t || "",
    // NaN for an image that failed.
    probability: Number(element.dataset.p || NaN),
    states: (element.dataset.s || "").split(" "),
    path: null
  }));
  const pathOf = row =>
    row.path ??= (row.element.querySelector(".path")?.textContent || "").toLowerCase();
  const isFailed = row => Number.isNaN(row.probability);
  const byText = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const isWrong = row => row.states.includes("wrong");
  const orders = {
    least: (a, b) => a.probability - b.probability,
    most: (a, b) => b.probability - a.probability,
    name: (a, b) => byText(a.name, b.name) || a.probability - b.probability,
    path: (a, b) => byText(pathOf(a), pathOf(b)),
    input: (a, b) => a.number - b.number,
    mistakes: (a, b) => isWrong(b) - isWrong(a) || b.probability - a.probability
  };

  const bound = (name, otherwise) => {
    const value = parseFloat(field(name).value);
    return Number.isFinite(value) ? value : otherwise;
  };
  const filter = () => {
    const name = field("name").value;
    const truth = field("truth")?.value || "";
    const state = field("state").value;
    const text = field("text").value.trim().toLowerCase();
    // The inputs have three decimals, as the page shows them.
    const low = bound("low", 0) - 5e-4, high = bound("high", 1) + 5e-4;
    const anyProbability = field("low").value === "" && field("high").value === "";
    let shown = 0;
    for (const row of rows) {
      const fits =
        (name === "" || row.name === name) &&
        (truth === "" || row.truth === truth) &&
        (state === "" || row.states.includes(state)) &&
        (anyProbability || (row.probability >= low && row.probability <= high)) &&
        (text === "" || pathOf(row).includes(text));
      row.element.hidden = !fits;
      shown += fits;
    }
    document.getElementById("shown").textContent =
      `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  };
  const sort = () => {
    const order = orders[field("sort").value];
    const sorted = rows.slice().sort((a, b) => {
      // Failed images come last, except in the order of the input and of paths.
      if (order !== orders.input && order !== orders.path && isFailed(a) !== isFailed(b))
        return isFailed(a) - isFailed(b);
      return (order(a, b) || 0) || a.number - b.number;
    });
    const fragment = document.createDocumentFragment();
    for (const row of sorted) fragment.append(row.element);
    list.append(fragment);
  };
  controls.addEventListener("input", event => {
    if (event.target === field("sort")) sort(); else filter();
  });
  document.getElementById("reset").addEventListener("click", () => {
    for (const control of controls.querySelectorAll("select, input")) {
      if (control !== field("sort")) control.value = "";
    }
    filter();
  });

  const step = (element, direction) => {
    do element = direction > 0 ? element.nextElementSibling : element.previousElementSibling;
    while (element && element.hidden);
    return element;
  };
  const focus = element => {
    if (!element) return;
    element.focus();
    element.scrollIntoView({block: "nearest"});
  };
  const visible = from => from && from.hidden ? step(from, 1) : from;
  list.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const current = event.target.closest(".row");
    const next = () => current ? step(current, 1) : visible(list.firstElementChild);
    const previous = () => current ? step(current, -1) : null;
    const last = () => {
      const end = list.lastElementChild;
      return end && end.hidden ? step(end, -1) : end;
    };
    const keys = {
      j: next, ArrowDown: next, k: previous, ArrowUp: previous,
      Home: () => visible(list.firstElementChild), End: last
    };
    if (keys[event.key]) {
      event.preventDefault();
      focus(keys[event.key]());
    } else if (event.key === "Enter" && current) {
      current.classList.toggle("large");
    }
  });
  list.addEventListener("click", event => {
    if (event.target.matches(".thumb img")) event.target.closest(".row").classList.toggle("large");
  });

  // The pictures of the first rows come at once, the others after the page can be used.
  const pictures = Array.from(list.querySelectorAll(".thumb noscript")).reverse();
  const fill = count => {
    for (const holder of count ? pictures.splice(-count) : []) {
      // The picture, and the map over it.
      const found = holder.textContent.matchAll(/<img(?: class="([^"]*)")? src="([^"]*)"/g);
      holder.replaceWith(...Array.from(found, ([, kind, address]) => {
        const image = document.createElement("img");
        image.alt = "";
        if (kind) image.className = kind;
        image.src = address;
        return image;
      }));
    }
  };
  const fillRest = () => {
    fill(100);
    if (pictures.length) setTimeout(fillRest, 10);
  };
  fill(20);
  addEventListener("load", () => setTimeout(fillRest));
  addEventListener("beforeprint", () => fill(pictures.length));

  controls.hidden = false;
  document.getElementById("keys").hidden = false;
  filter();
})();
"""
