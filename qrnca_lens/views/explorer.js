// The explorer's face, the same in Jupyter and in a static page. `store` holds the state: in Jupyter it is the widget's
// model (get, set, save_changes, on), in a page it is `PageStore` below. All HTML in the state comes escaped from Python.

const sameView = (a, b) => a.query === b.query && a.layer === b.layer && a.neuron === b.neuron;

const label = (layer, neuron) => `L${layer}.N${neuron}`;

// What is selected after a change of one thing (the neuron: layer and neuron), with what that brings along. All rules stand in
// selection.py, which `completed` there tells in words; these are the same look-ups in the catalog, in the same order. null for
// a neuron that can't be selected.
function completed(catalog, selected, change) {
  const next = { ...selected, ...change };
  const queryOf = (id) => catalog.queries.find((query) => query.id === id);
  const inside = (id) => next.group === catalog.all || next.group === queryOf(id).group;
  if (!("query" in change)) {
    if (!inside(next.query)) next.query = catalog.groups.find(({ name }) => name === next.group).query;
    const has = queryOf(next.query).neurons.some(([layer, neuron]) => layer === next.layer && neuron === next.neuron);
    if ("layer" in change && next.layer !== null && !has) {
      const places = catalog.neurons[label(next.layer, next.neuron)] ?? [];
      if (!places.length && !catalog.open) return null;
      next.query = places.find(inside) ?? places[0] ?? next.query;
    }
  }
  if (!("layer" in change) && ("query" in change || next.query !== selected.query))
    [next.layer, next.neuron] = queryOf(next.query).neurons[0] ?? [null, null];
  if (!inside(next.query)) next.group = queryOf(next.query).group;
  return next;
}

