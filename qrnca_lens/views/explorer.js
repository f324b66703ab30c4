// The explorer's face, the same in Jupyter and in a static page. `store` holds the state: in Jupyter it is the widget's
// model (get, set, save_changes, on), in a page it is `PageStore` below. All HTML in the state comes escaped from Python.

const sameView = (a, b) => a.query === b.query && a.layer === b.layer && a.neuron === b.neuron;

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
    <p class="qrnca-note">P of the letters after the query's prompt 0, which is shown below.</p>
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
  part("factor").max = catalog.factors.length - 1;

  const selected = () => store.get("selected");
  const queriesOf = (group) => catalog.queries.filter((query) => group === catalog.all || query.group === group);
  const queryOf = (id) => catalog.queries.find((query) => query.id === id);
  const label = ([layer, index]) => `L${layer}.N${index}`;

  const kept = new Set(catalog.queries.flatMap((query) => query.neurons.map(label)));

  function choose(change) {
    part("message").textContent = "";
    store.set("selected", { ...selected(), ...change });
    store.save_changes();
  }

  function chooseQuery(id) {
    const [layer, neuron] = queryOf(id).neurons[0] ?? [null, null];
    choose({ query: id, layer, neuron });
  }

  // a neuron of the chosen query is looked at there; any other takes the explorer to the query where it counts most
  function chooseNeuron(layer, neuron) {
    const has = (query) => query.neurons.find(([l, n]) => l === layer && n === neuron);
    if (has(queryOf(selected().query))) return choose({ layer, neuron });
    const near = queriesOf(selected().group).filter(has);
    const among = near.length ? near : catalog.queries.filter(has);
    const best = among.sort((a, b) => has(b)[2] - has(a)[2])[0];
    if (best) choose({ layer, neuron, query: best.id, group: near.length ? selected().group : best.group });
    else if (catalog.anyNeuron) choose({ layer, neuron });
    else
      part("message").textContent =
        `L${layer}.N${neuron} is not among the neurons kept in this page. ` +
        `In Python: ql.neuron(model, ${layer}, ${neuron}, located=located)`;
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
    options("group", [[catalog.all, catalog.all], ...catalog.groups.map((group, i) => [group, catalog.groupLabels[i]])], now.group);
    options("query", queriesOf(now.group).map((query) => [query.id, query.label]), now.query);
    const neurons = queryOf(now.query).neurons.map((neuron) => [label(neuron), `${label(neuron)}  (naica ${neuron[2].toPrecision(3)})`]);
    const chosen = now.layer === null ? "none" : label([now.layer, now.neuron]);
    if (!neurons.some(([value]) => value === chosen)) neurons.unshift([chosen, now.layer === null ? "none" : `${chosen}  (no QR neuron of this query)`]);
    options("neuron", neurons, chosen);
    if (part("map").dataset.group !== now.group) {
      part("map").innerHTML = catalog.maps[now.group];
      part("map").dataset.group = now.group;
    }
    mark();
  }

  function mark() {
    const { layer, neuron } = selected();
    for (const place of root.querySelectorAll("[data-neuron]"))
      place.classList.toggle("qrnca-chosen", +place.dataset.layer === layer && +place.dataset.neuron === neuron);
    if (catalog.anyNeuron) return;
    for (const button of root.querySelectorAll("button[data-neuron]")) {
      button.disabled = !kept.has(button.textContent);
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
    part("letters").innerHTML = view.letters.map((letter, i) => {
      const p = view.curves[scope][at][i];
      const right = letter === view.right ? "qrnca-right" : "";
      return `<span>P(${letter})${right && " right"}</span><div class="qrnca-bar ${right}"><div style="width:${100 * p}%"></div></div>
        <output data-letter="${letter}">${p.toFixed(4)}</output>`;
    }).join("");
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

  part("group").addEventListener("change", (event) => {
    const group = event.target.value;
    const stay = queriesOf(group).some((query) => query.id === selected().query);
    if (stay) return choose({ group });
    // as in Python: a group brings its strongest query along
    const strength = (query) => query.neurons[0]?.[2] ?? -Infinity;
    const first = queriesOf(group).reduce((a, b) => (strength(b) > strength(a) ? b : a));
    const [layer, neuron] = first.neurons[0] ?? [null, null];
    choose({ group, query: first.id, layer, neuron });
  });
  part("query").addEventListener("change", (event) => chooseQuery(event.target.value));
  part("neuron").addEventListener("change", (event) => {
    const found = /^L(\d+)\.N(\d+)$/.exec(event.target.value);
    if (found) chooseNeuron(+found[1], +found[2]);
  });
  root.addEventListener("click", (event) => {
    const place = event.target.closest("[data-neuron]");
    if (place) chooseNeuron(+place.dataset.layer, +place.dataset.neuron);
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

// The state of a static page: what Python would answer is looked up in `kept`, computed when the page was written.
class PageStore {
  constructor(state, kept) {
    Object.assign(this, { state, kept, heard: {} });
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
    const name = `${layer}.${neuron}`;
    const about = this.kept.queries[query];
    const mine = about.neurons[name];
    return {
      of: { query, layer, neuron },
      query: about.html,
      letters: about.letters,
      right: about.right,
      card: this.kept.cards[name],
      circuit: mine.circuit,
      curves: { all: about.curve, neuron: mine.curve },
    };
  }
}

// A page's data: base64 of gzip of JSON.
async function openPage(root, data) {
  const bytes = Uint8Array.from(atob(data.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const { state, kept } = JSON.parse(await new Response(stream).text());
  mount(root, new PageStore(state, kept));
}