function mount(root, store) {
  const catalog = store.get("catalog");
  root.classList.add("qrnca", "qrnca-explorer");
  root.innerHTML = `
    <div class="qrnca-controls">
      <label>group <select data-role="group"></select></label>
      <label>query <select data-role="query"></select></label>
      <label>neuron <select data-role="neuron"></select></label>
    </div>
    <div data-role="map"></div>
    <p class="qrnca-note" data-role="message" role="status"></p>
    <div class="qrnca-controls">
      <label><input type="radio" name="scope" value="neuron" checked> this neuron</label>
      <label><input type="radio" name="scope" value="all"> all QR neurons of the query</label>
      <label>times <input type="range" data-role="factor"> <output data-role="times"></output></label>
    </div>
    <div class="qrnca-letters" data-role="letters"></div>
    <p class="qrnca-note" data-role="note"></p>
    <div class="qrnca-columns">
      <div>
        <details data-part="query" open><summary>Query</summary><div></div></details>
        <details data-part="circuit" open><summary>Circuit at the last token</summary><div></div></details>
      </div>
      <details data-part="card" open><summary>Neuron</summary><div></div></details>
    </div>`;
  const part = (role) => root.querySelector(`[data-role="${role}"]`);
  const names = `scope-${Math.random().toString(36).slice(2)}`; // two explorers on one page must not share their buttons
  for (const button of root.querySelectorAll('input[name="scope"]')) button.name = names;
  part("note").textContent = catalog.note;
  part("factor").max = catalog.factors.length - 1;

  const selected = () => store.get("selected");
  const queriesOf = (group) => catalog.queries.filter((query) => group === catalog.all || query.group === group);
  const queryOf = (id) => catalog.queries.find((query) => query.id === id);

  function choose(change) {
    const next = completed(catalog, selected(), change);
    part("message").textContent = next
      ? ""
      : `${label(change.layer, change.neuron)} is not among the neurons kept in this page. ` +
        `In Python: ql.neuron(model, ${change.layer}, ${change.neuron}, located=located)`;
    if (!next) return;
    store.set("selected", next);
    store.save_changes();
  }

  function options(role, values, chosen) {
    part(role).replaceChildren(
      ...values.map(([value, text]) => {
        const option = document.createElement("option");
        option.value = value;
        option.textContent = text;
        option.selected = value === chosen;
        return option;
      }),
    );
  }

  function controls() {
    const now = selected();
    options("group", catalog.groups.map((group) => [group.name, group.label]), now.group);
    options("query", queriesOf(now.group).map((query) => [query.id, query.label]), now.query);
    const neurons = queryOf(now.query).neurons.map(([layer, neuron, naica]) => [
      label(layer, neuron),
      `${label(layer, neuron)}  (naica ${naica.toPrecision(3)})`,
    ]);
    const chosen = now.layer === null ? "none" : label(now.layer, now.neuron);
    if (!neurons.some(([value]) => value === chosen)) neurons.unshift([chosen, now.layer === null ? "none" : `${chosen}  (no QR neuron of this query)`]);
    options("neuron", neurons, chosen);
    if (part("map").dataset.group !== now.group) {
      part("map").innerHTML = catalog.groups.find((group) => group.name === now.group).map;
      part("map").dataset.group = now.group;
    }
    mark();
  }

  function mark() {
    const { layer, neuron } = selected();
    for (const place of root.querySelectorAll("[data-neuron]"))
      place.classList.toggle("qrnca-chosen", +place.dataset.layer === layer && +place.dataset.neuron === neuron);
    if (catalog.open) return;
    for (const button of root.querySelectorAll("button[data-neuron]")) {
      button.disabled = !(label(button.dataset.layer, button.dataset.neuron) in catalog.neurons);
      if (button.disabled) button.title = "not among the neurons kept in this page";
    }
  }

  function letters() {
    const view = store.get("view");
    const { scope, factor } = selected();
    const at = catalog.factors.indexOf(factor);
    part("factor").value = at;
    part("times").textContent = factor;
    for (const button of root.querySelectorAll(`input[name="${names}"]`)) button.checked = button.value === scope;
    const full = catalog.relative ? Math.max(...view.curves.all.flat(), ...view.curves.neuron.flat()) : 1;
    const bars = view.letters.map((option, i) => bar(option, view.curves[scope][at][i], full, option === view.right));
    part("letters").replaceChildren(...bars.flat());
  }

  // an option's name, the bar of its P and the number; the name is a text of the user's
  function bar(option, p, full, isRight) {
    const [name, place, number] = ["span", "div", "output"].map((tag) => document.createElement(tag));
    name.textContent = `P(${option})${isRight ? " right" : ""}`;
    place.className = isRight ? "qrnca-bar qrnca-right" : "qrnca-bar";
    place.append(document.createElement("div"));
    place.firstChild.style.width = `${(100 * p) / full}%`;
    number.dataset.letter = option;
    number.textContent = catalog.relative ? p.toPrecision(3) : p.toFixed(4);
    return [name, place, number];
  }

  function show() {
    const view = store.get("view");
    controls();
    letters();
    for (const name of ["query", "card", "circuit"]) root.querySelector(`[data-part="${name}"] > div`).innerHTML = view[name];
    window.qrncaMount?.(root);
    mark();
    root.classList.remove("qrnca-busy");
  }

  part("group").addEventListener("change", (event) => choose({ group: event.target.value }));
  part("query").addEventListener("change", (event) => choose({ query: event.target.value }));
  part("neuron").addEventListener("change", (event) => {
    const found = /^L(\d+)\.N(\d+)$/.exec(event.target.value);
    if (found) choose({ layer: +found[1], neuron: +found[2] });
  });
  root.addEventListener("click", (event) => {
    const place = event.target.closest("[data-neuron]");
    if (place) choose({ layer: +place.dataset.layer, neuron: +place.dataset.neuron });
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches(".qrnca-cell")) event.target.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  });
  part("factor").addEventListener("input", (event) => choose({ factor: catalog.factors[+event.target.value] }));
  root.addEventListener("change", (event) => {
    if (event.target.name === names) choose({ scope: event.target.value });
  });
  store.on("change:view", show);
  store.on("change:selected", () => {
    controls();
    // the view of another query or neuron is still to come
    const waits = !sameView(store.get("view").of, selected());
    root.classList.toggle("qrnca-busy", waits);
    if (!waits) letters();
  });
  show();
}

// The state of a static page: what Python would answer is looked up in `page`, computed when the page was written.
class PageStore {
  constructor(page) {
    this.page = page;
    this.heard = {};
    this.state = { catalog: page.catalog, selected: page.selected };
    this.state.view = this.view();
  }
  get(name) {
    return this.state[name];
  }
  set(name, value) {
    this.state[name] = value;
  }
  on(event, heard) {
    this.heard[event] = heard;
  }
  save_changes() {
    const old = this.state.view;
    this.state.view = this.view();
    this.heard[sameView(old.of, this.state.view.of) ? "change:selected" : "change:view"]?.();
  }
  view() {
    const { query, layer, neuron } = this.state.selected;
    const name = label(layer, neuron);
    const about = this.page.queries[query];
    const mine = about.neurons[name];
    return {
      of: { query, layer, neuron },
      query: about.html,
      letters: about.letters,
      right: about.right,
      card: this.page.cards[name],
      circuit: mine.circuit,
      curves: { all: about.curve, neuron: mine.curve },
    };
  }
}

// A page's data: base64 of gzip of JSON.
async function openPage(root, data) {
  const letters = atob(data.textContent);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i); // Uint8Array.from takes a second for 6 MB
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  mount(root, new PageStore(JSON.parse(await new Response(stream).text())));
}
